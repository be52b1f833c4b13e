"""Heads of DeepLab v1 (LargeFOV, MSc; https://arxiv.org/abs/1412.7062) and v2 on VGG16 (https://arxiv.org/abs/1606.00915).

VGG's fully-connected layers as convolutions: fc6 at a large rate, fc7, and the classifier fc8.
v1 has one such branch; v2's ASPP has four at different rates and sums their scores.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers.atrous import AtrousConv
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.layers.resize import resize
from jaxseg.types import Features


class LargeFOV(CheckedModule):
  """Features → logits at the coarsest stage's resolution.

  Attributes:
    num_classes: None returns the map before the classifiers.
    stage: feature to read; None takes the coarsest.
    rates: of fc6, one for each branch: (12,) is LargeFOV, (6, 12, 18, 24) ASPP-L, (2, 4, 8, 12) ASPP-S.
    width: of fc6 and fc7.
    side_stages: v1's MSc: a strided 3×3 and a 1×1 branch off each, joined before the classifier.
      The paper takes the image ("stage0", with the encoder's `with_image`) and four poolings.
    side_width: of the side branches.
    dropout_rate: of single elements after fc6 and fc7, and in the side branches.
    align_corners: corner rule of resizes, also that of the logits to the image: the poolings keep the
      corners.
  """

  num_classes: int | None = None
  stage: str | None = None
  rates: tuple[int, ...] = (12,)
  width: int = 1024
  side_stages: tuple[str, ...] = ()
  side_width: int = 128
  dropout_rate: float = 0.5
  align_corners: bool = True
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    self._check(features)
    x = jnp.asarray(features[self.stage or max(features)])
    sides = [self._side(jnp.asarray(features[s]), x.shape[1:3], s, train) for s in self.side_stages]
    maps = [self._branch(x, rate, self._suffix(i), train) for i, rate in enumerate(self.rates)]
    if self.num_classes is None:
      return jnp.concatenate([*maps, *sides], -1)
    logits = 0.0
    for i, branch in enumerate(maps):
      init = nn.initializers.normal(0.01)
      classifier = Conv(
        self.num_classes, kernel_init=init, dtype=self.dtype, name=f"classifier{self._suffix(i)}"
      )
      logits = logits + classifier(jnp.concatenate([branch, *sides], -1) if sides else branch)
    return logits

  def _suffix(self, branch: int) -> str:
    return str(branch) if len(self.rates) > 1 else ""

  def _branch(self, x: Array, rate: int, suffix: str, train: bool) -> Array:
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    x = drop(nn.relu(AtrousConv(self.width, rate, dtype=self.dtype, name=f"fc6{suffix}")(x)))
    fc7 = Conv(self.width, kernel_init=fan_out_normal(), dtype=self.dtype, name=f"fc7{suffix}")
    return drop(nn.relu(fc7(x)))

  def _side(self, x: Array, size: tuple[int, int], stage: str, train: bool) -> Array:
    """A side branch, strided to the main map's resolution."""
    drop = nn.Dropout(self.dropout_rate, deterministic=not train)
    strides = tuple(max(round(n / m), 1) for n, m in zip(x.shape[1:3], size, strict=True))
    conv = partial(Conv, self.side_width, kernel_init=fan_out_normal(), dtype=self.dtype)
    x = drop(nn.relu(conv(3, strides, name=f"side_{stage}_conv0")(x)))
    x = drop(nn.relu(conv(name=f"side_{stage}_conv1")(x)))
    return resize(x, size, align_corners=self.align_corners)

  def _check(self, features: Features) -> None:
    missing = [s for s in self.side_stages if s not in features]
    if missing:
      hint = "; set the encoder's with_image=True" if "stage0" in missing else "; set side_stages="
      raise UserError(f"LargeFOV reads {missing}, but the encoder gives {sorted(features)}{hint}")
    if self.side_stages and len(self.rates) != 1:
      raise UserError(
        f"side_stages={self.side_stages} go with one branch, but rates={self.rates}; give one rate"
      )
