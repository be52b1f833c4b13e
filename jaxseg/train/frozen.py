"""What training leaves as it is: parameters by name, and the BatchNorms that belong to them."""

import contextlib
import difflib
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxseg.errors import UserError
from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.stage import never_scan


def frozen_paths(params: Any, patterns: Sequence[str]) -> frozenset[str]:
  """Paths of the parameters ("encoder/stage1/conv/kernel") that any of `patterns` fullmatches.

  Raises:
    UserError: a pattern that is no regular expression or matches nothing, or no parameter is left.
  """
  if isinstance(patterns, str):
    raise UserError(f"frozen is the text {patterns!r}, expected a sequence of patterns: ({patterns!r},)")
  paths = paths_of(params)
  found = set()
  for pattern in patterns:
    try:
      hits = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error as error:
      raise UserError(f"frozen holds {pattern!r}, which is no regular expression ({error})") from None
    if not hits:
      places = sorted({path.rsplit("/", 1)[0] for path in paths})
      close = difflib.get_close_matches(pattern, places, n=1, cutoff=0.0)
      hint = f"; there is {close[0] + '/.*'!r}" if close else ""
      raise UserError(f"frozen holds {pattern!r}, which matches no parameter{hint}")
    found |= hits
  if patterns and len(found) == len(paths):
    raise UserError(f"frozen {tuple(patterns)} matches every parameter; leave something to train")
  return frozenset(found)


def frozen_norms(params: Any, frozen: frozenset[str]) -> frozenset[str]:
  """Paths of the modules whose own parameters are all frozen: of these, BatchNorms keep their statistics."""
  own: dict[str, list[str]] = {}
  for path in paths_of(params):
    own.setdefault(path.rpartition("/")[0], []).append(path)
  return frozenset(module for module, paths in own.items() if frozen.issuperset(paths))


@contextlib.contextmanager
def keep_statistics(norms: frozenset[str]):
  """While this is open, the BatchNorms at these paths use and keep stored statistics, `train` or not."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if context.method_name == "__call__" and isinstance(module, BatchNorm | nn.BatchNorm):
      if "/".join(module.path) in norms:
        kwargs = {**kwargs, **_stored(module)}
    return call(*args, **kwargs)

  with never_scan(), nn.intercept_methods(intercept):
    yield


def _stored(module: nn.Module) -> dict[str, bool]:
  if isinstance(module, BatchNorm):
    return {"train": False}
  if module.use_running_average is not None:
    raise UserError(
      f"{'/'.join(module.path)} is frozen, but its use_running_average is a field;"
      " give it where the BatchNorm is called, or use jaxseg.layers.norm.BatchNorm"
    )
  return {"use_running_average": True}


def paths_of(params: Any) -> list[str]:
  """The path of every leaf, in the order of the tree."""
  return [path_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def path_of(path: tuple[Any, ...]) -> str:
  """A key path of `jax.tree_util` as "encoder/stage1/conv/kernel"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")
