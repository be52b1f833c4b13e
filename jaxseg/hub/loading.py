"""What a weight file is of and what is wrong with it: parts of `from_pretrained` and `load_pretrained`."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import lazy
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.pretrained import LAYOUTS, keymap, tree
from jaxseg.pretrained.keymap import Detected, Differences, Layout
from jaxseg.pretrained.source import open_source, read_best
from jaxseg.pretrained.weights import Weights

# Any size does for the shapes of the parameters; this one suits every encoder.
_TRACED = (1, 64, 64, 3)


def open_weights(source: str | os.PathLike) -> Weights:
  """The arrays that `source` names; of a workdir, those of `best/`, else of its latest checkpoint."""
  found = open_source(source)
  if isinstance(found, Weights):
    return found
  if best := read_best(found.path):
    return Weights(best.tensors, pathlib.Path(found.path), meta=found.meta)
  # Orbax comes with jaxseg[train].
  restore_variables = lazy.load("jaxseg.checkpoint").restore_variables
  arrays = tree.flat(restore_variables(found.checkpoints))
  return Weights(arrays, pathlib.Path(found.path), meta=found.meta)


def recognise(found: Weights, arch: str | None) -> Layout | None:
  """The file's published layout, None for our own; checked against the family that `arch` belongs to."""
  if tree.is_ours(found):
    return None
  layout = keymap.recognise(found, LAYOUTS)
  if arch is not None and not arch.startswith(layout.archs):
    raise UserError(f"{found.path} holds {layout.family} weights ({layout.name}), not those of {arch!r}")
  return layout


def told_by_shapes(found: Weights, layout: Layout) -> Detected:
  """What names and shapes tell, and what a config beside them adds."""
  told = layout.detect({name: value.shape for name, value in found.tensors.items()})
  said = dict(found.meta.encoder or {})
  assumed = tuple(name for name in told.assumed if name.removeprefix("encoder.") not in said)
  return dataclasses.replace(told, encoder={**told.encoder, **said}, assumed=assumed)


def told_by_config(found: Weights, arch: str | None) -> Detected:
  """What the config.json beside our own arrays says, or `arch` where there is none."""
  fields = found.meta.model
  if fields is None and arch is None:
    raise UserError(f"{found.path} has our own names but no config.json that says the model; give arch=")
  fields = _tuples(fields or {})
  return Detected(
    fields.get("arch", arch),
    fields.get("num_classes"),
    **{key: fields[key] for key in ("encoder", "decoder", "aux_decoder", "scales") if fields.get(key)},
  )


def keep_hint(told: Detected, arch: str) -> str:
  """The pattern for `load_pretrained` that leaves out what a file of `told` most likely lacks for `arch`."""
  if told.arch not in ENCODERS:
    return "decoder/classifier/.*"
  return "head/.*" if arch in ENCODERS else "decoder/.*"


def check_classes(found: Weights, told: Detected, arch: str | None, num_classes: int | None) -> None:
  """Refuses a class count that the file does not have: its classifier would be of another shape."""
  silent = tree.is_ours(found) and found.meta.model is None  # only the user knows
  if num_classes is None or told.num_classes == num_classes or silent:
    return
  wanted = arch or told.arch
  has = f"{told.num_classes} classes, not {num_classes}" if told.num_classes else "no classifier"
  hint = keep_hint(told, wanted)
  raise UserError(
    f"{found.path} has {has}; for a new classifier, create_model({wanted!r}, num_classes={num_classes}) and"
    f" fill its variables with jaxseg.load_pretrained(source, variables, keep=({hint!r},))"
  )


def model_fields(told: Detected, arch: str, num_classes: int | None, encoder, decoder) -> dict[str, Any]:
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


def abstract_variables(model: nn.Module) -> dict[str, Any]:
  """The model's variables as shapes; nothing is computed."""
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(_TRACED, jnp.float32))


def whole_model(found: Weights, layout: Layout | None, told: Detected) -> dict[str, str]:
  """Name in the file → canonical path, for every leaf of the model that the file was made of."""
  if layout is None:
    own = tree.canonical(found.tensors)
    return {path: path for path in own.values()}
  whole = create_model(told.arch, **model_fields(told, told.arch, None, None, None))
  paths = tree.canonical(tree.flat(abstract_variables(whole))).values()
  return {part.name: path for path in paths if (part := layout.part(path)) is not None}


def kept_paths(leaves: Mapping[str, Any], keep: Sequence[str]) -> set[str]:
  """The paths that `keep`'s patterns match; each has to match one."""
  if isinstance(keep, str):
    raise UserError(f"keep is the text {keep!r}, expected a sequence of patterns: keep=({keep!r},)")
  kept = set()
  for pattern in keep:
    try:
      hits = {path for path in leaves if re.fullmatch(pattern, tree.below(path))}
    except re.error as error:
      raise UserError(f"keep holds {pattern!r}, which is no regular expression ({error})") from None
    if not hits:
      some = sorted({tree.below(path).rsplit("/", 1)[0] for path in leaves})
      close = difflib.get_close_matches(pattern, some, n=1, cutoff=0.0)
      raise UserError(f"keep holds {pattern!r}, which matches no path; there is {close[0] + '/.*'!r}")
    kept |= hits
  return kept


def check_family(found: Weights, layout: Layout | None, leaves: Mapping[str, Any]) -> None:
  """Refuses a published file whose layout has no name for anything of the encoder to fill."""
  inner = [path for path in tree.canonical(leaves).values() if path.startswith("encoder/")]
  if layout is None or not inner or any(layout.part(path) for path in inner):
    return
  raise UserError(
    f"{found.path} holds {layout.family} weights ({layout.name}), and the given variables are of another"
    f" family ({inner[0]}, ...); give a file of that family"
  )


def disagreement(
  found: Weights, differences: Differences, what: str, hint: str, *, told: Detected | None = None
) -> str:
  """The sentence about all differences between a file, which `told` what it is of, and `what`."""
  if told is not None and what != told.arch and what not in ENCODERS and told.arch not in ENCODERS:
    counts = (("missing", differences.missing), ("unexpected", differences.unexpected))
    counts += (("of another shape", differences.shapes),)
    numbers = ", ".join(f"{len(names)} {word}" for word, names in counts if names)
    return f"{found.path} holds {told.arch}, not {what} (tensors: {numbers}); leave arch out"
  return (
    f"{found.path} and {what} disagree: {differences.text()};"
    f" parts to leave as they are go into load_pretrained(..., keep=({hint!r},))"
  )


def like(value: np.ndarray, leaf: Any) -> Any:
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
