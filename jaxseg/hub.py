"""Published and own weights: `from_pretrained` → `Net`, transfer, and the way back to PyTorch.

A weight file is data: it is read without the framework that wrote it, and nothing in it runs.
"""

import dataclasses
import difflib
import functools
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Int

from jaxseg import __version__, catalog, lazy
from jaxseg.encoders import ENCODERS
from jaxseg.evaluation.inference import label_map
from jaxseg.layers.resize import resize_logits
from jaxseg.models import align_corners_of, create_model, list_models
from jaxseg.pretrained import LAYOUTS, facts, keymap, layout_of, saved, tree
from jaxseg.pretrained.keymap import Detected, Differences, Layout, Stored
from jaxseg.pretrained.source import open_source
from jaxseg.pretrained.weights import Weights
from jaxseg.types import AnyArray, Preprocess

_OURS = "jaxseg"
_LOG = logging.getLogger(__name__)
_MODES = ("whole",)
_CRF = ("kernels", "steps", "method")
# Any size does for the shapes of the parameters; this one suits every encoder.
_TRACED = (1, 64, 64, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
  """A model with its weights and everything needed to use it.

  Attributes:
    model: the Linen module.
    variables: its collections, float32 arrays.
    preprocess: how it wants its image.
    classes: names in the order of the logits; () for a model without classes.
    palette: (k, 3) uint8 RGB.
    arch: the name `create_model` knows.
    fields: what was passed to it besides: num_classes, encoder, decoder, ...
    layout: the form the weights came in: "official", "mmseg", ..., "jaxseg" for our own.
    licence: of the weights, as far as it is known.
    unused: what the file carried and the model has no use for, name → (shape, dtype).
    assumed: what neither arguments nor file nor record told, name → the assumption in words.
    stored: name → (shape, dtype) of every tensor of the file.
  """

  model: nn.Module
  variables: Mapping[str, Any] = dataclasses.field(repr=False)
  preprocess: Preprocess
  classes: tuple[str, ...]
  palette: np.ndarray = dataclasses.field(repr=False)
  arch: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  layout: str = _OURS
  licence: str | None = None
  unused: Mapping[str, Stored] = dataclasses.field(default_factory=dict, repr=False)
  assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  stored: Mapping[str, Stored] = dataclasses.field(default_factory=dict, repr=False)

  def predict(
    self, image: AnyArray, *, mode: str = "whole", crf: Mapping[str, Any] | None = None
  ) -> Int[np.ndarray, "h w"]:
    """The class of every pixel, at the image's own size.

    Args:
      image: uint8 RGB, h w 3.
      mode: "whole" runs the network once over the whole image.
      crf: refine the result by a fully-connected CRF: `dict(kernels=..., steps=..., method=...)`
        as `jaxseg.crf.mean_field` takes them.

    Raises:
      ValueError: an image of another kind, an unknown mode, or a model without classes.
    """
    _check_picture(image)
    if mode not in _MODES:
      raise ValueError(f"mode is {mode!r}; {catalog.suggestion(mode, _MODES)}")
    if not self.classes or not hasattr(self.model, "decoder"):
      raise ValueError(f"{self.arch} without a segmentation head gives no label map; use model.apply")
    if crf is None:
      return np.asarray(_labels(self.variables, image, model=self.model, preprocess=self.preprocess))
    if set(crf) - set(_CRF) or "kernels" not in crf:
      raise ValueError(f"crf has the keys {sorted(crf)}, expected kernels and perhaps {', '.join(_CRF[1:])}")
    from jaxseg.crf import mean_field

    unary = _unary(self.variables, image, model=self.model, preprocess=self.preprocess)
    refined = mean_field(unary, image, **crf)
    return np.asarray(jnp.argmax(refined, -1).astype(jnp.int32))

  def save_pretrained(self, directory: str | os.PathLike) -> None:
    """Writes model.safetensors, config.json and a model card; `from_pretrained(directory)` reads them."""
    tensors = {path: np.asarray(leaf) for path, leaf in tree.flat(self.variables).items()}
    config = {
      "jaxseg_version": __version__,
      "model": {"arch": self.arch, **self.fields},
      "classes": list(self.classes),
      "palette": np.asarray(self.palette).tolist(),
      "preprocess": dataclasses.asdict(self.preprocess),
      "licence": self.licence,
      "layout": self.layout,
      "assumed": dict(self.assumed),
    }
    saved.write(pathlib.Path(directory), tensors, json.loads(json.dumps(config, default=_plain)))


def from_pretrained(
  source: str | os.PathLike,
  *,
  arch: str | None = None,
  num_classes: int | None = None,
  encoder: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
  preprocess: Preprocess | Mapping[str, Any] | None = None,
) -> Net:
  """A published or own model, ready to use.

  Names and shapes tell family, variant, layout and class count. What they cannot tell comes
  from the arguments, else the file's own metadata, else a record of that published file, else
  the layout's default, which `net.assumed` then lists.

  Args:
    source: .safetensors, .npz, .pth, .pt or .bin; a directory that `save_pretrained` (ours or
      transformers') or train.py wrote (its best checkpoint is taken); or "org/name" on the
      Hugging Face hub.
    arch: a name of `list_models()`, where the file does not tell the variant.
    num_classes: what the file must have.
    encoder: fields of the encoder that the file cannot tell.
    decoder: fields of the decoder that the file cannot tell.
    preprocess: the image statistics, or their fields.

  Raises:
    ValueError: the source, its format or its family is not known, or it disagrees with the
      model (missing, unexpected and differently shaped tensors are listed together).
  """
  found = _open(source)
  if arch is not None and arch not in list_models():
    raise ValueError(f"there is no model called {arch!r}; {catalog.suggestion(arch, list_models())}")
  layout = _layout(found, arch)
  told = _told_by_config(found, arch) if layout is None else layout.detect(_shapes(found))
  _check_classes(found, told, num_classes)
  arch = arch or told.arch
  fields = _fields(told, arch, num_classes, encoder, decoder)
  model = create_model(arch, **fields)
  shapes = {path: leaf.shape for path, leaf in tree.flat(_abstract(model)).items()}
  values, differences, unused = tree.fill(found, layout, shapes)
  if differences.unexpected:
    extra = tree.spare(_whole_model(found, layout, told), tree.canonical(shapes).values())
    differences.unexpected = [name for name in differences.unexpected if name not in extra]
  if differences:
    raise ValueError(_disagreement(found, differences, arch))
  known = facts.gather(found, layout, fields.get("num_classes"), preprocess)
  if "non-commercial" in (known.licence or "").lower():
    _LOG.warning("%s: the licence of these weights is %s", found.path, known.licence)
  stored = {name: Stored(value.shape, value.dtype) for name, value in found.tensors.items()}
  return Net(
    model=model,
    variables=traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in values.items()}, sep="/"),
    preprocess=known.preprocess,
    classes=known.classes,
    palette=known.palette,
    arch=arch,
    fields=fields,
    layout=layout.name if layout else found.meta.layout or _OURS,
    licence=known.licence,
    unused=unused,
    assumed=known.assumed
    | facts.assumed_fields(model, layout, told, {"encoder": encoder, "decoder": decoder}),
    stored=stored if layout else {},
  )


def load_pretrained(
  source: str | os.PathLike, variables: Mapping[str, Any], *, keep: Sequence[str] = ()
) -> dict[str, Any]:
  """`variables` with the weights of `source` in place of their values: the start of a transfer.

  Args:
    source: as in `from_pretrained`.
    variables: of the model to fill, as `model.init` gives them. A lone encoder's take the
      encoder of a whole model's file.
    keep: regexes that fullmatch paths below the collection ("decoder/classifier/.*"); what they
      match keeps its current value, whatever the file has there.

  Raises:
    ValueError: tensors are missing, unexpected or of another shape (all listed together), a
      pattern matches nothing, or the source cannot be read.
  """
  found = _open(source)
  leaves = tree.flat(variables)
  kept = _kept(leaves, keep)
  layout = _layout(found, None)
  wanted = {path: leaf.shape for path, leaf in leaves.items() if path not in kept}
  values, differences, _ = tree.fill(found, layout, wanted)
  if differences.unexpected:
    told = _told_by_config(found, None) if layout is None else layout.detect(_shapes(found))
    extra = tree.spare(_whole_model(found, layout, told), tree.canonical(leaves).values(), keep)
    differences.unexpected = [name for name in differences.unexpected if name not in extra]
  if differences:
    raise ValueError(_disagreement(found, differences, "the given variables"))
  filled = {path: _like(values[path], leaf) if path in values else leaf for path, leaf in leaves.items()}
  return traverse_util.unflatten_dict(filled, sep="/")


def to_torch(net: Net, *, layout: str | None = None) -> dict[str, np.ndarray]:
  """The weights under a published layout's names, shapes and axis orders; PyTorch is not needed.

  What the net's own layout carries and the model does not use is written as zeros of the
  stored shape, so that the original loads strictly; tensors keep the file's element types.

  Args:
    net: what `from_pretrained` gave.
    layout: "mmseg", "official", ...; None takes the one the weights came in.

  Raises:
    ValueError: the family has no such layout, or it has no place for a parameter.
  """
  chosen = layout_of(net.arch, layout or net.layout)
  leaves = tree.flat(net.variables)
  leaves = {below: np.asarray(leaves[path]) for path, below in tree.canonical(leaves).items()}
  return keymap.write_leaves(chosen, leaves, net.stored if chosen.name == net.layout else {})


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _labels(variables, image, *, model, preprocess):
  corners = align_corners_of(model)
  return label_map(_outputs(variables, image, model, preprocess), image.shape[:2], align_corners=corners)[0]


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _unary(variables, image, *, model, preprocess):
  logits = _outputs(variables, image, model, preprocess)["logits"]
  corners = align_corners_of(model)
  return -jax.nn.log_softmax(resize_logits(logits, image.shape[:2], align_corners=corners)[0])


def _outputs(variables, image, model, preprocess):
  if preprocess.size is not None and tuple(preprocess.size) != image.shape[:2]:
    # The published pipelines resize the 8-bit picture with Pillow: antialiased, columns first,
    # and rounded to 8 bits after each axis.
    method = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}[preprocess.resize]
    rows, columns = preprocess.size
    for shape in ((image.shape[0], columns, 3), (rows, columns, 3)):
      resized = jax.image.resize(image.astype(jnp.float32), shape, method)
      image = jnp.clip(jnp.floor(resized + 0.5), 0, 255).astype(jnp.uint8)
  return model.apply(variables, preprocess(image)[None], train=False)


def _check_picture(image: AnyArray) -> None:
  shape = tuple(image.shape)
  if image.ndim == 2 or (image.ndim == 3 and shape[-1] == 1):
    raise ValueError(f"image has shape {shape}, a grey picture; repeat it to three channels: h w 3")
  if image.ndim == 4:
    raise ValueError(f"image has shape {shape}, a batch; predict takes one picture h w 3: image[0]")
  if image.ndim != 3 or shape[-1] != 3:
    raise ValueError(f"image has shape {shape}, expected RGB as height, width, 3")
  if image.dtype != np.uint8:
    raise ValueError(
      f"image is {image.dtype}, expected uint8 RGB in 0..255; predict normalises it by itself"
      " (a float picture in 0..1 becomes one by `(image * 255).round().astype('uint8')`)"
    )


def _open(source: str | os.PathLike) -> Weights:
  found = open_source(source)
  if isinstance(found, Weights):
    return found
  # Orbax comes with jaxseg[train].
  restore_variables = lazy.load("jaxseg.checkpoint").restore_variables
  arrays = tree.flat(restore_variables(found.checkpoints))
  return Weights(arrays, pathlib.Path(found.path), meta=found.meta)


def _layout(found: Weights, arch: str | None) -> Layout | None:
  """The file's published layout, None for our own; checked against the family that `arch` belongs to."""
  if tree.is_ours(found):
    return None
  layout = keymap.recognise(found, LAYOUTS)
  if arch is not None and not arch.startswith(layout.archs):
    raise ValueError(f"{found.path} holds {layout.family} weights ({layout.name}), not those of {arch!r}")
  return layout


def _shapes(found: Weights) -> dict[str, tuple[int, ...]]:
  return {name: value.shape for name, value in found.tensors.items()}


def _told_by_config(found: Weights, arch: str | None) -> Detected:
  fields = found.meta.model
  if fields is None and arch is None:
    raise ValueError(f"{found.path} has our own names but no config.json that says the model; give arch=")
  fields = _tuples(fields or {})
  return Detected(
    fields.get("arch", arch),
    fields.get("num_classes"),
    **{key: fields[key] for key in ("encoder", "decoder", "aux_decoder", "scales") if fields.get(key)},
  )


def _check_classes(found: Weights, told: Detected, num_classes: int | None) -> None:
  if num_classes is not None and told.num_classes not in (None, num_classes):
    raise ValueError(
      f"{found.path} has {told.num_classes} classes, not {num_classes}; for a new classifier fill a model"
      ' of yours with jaxseg.load_pretrained(source, variables, keep=("decoder/classifier/.*",))'
    )


def _fields(told: Detected, arch: str, num_classes: int | None, encoder, decoder) -> dict[str, Any]:
  """`create_model`'s arguments: what the file tells, under what the user said."""
  alone = arch in ENCODERS and told.arch not in ENCODERS  # the encoder of a whole model's file
  fields = {
    "num_classes": None if alone else num_classes or told.num_classes,
    "encoder": {**told.encoder, **(encoder or {})},
    "decoder": {**({} if alone else told.decoder), **(decoder or {})},
    "aux_decoder": {} if alone else dict(told.aux_decoder),
    "scales": None if alone else told.scales,
  }
  return {key: _tuples(value) for key, value in fields.items() if value not in (None, {})}


def _abstract(model: nn.Module) -> dict[str, Any]:
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(_TRACED, jnp.float32))


def _whole_model(found: Weights, layout: Layout | None, told: Detected) -> dict[str, str]:
  """Name in the file → canonical path, for every leaf of the model that the file was made of."""
  if layout is None:
    own = tree.canonical(found.tensors)
    return {path: path for path in own.values()}
  whole = create_model(told.arch, **_fields(told, told.arch, None, None, None))
  paths = tree.canonical(tree.flat(_abstract(whole))).values()
  return {part.name: path for path in paths if (part := layout.part(path)) is not None}


def _kept(leaves: Mapping[str, Any], keep: Sequence[str]) -> set[str]:
  if isinstance(keep, str):
    raise ValueError(f"keep is the text {keep!r}, expected a sequence of patterns: keep=({keep!r},)")
  kept = set()
  for pattern in keep:
    try:
      hits = {path for path in leaves if re.fullmatch(pattern, tree.below(path))}
    except re.error as error:
      raise ValueError(f"keep holds {pattern!r}, which is no regular expression ({error})") from None
    if not hits:
      some = sorted({tree.below(path).rsplit("/", 1)[0] for path in leaves})
      close = difflib.get_close_matches(pattern, some, n=1, cutoff=0.0)
      raise ValueError(f"keep holds {pattern!r}, which matches no path; there is {close[0] + '/.*'!r}")
    kept |= hits
  return kept


def _disagreement(found: Weights, differences: Differences, what: str) -> str:
  return (
    f"{found.path} and {what} disagree: {differences.text()};"
    ' parts to leave as they are go into load_pretrained(..., keep=("decoder/classifier/.*",))'
  )


def _like(value: np.ndarray, leaf: Any) -> Any:
  """`value` with the element type of `leaf`, and where `leaf` is."""
  value = value.astype(leaf.dtype)
  if isinstance(leaf, np.ndarray):
    return value
  return jax.device_put(value, leaf.sharding if isinstance(leaf, jax.Array) else None)


def _tuples(value: Any) -> Any:
  """JSON's lists as the tuples that Linen fields need to be hashable."""
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
  """What JSON does not know of a module's fields: element types."""
  return np.dtype(value).name
