"""CGNet encoder (https://arxiv.org/abs/1811.08201).

Written from the paper; reference implementation wutianyiRosun/CGNet (MIT), whose
weights give the same logits (tests/pretrained/test_cgnet.py). Every ablation of the
paper is a field.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.layers import stage
from jaxseg.layers.activation import PReLUSlope
from jaxseg.layers.conv import Conv, DepthwiseConv
from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.pool import average_pool
from jaxseg.layers.stage import Scan
from jaxseg.types import Features, Image

# The reference's BatchNorm everywhere; He et al.'s normal by fan-in for every convolution.
_kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_norm = partial(BatchNorm, epsilon=1e-3)
_conv = partial(Conv, use_bias=False, kernel_init=_kaiming)
_channelwise = partial(DepthwiseConv, use_bias=False, kernel_init=_kaiming)

# One map, or several that count as one with their channels joined.
Maps = Float[Array, "b h w c"] | tuple[Float[Array, "b h w _"], ...]
Activation = Literal["prelu", "relu"]
Residual = Literal["global", "local", "none"]


class NormAct(nn.Module):
  """BatchNorm, then PReLU (or ReLU), of one map or of several, whose channels count as joined.

  Attributes:
    packed: for narrow maps at a high resolution, see `ops.packed_conv`.
  """

  activation: Activation = "prelu"
  packed: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Maps, *, train: bool) -> Maps:
    channels = sum(y.shape[-1] for y in jax.tree.leaves(x))
    slope = PReLUSlope(name="act")(channels) if self.activation == "prelu" else jnp.zeros(channels)
    return _norm(packed=self.packed, dtype=self.dtype, name="norm")(x, train=train, slope=slope)


class ConvNormAct(nn.Module):
  """Convolution without bias, BatchNorm, activation; `packed` as of `NormAct`."""

  features: int
  kernel_size: int = 3
  strides: int = 1
  activation: Activation = "prelu"
  packed: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Maps, *, train: bool) -> Float[Array, "b ho wo k"]:
    fields = dict(packed=self.packed, dtype=self.dtype)
    x = _conv(self.features, self.kernel_size, strides=self.strides, **fields, name="conv")(x)
    return NormAct(self.activation, **fields, name="norm_act")(x, train=train)


class GlobalContext(nn.Module):
  """f_glo: channel weights in (0, 1) from the image's mean feature, which refine the joint feature."""

  reduction: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    c = x.shape[-1]
    weight = x.mean((1, 2), dtype=jnp.float32)
    weight = nn.relu(nn.Dense(c // self.reduction, name="squeeze")(weight))
    weight = nn.sigmoid(nn.Dense(c, name="excite")(weight))
    return x * weight[:, None, None].astype(x.dtype)


class CGBlock(nn.Module):
  """Context-guided block: local and surrounding features, joined, refined by the global one.

  With `downsample` a strided 3×3 comes first (`packed` as of `NormAct`) and a 1×1 brings the joint feature
  back to `features`; otherwise a 1×1 halves the channels first and a residual is added.
  """

  features: int
  dilation: int
  reduction: int
  downsample: bool = False
  surround: bool = True
  global_context: bool = True
  pointwise: bool = False
  activation: Activation = "prelu"
  residual: Residual = "global"
  packed: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Maps, *, train: bool) -> Float[Array, "b ho wo k"]:
    width = self.features if self.downsample else self.features // 2
    y = ConvNormAct(
      width,
      kernel_size=3 if self.downsample else 1,
      strides=2 if self.downsample else 1,
      activation=self.activation,
      packed=self.packed and self.downsample,
      dtype=self.dtype,
      name="reduce_in",
    )(x, train=train)
    # The surrounding feature keeps its place without dilation when the context is switched off.
    rates = {"local": 1, "surround": self.dilation if self.surround else 1}
    joint = []
    for name, rate in rates.items():
      z = _channelwise(3, dilation=rate, dtype=self.dtype, name=name)(y)
      if self.pointwise:
        z = _conv(width, 1, dtype=self.dtype, name=f"{name}_pointwise")(z)
      joint.append(z)
    y = NormAct(self.activation, dtype=self.dtype, name="joint")(jnp.concatenate(joint, -1), train=train)
    if self.downsample:
      y = _conv(self.features, 1, dtype=self.dtype, name="reduce_out")(y)
    if self.residual == "local" and not self.downsample:
      y = x + y
    if self.global_context:
      y = GlobalContext(self.reduction, dtype=self.dtype, name="global")(y)
    if self.residual == "global" and not self.downsample:
      y = x + y
    return y


class Stage(stage.Stage):
  """A downsampling block and residual ones; returns the first and the last output.

  The fields are those of `layers.stage.Stage`.
  """

  def embed(self, x: Maps, *, train: bool) -> Float[Array, "b ho wo k"]:
    """The downsampling block."""
    return self.block(downsample=True, name="block0")(x, train=train)

  def finish(self, embedded: Float[Array, "b h w k"], y: Float[Array, "b h w k"]) -> tuple[Array, Array]:
    """The first and the last block's output."""
    return embedded, y


class CGNet(CheckedModule):
  """Three stages at strides 2, 4 and 8.

  `stage1` (35 channels), `stage2` (131) and `stage3` (256 by default) are what the
  reference feeds on: the stem joined with the shrunken image, and each further
  stage's first and last block joined (stage 2 with the image again).

  Attributes:
    widths: channels of the three stages.
    num_blocks: M and N, blocks of stages 2 and 3, the downsampling one included.
    dilations: rate of the surrounding context in stages 2 and 3.
    reductions: bottleneck of the global context in stages 2 and 3.
    surround: surrounding context; off, its branch is a second local one.
    global_context: the refinement f_glo.
    input_injection: the average-pooled image joins stages 1 and 2.
    activation: PReLU a channel, or ReLU.
    pointwise: a 1×1 convolution after each channel-wise one.
    residual: add the block's input after the refinement ("global"), before it ("local"), or not at all.
    remat: compute a block's intermediates again in the backward pass: memory for time.
    scan: run equal blocks as one loop, which compiles faster; see `layers.stage.run_blocks`.
    in_channels: of the image.
  """

  widths: tuple[int, int, int] = (32, 64, 128)
  num_blocks: tuple[int, int] = (3, 21)
  dilations: tuple[int, int] = (2, 4)
  reductions: tuple[int, int] = (8, 16)
  surround: bool = True
  global_context: bool = True
  input_injection: bool = True
  activation: Activation = "prelu"
  pointwise: bool = False
  residual: Residual = "global"
  remat: bool = False
  scan: Scan = "auto"
  dtype: Any = None
  in_channels: int = 3

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, fine to coarse."""
    return ("stage1", "stage2", "stage3")

  @nn.compact
  def __call__(self, image: Image, *, train: bool) -> Features:
    image = jnp.asarray(image, self.dtype)
    half = _halve(image)
    quarter = _halve(half)

    x = image
    stem = partial(ConvNormAct, self.widths[0], activation=self.activation, packed=True, dtype=self.dtype)
    for i in range(3):
      x = stem(strides=2 if i == 0 else 1, name=f"stem{i}")(x, train=train)
    # The order of the joined parts differs between the stages, as in the reference.
    stage1 = self._join("join1", [x], half, train)
    first, last = self._stage(2)(stage1, train=train)
    stage2 = self._join("join2", [last, first], quarter, train)
    first, last = self._stage(3)(stage2, train=train)
    stage3 = self._join("join3", [first, last], None, train)
    features = {"stage1": stage1, "stage2": stage2, "stage3": stage3}
    return {name: jnp.concatenate(parts, -1) for name, parts in features.items()}

  def _stage(self, number: int) -> Stage:
    i = number - 2
    block = partial(
      CGBlock,
      self.widths[number - 1],
      self.dilations[i],
      self.reductions[i],
      surround=self.surround,
      global_context=self.global_context,
      pointwise=self.pointwise,
      activation=self.activation,
      residual=self.residual,
      packed=number == 2,
      dtype=self.dtype,
    )
    return Stage(
      block=block,
      num_blocks=self.num_blocks[i] - 1,
      first=1,
      reach=self.dilations[i] if self.surround else 1,
      remat=self.remat,
      scan=self.scan,
      name=f"stage{number}",
    )

  def _join(self, name: str, parts: list[Array], injected: Array | None, train: bool) -> tuple[Array, ...]:
    """The parts, normalised as if joined: each goes on as it lies in memory."""
    if injected is not None and self.input_injection:
      parts = [*parts, injected]
    packed = name == "join1"
    return NormAct(self.activation, packed=packed, dtype=self.dtype, name=name)(tuple(parts), train=train)


def _halve(image: Array) -> Array:
  """3×3 average at stride 2; the zeros of the padding count, as in the reference."""
  return average_pool(image, size=3, stride=2, padding=((1, 1), (1, 1)))


cgnet_m3n21 = partial(CGNet)
