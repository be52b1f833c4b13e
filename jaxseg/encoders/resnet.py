"""ResNet with bottlenecks (https://arxiv.org/abs/1512.03385), dilated as the DeepLab papers do.

Written from the papers; what published implementations do differently is a field. The
stems: "v1" is Caffe's (DeepLab v2), "v1b" torchvision's, "v1c" mmsegmentation's, "beta"
TensorFlow DeepLab's.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers import spatial
from jaxseg.layers.atrous import ConvNorm, check_output_stride
from jaxseg.layers.pool import max_pool
from jaxseg.layers.stage import Scan, run_blocks
from jaxseg.types import AnyArray, Features, Image


class Stem(NamedTuple):
  """How a published ResNet begins, and where its stages stride.

  Attributes:
    widths: of the 3×3 convolutions, the first strided; () is one 7×7 to the base width.
    ceil_pool: the 3×3 max pool keeps a last, partial window.
    stride_on: the 1×1 ("reduce") or 3×3 ("spatial") of the strided unit.
    last_unit: the last unit of stages 1 to 3 strides instead of the first of stages 2 to 4.
  """

  widths: tuple[int, ...] = ()
  ceil_pool: bool = False
  stride_on: str = "spatial"
  last_unit: bool = False


STEMS = {
  "v1": Stem(ceil_pool=True, stride_on="reduce"),
  "v1b": Stem(),
  "v1c": Stem((32, 32, 64)),
  "beta": Stem((64, 64, 128), last_unit=True),
}


class Unit(NamedTuple):
  """Stride and rate of one bottleneck."""

  stride: int
  rate: int


class Bottleneck(nn.Module):
  """1×1 reduce, 3×3, 1×1 expand to four times the width, and the shortcut.

  The last BatchNorm's scale starts at zero, so that the block starts as its shortcut
  (https://arxiv.org/abs/1706.02677, mmsegmentation). With ones, the gradient of a fresh network in float32
  is off by per cent, and so would be every comparison of two runs.
  """

  width: int
  unit: Unit
  stride_on: str
  norm_epsilon: float = 1e-5
  norm_momentum: float = 0.1
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b ho wo k"]:
    conv = partial(ConvNorm, epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)
    stride, rate = self.unit
    on_reduce = stride if self.stride_on == "reduce" else 1
    y = conv(self.width, strides=on_reduce, name="reduce")(x, train=train)
    y = conv(self.width, 3, stride // on_reduce, rate, name="spatial")(y, train=train)
    zeros = nn.initializers.zeros_init()
    y = conv(4 * self.width, activation="none", scale_init=zeros, name="expand")(y, train=train)
    if x.shape[-1] != 4 * self.width:
      shortcut = conv(4 * self.width, strides=stride, activation="none", name="shortcut")
      x = shortcut(x, train=train)
    elif stride > 1:
      x = spatial.windowed(lambda x, _: x[:, ::stride, ::stride], x, (), size=1, stride=stride)
    return nn.relu(x + y)


class ResNet(CheckedModule):
  """Four stages of bottlenecks at strides 4, 8, 16 and 32, or as `output_stride` allows.

  Attributes:
    stage_sizes: units of each stage.
    width: channels inside the bottlenecks of the first stage.
    stem: "v1", "v1b", "v1c" or "beta": see `STEMS`. With "beta" a feature is taken before the unit that
      strides.
    output_stride: 8, 16 or 32; where a stage may not stride its rate doubles instead.
    multi_grid: rates of the last stage's units; () leaves them alike.
    multi_grid_times_rate: they multiply the stage's rate (the paper), or stand for it (mmsegmentation).
    contract_dilation: the first unit of a stage that may not stride keeps the rate before it (torchvision,
      mmsegmentation); without effect under multi_grid.
    frozen_norm: BatchNorm uses its stored statistics in training too (DeepLab v2).
    norm_epsilon, norm_momentum: of the BatchNorms; the momentum is the weight of the new statistic.
    remat: compute a block's intermediates again in the backward pass: memory for time.
    scan: run equal blocks as one loop, which compiles faster; see `layers.stage.run_blocks`.
    in_channels: of the image.
  """

  stage_sizes: tuple[int, int, int, int] = (3, 4, 6, 3)
  width: int = 64
  stem: Literal["v1", "v1b", "v1c", "beta"] = "v1b"
  output_stride: int = 32
  multi_grid: tuple[int, ...] = ()
  multi_grid_times_rate: bool = True
  contract_dilation: bool = False
  frozen_norm: bool = False
  norm_epsilon: float = 1e-5
  norm_momentum: float = 0.1
  remat: bool = False
  scan: Scan = "auto"
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3", "stage4")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    self._check()
    train = train and not self.frozen_norm
    rule = STEMS[self.stem]
    fields = dict(dtype=self.dtype, norm_epsilon=self.norm_epsilon, norm_momentum=self.norm_momentum)
    x = stem_pool(self._stem(jnp.asarray(image, self.dtype), rule, train), ceil=rule.ceil_pool)
    features = {}
    for i, units in enumerate(self.units()):
      blocks = [
        Bottleneck(self.width * 2**i, unit, rule.stride_on, **fields, name=f"stage{i + 1}_block{n}")
        for n, unit in enumerate(units)
      ]
      run = partial(run_blocks, train=train, remat=self.remat, scan=self.scan)
      if rule.last_unit and units[-1].stride > 1:
        x = features[f"stage{i + 1}"] = run(blocks[:-1], x)
        blocks = blocks[-1:]
      x = run(blocks, x)
      features.setdefault(f"stage{i + 1}", x)
    return features

  def units(self) -> tuple[tuple[Unit, ...], ...]:
    """Stride and rate of every bottleneck, by stage."""
    strides = unit_strides(self.stage_sizes, last_unit=STEMS[self.stem].last_unit)
    stride, rate, stages = 4, 1, []
    for wanted in strides:
      units = []
      for step in wanted:
        before = rate
        if step > 1 and stride >= self.output_stride:
          rate, step = rate * step, 1
          # A striding last unit ends its stage: it still has the stage's own rate.
          early = self.contract_dilation or STEMS[self.stem].last_unit
          units.append(Unit(1, before if early else rate))
        else:
          stride *= step
          units.append(Unit(step, before))
      stages.append(tuple(units))
    if self.multi_grid:
      times = rate if self.multi_grid_times_rate else 1
      last = zip(stages[-1], self.multi_grid, strict=True)
      stages[-1] = tuple(Unit(unit.stride, times * grid) for unit, grid in last)
    return tuple(stages)

  def _stem(self, x: Array, rule: Stem, train: bool) -> Array:
    conv = partial(ConvNorm, epsilon=self.norm_epsilon, momentum=self.norm_momentum, dtype=self.dtype)
    if not rule.widths:
      return conv(self.width, 7, 2, name="stem")(x, train=train)
    for i, width in enumerate(rule.widths):
      x = conv(width * self.width // 64, 3, 1 if i else 2, name=f"stem{i}")(x, train=train)
    return x

  def _check(self) -> None:
    check_output_stride("ResNet", self.output_stride)
    if self.multi_grid and len(self.multi_grid) != self.stage_sizes[-1]:
      raise UserError(
        f"multi_grid={self.multi_grid} has {len(self.multi_grid)} rates, but the last stage"
        f" {self.stage_sizes[-1]} units; give a rate for each, or () for none"
      )


def unit_strides(stage_sizes: Sequence[int], *, last_unit: bool) -> tuple[tuple[int, ...], ...]:
  """Stride of every unit of an undilated ResNet after its stem's 4."""
  if last_unit:
    return tuple((1,) * (n - 1) + (2 if i < 3 else 1,) for i, n in enumerate(stage_sizes))
  return tuple((2 if i else 1,) + (1,) * (n - 1) for i, n in enumerate(stage_sizes))


def stem_pool(x: Float[AnyArray, "b h w c"], *, ceil: bool = False) -> Float[Array, "b ho wo c"]:
  """3×3 at stride 2 with one pixel around; `ceil` adds a row and column for what an even size leaves over."""
  rows, columns = ((1, 1 + (ceil and n % 2 == 0)) for n in x.shape[1:3])
  return max_pool(x, size=3, stride=2, padding=(rows, columns))


resnet50 = partial(ResNet)
resnet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3))
