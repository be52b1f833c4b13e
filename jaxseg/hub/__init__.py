"""Published and own weights: `from_pretrained` → `Net`, transfer, and the way back to PyTorch.

A weight file is data: it is read without the framework that wrote it, and nothing in it runs.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.errors import UserError
from jaxseg.hub import loading
from jaxseg.hub.loading import LoadReport
from jaxseg.hub.net import OURS, Net
from jaxseg.pretrained import facts, keymap, layout_of, tree
from jaxseg.pretrained.keymap import Stored
from jaxseg.pretrained.untrusted import reading
from jaxseg.types import Preprocess

__all__ = ["LoadReport", "Net", "from_pretrained", "load_pretrained", "load_with_report", "to_torch"]

_LOG = logging.getLogger(__name__)


def from_pretrained(
  source: str | os.PathLike,
  *,
  arch: str | None = None,
  num_classes: int | None = None,
  encoder: Mapping[str, Any] | None = None,
  decoder: Mapping[str, Any] | None = None,
  preprocess: Preprocess | Mapping[str, Any] | None = None,
  revision: str | None = None,
) -> Net:
  """A published or own model, ready to use.

  Names and shapes tell family, variant, layout and class count. What they cannot tell comes
  from the arguments, else the file's own metadata, else a record of that published file, else
  the layout's default, which `net.assumed` then lists.

  Args:
    source: .safetensors, .npz, .pth, .pt or .bin; a directory that `save_pretrained` (ours or
      transformers') or train.py wrote (its best checkpoint is taken); or "org/name" or
      "hf://org/name@revision" on the Hugging Face hub.
    arch: a name of `list_models()`, where the file does not tell the variant.
    num_classes: what the file must have.
    encoder: fields of the encoder that the file cannot tell.
    decoder: fields of the decoder that the file cannot tell.
    preprocess: the image statistics, or their fields; `dict(value_range=(low, high))` alone keeps those of
      the file.
    revision: branch, tag or commit of a hub repository.

  Raises:
    UserError: the source, its format or its family is not known, or it disagrees with the
      model (missing, unexpected and differently shaped tensors are listed together).
  """
  loading.check_arch(arch)
  found = loading.open_weights(source, revision=revision)
  file = loading.identify(found, arch)
  loading.check_classes(file, arch, num_classes)
  arch = arch or file.told.arch
  fields = loading.model_fields(file.told, arch, num_classes, encoder, decoder)
  model, shapes = loading.build(found, arch, fields)
  with reading(found.path):
    values, differences, unused = tree.fill(found, file.layout, shapes)
    loading.drop_spare(differences, file, shapes)
  if differences:
    hint = loading.keep_hint(file.told, arch)
    raise UserError(loading.disagreement(found, differences, arch, hint, told=file.told))
  known = facts.gather(found, file.layout, fields.get("num_classes"), preprocess)
  if "non-commercial" in (known.licence or "").lower():
    _LOG.warning("%s: the licence of these weights is %s", found.path, known.licence)
  stored = {name: Stored(value.shape, value.dtype) for name, value in found.tensors.items()}
  given = {"encoder": encoder, "decoder": decoder}
  return Net(
    model=model,
    variables=traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in values.items()}, sep="/"),
    preprocess=known.preprocess,
    classes=known.classes,
    palette=known.palette,
    arch=arch,
    fields=fields,
    layout=file.layout.name if file.layout else found.meta.layout or OURS,
    licence=known.licence,
    lineage=known.lineage,
    unused=unused,
    assumed=known.assumed | facts.assumed_fields(model, file.layout, file.told, given),
    stored=stored if file.layout else {},
  )


def load_pretrained(
  source: str | os.PathLike,
  variables: Mapping[str, Any],
  *,
  keep: Sequence[str] = (),
  adapt_channels: bool = False,
  revision: str | None = None,
) -> dict[str, Any]:
  """`variables` with the weights of `source` in place of their values: the start of a transfer.

  Args:
    source: as in `from_pretrained`.
    variables: of the model to fill, as `model.init` gives them. A lone encoder's take the
      encoder of a whole model's file.
    keep: regexes that fullmatch paths below the collection ("decoder/classifier/.*"); what they
      match keeps its current value, whatever the file has there.
    adapt_channels: bring the first layer of weights for three channels to the variables' number of them, as
      timm does: for one channel their sum, else the three again and again, times 3 / n.
    revision: branch, tag or commit of a hub repository.

  Raises:
    UserError: tensors are missing, unexpected or of another shape (all listed together), a
      pattern matches nothing, or the source cannot be read.
  """
  return load_with_report(source, variables, keep=keep, adapt_channels=adapt_channels, revision=revision)[0]


def load_with_report(
  source: str | os.PathLike,
  variables: Mapping[str, Any],
  *,
  keep: Sequence[str] = (),
  adapt_channels: bool = False,
  revision: str | None = None,
) -> tuple[dict[str, Any], LoadReport]:
  """`load_pretrained`, and a report: what was loaded, what is new, whose licence holds."""
  leaves = tree.flat(variables)
  kept = loading.kept_paths(leaves, keep)
  found = loading.open_weights(source, revision=revision)
  file = loading.identify(found, None)
  loading.check_family(file, leaves)
  wanted = {path: leaf.shape for path, leaf in leaves.items() if path not in kept}
  with reading(found.path):
    values, differences, _ = tree.fill(found, file.layout, wanted)
    if differences.shapes and (adapted := loading.adapted_channels(file, wanted, values)):
      if not adapt_channels:
        raise UserError(loading.OTHER_CHANNELS.format(path=found.path))
      values, differences = adapted
    loading.drop_spare(differences, file, leaves, keep=keep)
  if differences:
    hint = "head/.*" if any(path.startswith("params/head/") for path in leaves) else "decoder/classifier/.*"
    raise UserError(loading.disagreement(found, differences, "the given variables", hint))
  filled = {path: loading.like(value, leaves[path]) for path, value in values.items()}
  known = facts.gather(found, file.layout, file.told.num_classes, None)
  report = LoadReport(
    source=os.fspath(source),
    arch=file.told.arch,
    layout=file.layout.name if file.layout else OURS,
    loaded=tuple(filled),
    new=tuple(path for path in leaves if path not in filled),
    licence=known.licence,
    lineage=known.lineage,
  )
  return traverse_util.unflatten_dict(leaves | filled, sep="/"), report


def to_torch(net: Net, *, layout: str | None = None) -> dict[str, np.ndarray]:
  """The weights under a published layout's names, shapes and axis orders; PyTorch is not needed.

  What the net's own layout carries and the model does not use is written as zeros of the
  stored shape, so that the original loads strictly; tensors keep the file's element types.

  Args:
    net: what `from_pretrained` gave.
    layout: "mmseg", "official", ...; None takes the one the weights came in.

  Raises:
    UserError: the family has no such layout, or it has no place for a parameter.
  """
  chosen = layout_of(net.arch, layout or net.layout)
  leaves = tree.flat(net.variables)
  leaves = {below: np.asarray(leaves[path]) for path, below in tree.canonical(leaves).items()}
  return keymap.write_leaves(chosen, leaves, net.stored if chosen.name == net.layout else {})
