"""A stage of an encoder: what comes before its blocks, and the blocks one after the other.

Each block is a program of its own, or equal ones are one loop.

XLA compiles every block of a stage anew, unless what it does is the same program to the bit. Equal
blocks can be one `lax.scan` over their stacked parameters, which is compiled once. What a scan keeps for
the backward pass is stacked too, though, and written to memory at every step: a SegNeXt-T moved 3.15 GB an
image so, and 1.77 without. With rematerialisation a block keeps its input only.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxseg.layers import spatial
from jaxseg.layers.drop_path import draw_factors
from jaxseg.layers.upsampled import batch_shards
from jaxseg.sharding import BATCH_AXES

Scan = Literal["auto", "on", "off"]
Part = Literal["all", "embed", "rest"]

# From so many equal blocks on, "auto" makes a loop of them, if they rematerialise.
_DEEP = 6
_STATISTICS = "batch_stats"
_never: contextvars.ContextVar[bool] = contextvars.ContextVar("never_scan", default=False)


class Stage(nn.Module, kw_only=True):
  """What the stages of MSCAN, MiT and CGNet share; each adds what lies before its blocks and after them.

  Where the rows of an image are spread over devices, a stage runs split as a whole or not at all.

  Attributes:
    block: makes a block, given `name` and, where there are any, `drop_path_rate`.
    num_blocks: how many.
    drop_path_rates: one for each block; () for blocks that have none.
    first: number of the first block, in its name.
    strides: of the stage's own embedding.
    reach: rows of a neighbour that a block reads.
    multiple: of which a device's rows must be one.
    remat: compute a block's intermediates again in the backward pass.
    scan: see `run_blocks`.
  """

  block: Callable[..., nn.Module]
  num_blocks: int
  drop_path_rates: tuple[float, ...] = ()
  first: int = 0
  strides: int = 2
  reach: int = 1
  multiple: int = 1
  remat: bool = False
  scan: Scan = "auto"
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"] | tuple[Array, ...], *, train: bool, part: Part = "all"
  ) -> Any:
    """The stage's result; of the part "embed" alone, or of the "rest", which takes what "embed" gives.

    Whether it takes several maps, as if joined, is the embedding's matter.
    """
    rows = jax.tree.leaves(x)[0].shape[1]
    height = rows if part == "rest" else -(-rows // self.strides)
    with spatial.stage(height, reach=self.reach, multiple=self.multiple):
      embedded = x if part == "rest" else self.embed(jax.tree.map(spatial.split, x), train=train)
      if part == "embed":
        return embedded
      rates = self.drop_path_rates
      if train and any(rates) and self.has_rng("dropout"):
        rates = draw_factors(self.make_rng("dropout"), rates, embedded.shape[0])
      rates = [dict(drop_path_rate=rate) for rate in rates] or [{}] * self.num_blocks
      blocks = [self.block(**rate, name=f"block{self.first + i}") for i, rate in enumerate(rates)]
      y = run_blocks(blocks, embedded, train=train, remat=self.remat, scan=self.scan)
      return jax.tree.map(spatial.split, self.finish(embedded, y))

  def embed(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo d"]:
    """The map that the first block takes."""
    del train
    return x

  def finish(self, embedded: Float[Array, "b h w d"], y: Float[Array, "b h w d"]) -> Any:
    """The stage's result, from what the first block took and what the last gave."""
    del embedded
    return y


def run_blocks(
  blocks: Sequence[nn.Module],
  x: Float[Array, "b h w c"],
  *,
  train: bool,
  remat: bool = False,
  scan: Scan = "auto",
) -> Float[Array, "b _ _ _"]:
  """`x` through all blocks. Parameters lie where they lie without `scan` and `remat`, and so do statistics.

  Args:
    blocks: submodules of the calling module, `(x, *, train) → y`. Those that are equal but for
      `drop_path_rate`, and whose parameters have the same shapes, can be a loop.
    x: the map.
    train: handed on.
    remat: in the backward pass compute a block's intermediates again from its input.
    scan: make a loop of equal blocks: "on" from two, "off" never, "auto" from six if `remat`. In a loop
      single elements' dropout draws other numbers than out of it, with the same probabilities.
  """
  for run in _runs(blocks, x, scan, remat):
    if len(run) > 1:
      x = _scanned(run, x, train=train, remat=remat)
    else:
      call = functools.partial(_call, train=train)
      x = (nn.remat(call) if remat else call)(run[0], x)
  return x


def by_images(module: nn.Module, x: Float[Array, "b h w c"], *, train: bool, images: int) -> Any:
  """`module(x, train=train)`, so many of a device's images at a time; it keeps `x` alone for the derivative.

  What a module makes of one image stays in a TPU's vector memory, where the maps of a whole batch go
  through its main memory at every step. The price is a second forward pass in the derivative. A `Stage`
  embeds all images together and keeps what its first block takes: of one image after the other, the
  embedding's gradient would copy each.

  Args:
    module: submodule of the calling one, `(x, *, train) → map or maps`, in which no image sees another: a
      BatchNorm in training would.
    x: the batch. Where `images` does not divide a device's share it is taken whole.
    train: handed on.
    images: at a time on each device; 0 takes all.
  """
  at_once = images * batch_shards()
  count = x.shape[0] // at_once if at_once and x.shape[0] % at_once == 0 else 1
  if count == 1 or _never.get() or not _is_ready(module):
    return module(x, train=train)
  rest = {}
  if isinstance(module, Stage):
    x, rest = module(x, train=train, part="embed"), {"part": "rest"}
  variables, alone = dict(module.variables), module.clone(parent=None, name=None)
  key = module.make_rng("dropout") if module.has_rng("dropout") else None

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def run(variables, x, number):
    rngs = None if key is None else {"dropout": jax.random.fold_in(key, number)}
    return alone.apply(variables, x, train=train, rngs=rngs, **rest)

  def step(_, part):
    return None, run(variables, *part)

  # Part i is every count-th image from i on, so that each device has images of its own in each part.
  parts = jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
  _, found = lax.scan(step, None, (_on_devices(parts), jnp.arange(count)))
  return jax.tree.map(lambda y: jnp.moveaxis(_on_devices(y), 0, 1).reshape(-1, *y.shape[2:]), found)


def _on_devices(parts: Float[Array, "n b h w c"]) -> Float[Array, "n b h w c"]:
  """The images of each part spread over the devices as those of a batch are."""
  if not set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
    return parts
  rest = (PartitionSpec.UNCONSTRAINED,) * (parts.ndim - 2)
  return lax.with_sharding_constraint(parts, PartitionSpec(None, BATCH_AXES, *rest))


@contextlib.contextmanager
def never_scan() -> Iterator[None]:
  """Inside, no blocks are a loop: for those who tell modules apart by their paths."""
  token = _never.set(True)
  try:
    yield
  finally:
    _never.reset(token)


def _call(block: nn.Module, x: Array, *, train: bool) -> Array:
  return block(x, train=train)


def _runs(blocks, x, scan: Scan, remat: bool) -> list[list[nn.Module]]:
  """The blocks in groups: those of a loop together, every other one alone."""
  least = {"on": 2, "off": None, "auto": _DEEP if remat else None}[scan]
  if least is None or _never.get() or not all(map(_is_ready, blocks)):
    return [[block] for block in blocks]
  groups: list[list[nn.Module]] = []
  for block in blocks:
    if groups and _kind(groups[-1][0]) == _kind(block):
      groups[-1].append(block)
    else:
      groups.append([block])
  return [run for group in groups for run in ([group] if len(group) >= least else [[b] for b in group])]


def _is_ready(block: nn.Module) -> bool:
  """Whether the block has its parameters, and nothing but statistics is collected from inside of it."""
  wanted = ("params", "intermediates", "perturbations")
  return bool(block.variables.get("params")) and not any(map(block.is_mutable_collection, wanted))


def _kind(block: nn.Module) -> tuple[Any, Any]:
  """What has to be equal for two blocks to be one loop."""
  shapes = jax.tree.map(jnp.shape, block.variables)
  return _template(block, 0.0), jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))


def _template(block: nn.Module, rate: Any) -> nn.Module:
  """The block alone, without its place in the tree and with another drop-path rate."""
  fields = {"drop_path_rate": rate} if hasattr(block, "drop_path_rate") else {}
  return block.clone(parent=None, name=None, **fields)


def _scanned(blocks: Sequence[nn.Module], x: Array, *, train: bool, remat: bool) -> Array:
  variables = [dict(block.variables) for block in blocks]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables)
  keys = [block.make_rng("dropout") for block in blocks] if blocks[0].has_rng("dropout") else None
  rates = [getattr(block, "drop_path_rate", 0.0) for block in blocks]
  drawn = max(map(jnp.shape, rates), key=len)  # the shape of what the stage drew, () of mere rates
  drops = drawn or any(rates)
  rates = jnp.stack(
    [jnp.asarray(r, jnp.float32) if jnp.ndim(r) or not drawn else jnp.ones(drawn) for r in rates]
  )
  mutable = [_STATISTICS] if blocks[0].is_mutable_collection(_STATISTICS) else []

  def step(x, slices):
    variables, key, rate = slices
    block = _template(blocks[0], rate if drops else 0.0)
    rngs = None if key is None else {"dropout": key}
    y, changed = block.apply(variables, x, train=train, rngs=rngs, mutable=mutable)
    return y.astype(x.dtype), changed

  # Common subexpressions are not merged across a scan's steps, which is what `prevent_cse` is for.
  step = jax.checkpoint(step, prevent_cse=False) if remat else step
  keys = None if keys is None else jnp.stack(keys)
  x, changed = lax.scan(step, x, (stacked, keys, rates))
  for collection, tree in changed.items():
    for i, block in enumerate(blocks):
      for name, value in tree.items():
        block.put_variable(collection, name, jax.tree.map(lambda leaf, i=i: leaf[i], value))
  return x
