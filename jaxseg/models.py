"""Models: an encoder with a decoder, an encoder as a classifier, and the published systems by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jaxtyping import Array, Float

from jaxseg import catalog
from jaxseg.classes import MOST_AT_ONCE
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.layers import spatial as layers_spatial
from jaxseg.layers.atrous import OUTPUT_STRIDES, check_output_stride
from jaxseg.layers.resize import rescale, resize
from jaxseg.sharding import AXES
from jaxseg.types import Features, Image, Outputs

_MIN_SIZE = 32


class SegmentationModel(nn.Module):
  """image → {"logits": ...}: any encoder with any decoder that it can feed.

  Logits are float32 at the decoder's own resolution; `jaxseg.resize_logits` brings
  them to the image. An auxiliary decoder adds "aux_logits"; under `jit`, whoever does not
  use them does not pay for them.

  Attributes:
    encoder: image → Features.
    decoder: Features → logits.
    aux_decoder: a second decoder, supervised in training (deep supervision).
    scales: image scales whose logits are fused by their maximum, at the resolution of the
      largest scale's (DeepLab v2's MSC); in training each scale also gives its own map,
      "scale100_logits", "scale075_logits", at its own resolution.
    multi_label: a pixel has each class by a sigmoid of its own, so that it may have several or none, and one
      class is an object and what is not. No parameter and no logit depends on it: it says how they are read.
  """

  encoder: nn.Module
  decoder: nn.Module
  aux_decoder: nn.Module | None = None
  scales: tuple[float, ...] = (1.0,)
  multi_label: bool = False

  def __post_init__(self):
    for decoder in (self.decoder, self.aux_decoder):
      _check_stages(self.encoder, decoder)
    super().__post_init__()

  def __call__(self, image: Image, *, train: bool) -> Outputs:
    check_image(image, channels=channels_of(self))
    image = layers_spatial.split(jnp.asarray(image))
    if tuple(self.scales) == (1.0,):
      return self._at_scale(image, train)
    self._check_scales()
    # The largest comes first: it sets the resolution, and the auxiliary decoder sees it alone.
    scales = sorted(self.scales, reverse=True)
    outputs = self._at_scale(rescale(image, scales[0]), train)
    maps = {scales[0]: outputs["logits"]}
    for scale in scales[1:]:
      maps[scale] = self._logits(self.encoder(rescale(image, scale), train=train), train)
    size = outputs["logits"].shape[1:3]
    for logits in list(maps.values())[1:]:
      outputs["logits"] = jnp.maximum(outputs["logits"], resize(logits, size))
    own = {scale_map(scale): logits for scale, logits in maps.items()}
    return outputs | (own if train else {})

  def features(self, image: Image, *, train: bool) -> Features:
    """The encoder's stages: `model.apply(variables, image, train=False, method="features")`."""
    check_image(image, channels=channels_of(self))
    return self.encoder(jnp.asarray(image), train=train)

  def _at_scale(self, image: Array, train: bool) -> dict[str, Array]:
    features = self.encoder(image, train=train)
    outputs = {"logits": self._logits(features, train)}
    if self.aux_decoder is not None:
      outputs["aux_logits"] = self.aux_decoder(features, train=train).astype(jnp.float32)
    return outputs

  def _logits(self, features: Features, train: bool) -> Array:
    return self.decoder(features, train=train).astype(jnp.float32)

  def _check_scales(self) -> None:
    percent = {round(scale * 100) for scale in self.scales}
    if not percent or min(percent) <= 0 or len(percent) < len(self.scales):
      raise UserError(
        f"scales={tuple(self.scales)}, expected different positive factors such as (1, 0.75, 0.5)"
      )


class Classifier(nn.Module):
  """An encoder with an image-level head: mean of the last stage, then one linear layer → logits b k."""

  encoder: nn.Module
  num_classes: int

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Float[Array, "b k"]:
    check_image(image, channels=channels_of(self))
    features = self.encoder(jnp.asarray(image), train=train)
    pooled = features[max(features)].mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, name="head")(pooled)


@dataclasses.dataclass(frozen=True)
class System:
  """A published system: names in the catalogs, and the fields in which it differs from their defaults.

  Attributes:
    encoder, decoder: names in the catalogs.
    encoder_fields, decoder_fields, aux_decoder_fields: where they differ from the catalog's defaults.
    aux_offered: an auxiliary decoder that some publications of the system have: it is there
      when `create_model` is given fields for it.
    rates_at: output stride of the encoder that the decoder's rates belong to; at another one they keep
      their reach in the image. None where the rates are the same at any.
  """

  encoder: str
  decoder: str
  encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aux_decoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aux_offered: str | None = None
  rates_at: int | None = None


# The papers' rates at output stride 16; mmsegmentation's and torchvision's auxiliary head, on the stage
# before the last.
_DEEPLAB_V3 = dict(
  aux_offered="fcn",
  aux_decoder_fields=dict(stage="stage3", num_convs=1, channels=256, dropout_rate=0.1),
  rates_at=16,
)
# As the papers train; they evaluate at 8, too.
_RESNET_OS16 = dict(output_stride=16, multi_grid=(1, 2, 4))
_VGG_SIDES = ("stage0", "stage1", "stage2", "stage3", "stage4")

SYSTEMS = {
  "cgnet_m3n21": System("cgnet_m3n21_encoder", "fcn", decoder_fields=dict(use_bias=False)),
  "colour_only": System("pixelwise", "fcn"),
  "segnext_tiny": System("mscan_tiny", "light_ham"),
  "segnext_small": System("mscan_small", "light_ham"),
  "segnext_base": System(
    "mscan_base", "light_ham", decoder_fields=dict(channels=512, ham_channels=512, rank=64)
  ),
  "segnext_large": System(
    "mscan_large", "light_ham", decoder_fields=dict(channels=1024, ham_channels=1024, rank=64)
  ),
  "segformer_b0": System("mit_b0", "all_mlp"),
  "segformer_b1": System("mit_b1", "all_mlp"),
  "segformer_b2": System("mit_b2", "all_mlp", decoder_fields=dict(width=768)),
  "segformer_b3": System("mit_b3", "all_mlp", decoder_fields=dict(width=768)),
  "segformer_b4": System("mit_b4", "all_mlp", decoder_fields=dict(width=768)),
  "segformer_b5": System("mit_b5", "all_mlp", decoder_fields=dict(width=768)),
  "deeplabv1_vgg16": System("vgg16", "large_fov"),
  "deeplabv1_msc_vgg16": System("vgg16", "large_fov", dict(with_image=True), dict(side_stages=_VGG_SIDES)),
  "deeplabv2_vgg16": System("vgg16", "large_fov", decoder_fields=dict(rates=(6, 12, 18, 24))),
  "deeplabv2_resnet101": System("resnet101", "summed_aspp", dict(stem="v1", output_stride=8)),
  "deeplabv3_resnet50": System("resnet50", "deeplabv3", _RESNET_OS16, **_DEEPLAB_V3),
  "deeplabv3_resnet101": System("resnet101", "deeplabv3", _RESNET_OS16, **_DEEPLAB_V3),
  "deeplabv3_mobilenetv2": System(
    "mobilenetv2", "deeplabv3", dict(output_stride=16), dict(rates=()), **_DEEPLAB_V3
  ),
  "deeplabv3plus_resnet50": System("resnet50", "deeplabv3plus", _RESNET_OS16, **_DEEPLAB_V3),
  "deeplabv3plus_resnet101": System("resnet101", "deeplabv3plus", _RESNET_OS16, **_DEEPLAB_V3),
  "deeplabv3plus_xception65": System(
    "xception65", "deeplabv3plus", decoder_fields=dict(separable=True), **_DEEPLAB_V3
  ),
  "deeplabv3plus_mobilenetv2": System(
    "mobilenetv2", "deeplabv3plus", dict(output_stride=16), dict(separable=True), **_DEEPLAB_V3
  ),
}


def create_model(
  name: str,
  *,
  num_classes: int | None = None,
  encoder: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
  aux_decoder: Mapping[str, Any] | None = None,
  scales: tuple[float, ...] | None = None,
  multi_label: bool = False,
) -> nn.Module:
  """A published system, or one of the encoders alone, as a Linen module; no arrays are made.

  Args:
    name: see `list_models()`.
    num_classes: classes of the segmentation head. None leaves the decoder without its
      classifier; for an encoder alone, a number makes it an image classifier.
    encoder: fields of the encoder to change, `dict(drop_path_rate=0.0)`.
    decoder: fields of the decoder to change. Where `rates` is not among them, those of DeepLab v3 and v3+
      follow the encoder's output stride: 12, 24, 36 at 8.
    aux_decoder: fields of the auxiliary decoder, where the system offers one (DeepLab v3 and v3+): any
      switch it on, `dict(stage="stage3")`.
    scales: input scales whose logits are fused by their maximum; None is the image's own.
    multi_label: a pixel may have several classes or none; see `SegmentationModel`.

  Raises:
    UserError: unknown name or field (the message has the nearest), or a bad class count.
  """
  if num_classes is not None and not (isinstance(num_classes, int) and num_classes >= 1):
    raise UserError(f"num_classes is {num_classes!r}, expected an int of at least 1")
  if name in ENCODERS:
    return _encoder_alone(name, num_classes, encoder, decoder or aux_decoder or scales or multi_label)
  if multi_label and (num_classes or 0) > MOST_AT_ONCE:
    raise UserError(
      f"num_classes is {num_classes}; a label holds at most {MOST_AT_ONCE} classes at once (multi_label)"
    )
  if name not in SYSTEMS:
    raise UserError(f"there is no model called {name!r}; {catalog.suggestion(name, list_models())}")
  system = SYSTEMS[name]
  aux_name = system.aux_offered if aux_decoder else None
  if aux_decoder and aux_name is None:
    raise UserError(f"{name} has no auxiliary decoder, so its fields {sorted(aux_decoder)} cannot be set")
  for fields, part in ((decoder, "decoder"), (aux_decoder, "aux_decoder")):
    if fields and "num_classes" in fields:
      raise UserError(f"give num_classes to create_model itself, not inside {part}=")
  classes = {"num_classes": num_classes}
  encoder_fields = {**system.encoder_fields, **(encoder or {})}
  if "multi_grid" in system.encoder_fields and "multi_grid" not in (encoder or {}):
    # A smaller last stage takes as many of the system's rates as it has units.
    units = (catalog.defaults(ENCODERS[system.encoder]) | encoder_fields)["stage_sizes"][-1]
    encoder_fields["multi_grid"] = tuple(encoder_fields["multi_grid"])[:units]
  _check_stride(system.encoder, encoder_fields)
  following = decoder_rates(name, encoder_fields.get("output_stride"))
  aux = None
  if aux_name is not None:
    overrides = {**system.aux_decoder_fields, **classes, **(aux_decoder or {})}
    aux = catalog.build(DECODERS, aux_name, overrides, kind="decoder")
  return SegmentationModel(
    encoder=catalog.build(ENCODERS, system.encoder, encoder_fields, kind="encoder"),
    decoder=catalog.build(
      DECODERS,
      system.decoder,
      {**system.decoder_fields, **following, **classes, **(decoder or {})},
      kind="decoder",
    ),
    aux_decoder=aux,
    scales=(1.0,) if scales is None else tuple(scales),
    multi_label=multi_label,
  )


def list_models() -> list[str]:
  """Names `create_model` knows: the published systems, then the encoders alone."""
  return sorted(SYSTEMS) + sorted(ENCODERS)


def decoder_rates(name: str, output_stride: int | None) -> dict[str, tuple[int, ...]]:
  """The decoder's field `rates` at an output stride of the encoder, {} where a system's do not follow it.

  The papers' rule is 6, 12, 18 at 16 and twice that at 8: rate times stride stays.

  Args:
    name: a published system.
    output_stride: None takes the system's own.
  """
  system = SYSTEMS[name]
  if system.rates_at is None:
    return {}
  usual = catalog.defaults(ENCODERS[system.encoder]) | dict(system.encoder_fields)
  stride = usual["output_stride"] if output_stride is None else output_stride
  if stride not in OUTPUT_STRIDES:
    return {}  # the encoder refuses it in its own words
  rates = (catalog.defaults(DECODERS[system.decoder]) | dict(system.decoder_fields))["rates"]
  return {"rates": tuple(rate * system.rates_at // stride for rate in rates)}


def scale_map(scale: float) -> str:
  """Name of the output that holds one input scale's own logits: "scale075_logits"."""
  return f"scale{round(scale * 100):03d}_logits"


def first_whole_stage(model: nn.Module, size: tuple[int, int], *, spatial: int) -> str | None:
  """The first part of a model that runs whole on every device where rows are spread; None for none.

  "stage3" of the encoder, a part of it before the stages ("stem0"), or "decoder". Nothing is computed.

  Args:
    model: an encoder with a decoder, an encoder, or a classifier.
    size: rows and columns of an image.
    spatial: devices over which the rows of an image are spread.
  """
  mesh = AbstractMesh((1, 1, spatial), AXES, axis_types=(AxisType.Auto,) * 3)
  inside: list[tuple[str, ...]] = [()]
  whole: list[tuple[str, ...]] = []

  def follow(method, args, kwargs, context):
    inside.append(context.module.path)
    try:
      return method(*args, **kwargs)
    finally:
      inside.pop()

  def init():
    return model.init(jax.random.key(0), jnp.zeros((1, *size, channels_of(model))), train=False)

  if spatial > 1:
    with jax.sharding.use_abstract_mesh(mesh), layers_spatial.watched(lambda: whole.append(inside[-1])):
      with nn.intercept_methods(follow):
        jax.eval_shape(init)
  parts = (path[1:] if path[:1] == ("encoder",) else path for path in whole)
  # What an encoder itself does, such as shrinking the image to join it later, is no part.
  return next((path[0].split("_block")[0] for path in parts if path), None)


def align_corners_of(model: Any, *, given: bool | None = None) -> bool:
  """Corner rule of the resize from the model's logits to the image: the one of its decoder's own resizes.

  Args:
    model: a module, or a function that stands for one.
    given: what somebody said; None asks the model, and one without such a field has half-pixel centres.
  """
  return bool(getattr(getattr(model, "decoder", None), "align_corners", False) if given is None else given)


def _encoder_alone(name, num_classes, fields, other) -> nn.Module:
  if other:
    raise UserError(f"{name} is an encoder alone: it takes encoder= and num_classes=, no decoder fields")
  _check_stride(name, fields or {})
  module = catalog.build(ENCODERS, name, fields, kind="encoder")
  return module if num_classes is None else Classifier(encoder=module, num_classes=num_classes)


def _check_stride(encoder: str, fields: Mapping[str, Any]) -> None:
  if "output_stride" in fields and "output_stride" in catalog.fields(ENCODERS[encoder]):
    check_output_stride(encoder, fields["output_stride"])


def _check_stages(encoder: nn.Module, decoder: nn.Module | None) -> None:
  """Refuses a decoder that names a stage which its encoder, where it says which it gives, does not have."""
  offered = getattr(encoder, "stages", None)
  if offered is None or decoder is None:
    return
  for field in ("stage", "stages", "side_stages"):
    value = getattr(decoder, field, None) or ()
    for stage in (value,) if isinstance(value, str) else value:
      if stage not in offered:
        hint = "; set the encoder's with_image=True" if stage == "stage0" else ""
        raise UserError(
          f"{type(decoder).__name__}.{field} reads {stage!r}, which {type(encoder).__name__}"
          f" does not give{hint}; {catalog.suggestion(stage, offered)}"
        )


def channels_of(model: Any) -> int:
  """Channels of the images that a model, or an encoder alone, takes."""
  return getattr(getattr(model, "encoder", model), "in_channels", 3)


def check_image(image, *, channels: int = 3) -> None:
  """Raises a ValueError that says how to mend an image of wrong rank, channels, type or size."""
  if image.ndim != 4 or image.shape[-1] != channels:
    mend = (
      "add the batch axis with image[None]" if image.ndim == 3 else "or make the encoder's in_channels fit"
    )
    raise UserError(
      f"image has shape {tuple(image.shape)}, expected (batch, height, width, {channels}); {mend}"
    )
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise UserError(
      f"image is {image.dtype}, expected floating point normalised by the model's preprocess;"
      " see jaxseg.types.Preprocess"
    )
  h, w = image.shape[1:3]
  if h < _MIN_SIZE or w < _MIN_SIZE:  # not `min`: of symbolic sizes it is not known which is less
    raise UserError(f"image is {h}x{w}, but models need at least {_MIN_SIZE} pixels a side; enlarge it")
