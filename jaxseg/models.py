"""Models: an encoder with a decoder, an encoder as a classifier, and the published systems by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import catalog
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.layers.resize import resize
from jaxseg.types import Features, Image, Outputs

_MIN_SIZE = 32


class SegmentationModel(nn.Module):
  """image → {"logits": ...}: any encoder with any decoder that it can feed.

  Logits are float32 at the decoder's own resolution; `jaxseg.resize_logits` brings
  them to the image. In training an auxiliary decoder adds "aux_logits".

  Attributes:
    encoder: image → Features.
    decoder: Features → logits.
    aux_decoder: a second decoder, supervised in training (deep supervision).
    scales: image scales whose logits are fused by their maximum (DeepLab v2's MSC);
      in training each scale below 1 adds its own "scale075_logits".
  """

  encoder: nn.Module
  decoder: nn.Module
  aux_decoder: nn.Module | None = None
  scales: tuple[float, ...] = (1.0,)

  def __call__(self, image: Image, *, train: bool) -> Outputs:
    check_image(image)
    image = jnp.asarray(image)
    outputs = self._at_scale(image, train)
    if tuple(self.scales) == (1.0,):
      return outputs
    fused = outputs["logits"]
    for scale in self.scales:
      if scale == 1.0:
        outputs["scale100_logits"] = outputs["logits"]
        continue
      # PyTorch's rule for a scale factor: the size is rounded down.
      size = tuple(int(n * scale) for n in image.shape[1:3])
      logits = self._at_scale(resize(image, size), train)["logits"]
      outputs[f"scale{round(scale * 100):03d}_logits"] = logits
      fused = jnp.maximum(fused, resize(logits, fused.shape[1:3]))
    if not train:
      return {"logits": fused}
    return outputs | {"logits": fused}

  def features(self, image: Image, *, train: bool) -> Features:
    """The encoder's stages: `model.apply(variables, image, train=False, method="features")`."""
    check_image(image)
    return self.encoder(jnp.asarray(image), train=train)

  def _at_scale(self, image: Array, train: bool) -> dict[str, Array]:
    features = self.encoder(image, train=train)
    outputs = {"logits": self.decoder(features, train=train).astype(jnp.float32)}
    # Traced at initialisation too, so that its parameters exist whatever `train` is there.
    if self.aux_decoder is not None and (train or self.is_initializing()):
      outputs["aux_logits"] = self.aux_decoder(features, train=train).astype(jnp.float32)
    return outputs


class Classifier(nn.Module):
  """An encoder with an image-level head: mean of the last stage, then one linear layer → logits b k."""

  encoder: nn.Module
  num_classes: int

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Float[Array, "b k"]:
    check_image(image)
    features = self.encoder(jnp.asarray(image), train=train)
    pooled = features[max(features)].mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, name="head")(pooled)


@dataclasses.dataclass(frozen=True)
class System:
  """A published system: names in the catalogs, and the fields in which it differs from their defaults."""

  encoder: str
  decoder: str
  encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aux_decoder: str | None = None
  aux_decoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scales: tuple[float, ...] = (1.0,)


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
}


def create_model(
  name: str,
  *,
  num_classes: int | None = None,
  encoder: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
  aux_decoder: Mapping[str, Any] | None = None,
  scales: tuple[float, ...] | None = None,
) -> nn.Module:
  """A published system, or one of the encoders alone, as a Linen module; no arrays are made.

  Args:
    name: see `list_models()`.
    num_classes: classes of the segmentation head. None leaves the decoder without its
      classifier; for an encoder alone, a number makes it an image classifier.
    encoder: fields of the encoder to change, `dict(drop_path_rate=0.0)`.
    decoder: fields of the decoder to change.
    aux_decoder: fields of the auxiliary decoder to change, where the system has one.
    scales: input scales fused by their maximum; None keeps the system's.

  Raises:
    ValueError: unknown name or field (the message has the nearest), or a bad class count.
  """
  if num_classes is not None and not (isinstance(num_classes, int) and num_classes >= 1):
    raise ValueError(f"num_classes is {num_classes!r}, expected an int of at least 1")
  if name in ENCODERS:
    return _encoder_alone(name, num_classes, encoder, decoder or aux_decoder or scales)
  if name not in SYSTEMS:
    raise ValueError(f"there is no model called {name!r}; {catalog.suggestion(name, list_models())}")
  system = SYSTEMS[name]
  if aux_decoder and system.aux_decoder is None:
    raise ValueError(f"{name} has no auxiliary decoder, so its fields {sorted(aux_decoder)} cannot be set")
  for fields, part in ((decoder, "decoder"), (aux_decoder, "aux_decoder")):
    if fields and "num_classes" in fields:
      raise ValueError(f"give num_classes to create_model itself, not inside {part}=")
  classes = {"num_classes": num_classes}
  aux = None
  if system.aux_decoder is not None:
    overrides = {**system.aux_decoder_fields, **classes, **(aux_decoder or {})}
    aux = catalog.build(DECODERS, system.aux_decoder, overrides, kind="decoder")
  return SegmentationModel(
    encoder=catalog.build(
      ENCODERS, system.encoder, {**system.encoder_fields, **(encoder or {})}, kind="encoder"
    ),
    decoder=catalog.build(
      DECODERS, system.decoder, {**system.decoder_fields, **classes, **(decoder or {})}, kind="decoder"
    ),
    aux_decoder=aux,
    scales=tuple(system.scales if scales is None else scales),
  )


def list_models() -> list[str]:
  """Names `create_model` knows: the published systems, then the encoders alone."""
  return sorted(SYSTEMS) + sorted(ENCODERS)


def _encoder_alone(name, num_classes, fields, other) -> nn.Module:
  if other:
    raise ValueError(f"{name} is an encoder alone: it takes encoder= and num_classes=, no decoder fields")
  module = catalog.build(ENCODERS, name, fields, kind="encoder")
  return module if num_classes is None else Classifier(encoder=module, num_classes=num_classes)


def check_image(image) -> None:
  """Raises a ValueError that says how to mend an image of wrong rank, type or size."""
  if image.ndim != 4 or image.shape[-1] != 3:
    raise ValueError(
      f"image has shape {tuple(image.shape)}, expected (batch, height, width, 3);"
      " add the batch axis with image[None]"
    )
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(
      f"image is {image.dtype}, expected floating point normalised by the model's preprocess;"
      " see jaxseg.types.Preprocess"
    )
  h, w = image.shape[1:3]
  if min(h, w) < _MIN_SIZE:
    raise ValueError(f"image is {h}x{w}, but models need at least {_MIN_SIZE} pixels a side; enlarge it")
