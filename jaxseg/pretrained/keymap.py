"""Key maps: our parameter tree ↔ the names, shapes and axis orders of a published file.

A `Layout` is one family's weights in one published form. Its `publish` says where a leaf
of ours ("encoder/stage2/block0/local/kernel", below the collection) stands in the file;
both directions, loading and writing back, come from that one function. A new layout is one file
with that function, a detection function, and a line in `jaxseg/pretrained/__init__.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.records import Record
from jaxseg.pretrained.untrusted import some
from jaxseg.pretrained.weights import Weights

# Our leaf → PyTorch's, for the modules of `layers`.
LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "slope": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclasses.dataclass(frozen=True)
class Part:
  """Where a leaf stands when it is not a published tensor of its own, or has another rank there.

  Attributes:
    name: the published tensor.
    index: which of `count` equal slices along the published `axis` (fused key and value, packed q/k/v).
    ndim: published rank, where our Dense kernel is a 1×1 convolution there (4).
  """

  name: str
  index: int = 0
  count: int = 1
  axis: int = 0
  ndim: int | None = None


class Stored(NamedTuple):
  """A published tensor's shape and element type."""

  shape: Shape
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Detected:
  """What names and shapes tell: a name of `create_model` and the fields that differ from its defaults.

  `assumed` names those that no tensor shows ("encoder.output_stride"): the layout's defaults.
  """

  arch: str
  num_classes: int | None = None
  encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  aux_decoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scales: tuple[float, ...] | None = None
  multi_label: bool = False
  assumed: tuple[str, ...] = ()


def torch_to_jax(path: str, value: np.ndarray, shape: Shape) -> np.ndarray:
  """A published tensor in our axis order: OIHW → HWIO (grouped too), (out, in) → (in, out)."""
  if not path.endswith("kernel"):
    return value
  if value.ndim == 4 and len(shape) == 2 and value.shape[2:] == (1, 1):
    value = value[:, :, 0, 0]
  if value.ndim == 4:
    return value.transpose(2, 3, 1, 0)
  return value.T if value.ndim == 2 else value


def jax_to_torch(path: str, value: np.ndarray, ndim: int | None) -> np.ndarray:
  """The inverse of `torch_to_jax`; `ndim` 4 makes a 1×1 convolution of a Dense kernel."""
  if not path.endswith("kernel"):
    return value
  if value.ndim == 4:
    return value.transpose(3, 2, 0, 1)
  value = value.T if value.ndim == 2 else value
  return value[:, :, None, None] if ndim == 4 and value.ndim == 2 else value


@dataclasses.dataclass(frozen=True)
class Layout:
  """One family's weights in one published form.

  Attributes:
    family: "cgnet"; `archs` are the prefixes of the model names it serves.
    name: "mmseg", "official", ...: the argument of `to_torch`.
    publish: our leaf's path below the collection → its published name, a `Part`, or None
      where the layout has no place for it.
    pattern: fullmatches every name the layout may hold; by it a file is recognised.
    detect: shapes by name → what they tell. Names may be missing.
    unused: fullmatches names the layout carries and the model has no use for.
    record: number of classes → licence, source and statistics when nothing better is known.
    complete: adds what the original demands and our model lacks, to arrays about to be written.
    to_ours, to_published: axis orders.
  """

  family: str
  name: str
  archs: tuple[str, ...]
  publish: Callable[[str], str | Part | None]
  pattern: str
  detect: Callable[[Shapes], Detected]
  record: Callable[[int | None], Record]
  unused: str = r".*\.num_batches_tracked"
  complete: Callable[[dict[str, np.ndarray]], None] | None = None
  to_ours: Callable[[str, np.ndarray, Shape], np.ndarray] = torch_to_jax
  to_published: Callable[[str, np.ndarray, int | None], np.ndarray] = jax_to_torch

  def part(self, path: str) -> Part | None:
    """`publish`, always as a `Part`, or None where that is no name by which the layout is recognised."""
    place = self.publish(path)
    part = Part(place) if isinstance(place, str) else place
    return part if part is not None and re.fullmatch(self.pattern, part.name) else None

  def is_unused(self, name: str) -> bool:
    """Whether the layout carries `name` without a model needing it."""
    return re.fullmatch(self.unused, name) is not None


# Published models of others that no layout here holds: a name that only they have → what they are.
_OTHERS = {
  r"embedder\.embedder\.convolution\..*|resnet\.embedder\..*": "a ResNet of transformers",
  r"backbone\.\d+\.block\.\d+\..*": "a model of torchvision on MobileNetV3",
  r"backbone\.bn1_momentum": "a ResNet model of torchvision, converted with its settings as tensors",
}


def recognise(weights: Weights, layouts: Iterable[Layout], *, family: str | None = None) -> Layout:
  """The layout that knows most of the file's names; at least half of them must be known.

  Raises:
    UserError: no layout does; the message shows some names and the known layouts.
  """
  layouts = [layout for layout in layouts if family in (None, layout.family)]
  names = [*weights.tensors, *weights.opaque]
  share = {}
  for layout in layouts:
    known = re.compile(layout.pattern)
    share[layout] = sum(known.fullmatch(name) is not None for name in names) / max(len(names), 1)
  for pattern, what in _OTHERS.items():
    if any(re.fullmatch(pattern, name) for name in names):
      raise UserError(f"{weights.path} is {what}, which is not among the models here (jaxseg.list_models())")
  best = max(share, key=share.__getitem__, default=None)
  if best is None or share[best] < 0.5:
    known = ", ".join(f"{layout.family}/{layout.name}" for layout in layouts)
    raise UserError(
      f"{weights.path}: its {len(names)} names ({some(map(repr, names), 4)}) belong to no known layout;"
      f" known: {known}"
    )
  return best


@dataclasses.dataclass
class Differences:
  """Everything in which a file and a model disagree, reported together."""

  missing: list[str] = dataclasses.field(default_factory=list)
  unexpected: list[str] = dataclasses.field(default_factory=list)
  shapes: list[str] = dataclasses.field(default_factory=list)
  values: list[str] = dataclasses.field(default_factory=list)

  def lists(self) -> list[tuple[str, list[str]]]:
    """What is wrong, in words, and the names of which it is true."""
    lists = [("missing", self.missing), ("unexpected", self.unexpected), ("other shape", self.shapes)]
    return [*lists, ("unusable values", self.values)]

  def __bool__(self) -> bool:
    return any(names for _, names in self.lists())

  def text(self) -> str:
    """The lists, each cut to a readable length."""
    return "; ".join(f"{word} ({len(names)}): {some(names)}" for word, names in self.lists() if names)


def read_leaves(
  layout: Layout, weights: Weights, shapes: Shapes, *, optional: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], Differences, dict[str, Stored]]:
  """Our leaves from a published file.

  Args:
    layout: the file's.
    weights: the file.
    shapes: path below the collection → shape that the model wants.
    optional: paths that the file may lack (NMF bases, which the model can draw itself).

  Returns:
    leaves by path, float tensors in float32; the differences; and the names the layout
    carries without use.
  """
  leaves, differences, wanted = {}, Differences(), set()
  for path, shape in shapes.items():
    part = layout.part(path)
    if path in optional and (part is None or part.name not in weights.tensors):
      continue
    if part is None:
      differences.missing.append(f"{path} (the layout {layout.family}/{layout.name} has no name for it)")
      continue
    wanted.add(part.name)
    value = weights.tensors.get(part.name)
    if value is None:
      kind = weights.opaque.get(part.name)
      differences.missing.append(f"{part.name} (there is a {kind}, not a tensor)" if kind else part.name)
      continue
    if not jnp.issubdtype(value.dtype, jnp.floating):
      differences.values.append(f"{part.name} is {value.dtype}, expected floating-point numbers")
      continue
    ours = _slice(layout, path, part, value, shape)
    if ours is not None and (wrong := _unusable(path, ours)):
      differences.values.append(f"{part.name} has {wrong}")
    elif ours is None:
      want = layout.to_published(path, np.broadcast_to(np.float32(0), shape), part.ndim).shape
      want = tuple(n * (part.count if i == part.axis else 1) for i, n in enumerate(want))
      differences.shapes.append(f"{part.name} is {value.shape}, the model wants {want}")
    else:
      leaves[path] = ours
  unused = {}
  for name, value in weights.tensors.items():
    if name not in wanted and layout.is_unused(name):
      unused[name] = Stored(value.shape, value.dtype)
    elif name not in wanted:
      differences.unexpected.append(name)
  # What is no tensor and not wanted (a log, a number) is no reason to refuse the file.
  return leaves, differences, unused


def write_leaves(
  layout: Layout, leaves: Mapping[str, np.ndarray], stored: Mapping[str, Stored]
) -> dict[str, np.ndarray]:
  """The published tensors from our leaves: the inverse of `read_leaves`.

  Args:
    layout: the form to write.
    leaves: path below the collection → value.
    stored: shapes and element types of the file the leaves came from, if it had this
      layout; what it carried without use becomes zeros, and its order of names is kept.

  Raises:
    UserError: the layout has no name for some leaf.
  """
  parts: dict[str, list[tuple[Part, np.ndarray]]] = {}
  homeless = []
  for path, value in leaves.items():
    part = layout.part(path)
    if part is None:
      homeless.append(path)
      continue
    rank = len(stored[part.name].shape) if part.name in stored else part.ndim
    parts.setdefault(part.name, []).append((part, layout.to_published(path, np.asarray(value), rank)))
  if homeless:
    raise UserError(
      f"the layout {layout.family}/{layout.name} has no name for {some(homeless)}, or none that its pattern"
      " matches"
    )
  tensors = {}
  for name, pieces in parts.items():
    pieces.sort(key=lambda piece: piece[0].index)
    first = pieces[0][0]
    joined = np.concatenate([value for _, value in pieces], first.axis) if first.count > 1 else pieces[0][1]
    dtype = stored[name].dtype if name in stored else joined.dtype
    tensors[name] = np.ascontiguousarray(joined).astype(dtype)
    tensors[name] = tensors[name].reshape(joined.shape)  # ascontiguousarray makes a scalar 1-D
  for name, (shape, dtype) in stored.items():
    if name not in tensors:
      tensors[name] = np.zeros(shape, dtype)
  if layout.complete is not None:
    layout.complete(tensors)
  if not stored:
    _add_counters(layout, tensors)
    return tensors
  return {name: tensors[name] for name in [*stored, *(n for n in tensors if n not in stored)]}


def _slice(layout: Layout, path: str, part: Part, value: np.ndarray, shape: Shape) -> np.ndarray | None:
  """The leaf's slice of a published tensor in our axis order, or None where the shapes differ."""
  if part.count > 1:
    if value.ndim <= part.axis or value.shape[part.axis] % part.count:
      return None
    length = value.shape[part.axis] // part.count
    value = np.take(value, range(part.index * length, (part.index + 1) * length), part.axis)
  value = layout.to_ours(path, value, shape)
  if value.shape != shape:
    return None
  with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which is reported
    return np.array(value, np.float32)


def _unusable(path: str, value: np.ndarray) -> str | None:
  """What makes values useless as a parameter or a statistic, in words; None where nothing does."""
  if wrong := value.size - np.count_nonzero(np.isfinite(value)):
    return f"{wrong} values that are NaN or infinite"
  return "a negative variance" if path.endswith("/var") and value.size and value.min() < 0 else None


def _add_counters(layout: Layout, tensors: dict[str, np.ndarray]) -> None:
  """PyTorch's BatchNorms count their batches; a strict load asks for the number beside the statistics."""
  for name in list(tensors):
    counter = name.removesuffix("running_var") + "num_batches_tracked"
    if name.endswith(".running_var") and layout.is_unused(counter):
      tensors[counter] = np.zeros((), np.int64)
