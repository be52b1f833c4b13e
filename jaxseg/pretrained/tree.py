"""Our trees of variables by path, and filling them from a file, ours or a published one.

A path is "params/encoder/stem0/conv/kernel". Key maps see it below its collection, and
always from the whole model: a lone encoder's "stem0/..." is "encoder/stem0/..." there.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jaxseg.errors import UserError
from jaxseg.pretrained.keymap import Differences, Layout, Shape, Stored, read_leaves
from jaxseg.pretrained.weights import Weights

COLLECTIONS = ("params", "batch_stats", "buffers")
# Modules of a whole model; a tree without any of them is a lone encoder's.
_PARTS = ("encoder/", "decoder/", "aux_decoder/", "head/")


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Path → leaf."""
  return traverse_util.flatten_dict(dict(variables), sep="/")


def below(path: str) -> str:
  """The path without its collection."""
  return path.split("/", 1)[1]


def canonical(paths: Iterable[str]) -> dict[str, str]:
  """Path → the same leaf's path below its collection in the whole model."""
  paths = list(paths)
  lone = not any(below(path).startswith(_PARTS) for path in paths)
  return {path: ("encoder/" if lone else "") + below(path) for path in paths}


def is_ours(weights: Weights) -> bool:
  """Whether the names are paths of our own tree."""
  names = weights.tensors
  return bool(names) and all(name.split("/", 1)[0] in COLLECTIONS and "/" in name for name in names)


def fill(
  weights: Weights, layout: Layout | None, wanted: Mapping[str, Shape]
) -> tuple[dict[str, np.ndarray], Differences, dict[str, Stored]]:
  """The leaves of `wanted` (path → shape) from a file; buffers may be absent, the model draws them itself.

  Args:
    weights: the file.
    layout: of the file; None for our own.
    wanted: path → shape.

  Returns:
    path → value, the differences, and what the layout carries without use.
  """
  paths = canonical(wanted)
  shapes = {paths[path]: tuple(shape) for path, shape in wanted.items()}
  optional = {paths[path] for path in wanted if path.startswith("buffers/")}
  if layout is not None:
    values, differences, unused = read_leaves(layout, weights, shapes, optional=optional)
  else:
    own = canonical(weights.tensors)
    renamed = dataclasses.replace(weights, tensors={own[n]: v for n, v in weights.tensors.items()})
    values, differences, unused = read_leaves(_IDENTITY, renamed, shapes, optional=optional)
  return {path: values[key] for path, key in paths.items() if key in values}, differences, unused


def spare(names: Mapping[str, str], have: Iterable[str], keep: Sequence[str] = ()) -> set[str]:
  """Names of a file that a tree may well not want.

  Args:
    names: name in the file → its canonical path in the file's whole model.
    have: canonical paths of the tree: of a part of the model that it lacks, nothing is wanted.
    keep: patterns of paths whose values are not taken from the file.
  """
  parts = {path.split("/", 1)[0] for path in have}
  return {
    name
    for name, path in names.items()
    if path.split("/", 1)[0] not in parts or any(re.fullmatch(pattern, path) for pattern in keep)
  }


def _no_place(*_: Any) -> Any:
  raise UserError("our own layout is only read")


_IDENTITY = Layout(
  family="jaxseg",
  name="jaxseg",
  archs=(),
  publish=lambda path: path,
  pattern=".*",
  detect=_no_place,
  record=_no_place,
  unused=r"(?!)",
  to_ours=lambda path, value, shape: value,
  to_published=lambda path, value, ndim: value,
)
