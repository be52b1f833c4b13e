"""LightHam, the decoder of SegNeXt (https://arxiv.org/abs/2209.08575, §3.2).

Written from the paper. Stages 2 to 4 meet at 1/8, a 1×1 squeezes them, a "hamburger"
(1×1, NMF, 1×1) adds global context, a 1×1 aligns, a 1×1 classifies. Global context
can be another one of the paper's Table 5, or none.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg import catalog
from jaxseg.catalog import CheckedModule
from jaxseg.errors import UserError
from jaxseg.layers.concat_conv import ConcatConv
from jaxseg.layers.context import CrissCross, ExpectationMaximization, NonLocal
from jaxseg.layers.conv import Conv, fan_out_normal
from jaxseg.layers.nmf import NMF, Gradient
from jaxseg.layers.norm import GroupNorm
from jaxseg.types import Features

_conv = partial(Conv, kernel_init=fan_out_normal())

Context = Literal["nmf", "nonlocal", "criss_cross", "ema", "none"]


class LightHam(CheckedModule):
  """Features → logits at the resolution of the first of `stages`.

  Attributes:
    num_classes: None returns the map before the classifier.
    stages: features to read, the one that sets the resolution first.
    channels: width of the squeezed and of the aligned map.
    ham_channels: width inside the hamburger and of its surroundings.
    middle: global context: NMF, or in its place non-local, criss-cross or EM attention, or nothing. As the
      parameters and multiplications of the paper's table say, the non-local block has convolutions of its
      own in place of the hamburger's first, and EM attention has none.
    rank: atoms of the NMF's, or bases of the EM's dictionary.
    heads: groups of channels for the NMF.
    over: NMF tokens are pixels ("space") or channels.
    train_steps: NMF updates while training.
    eval_steps: NMF updates in evaluation.
    inv_t: inverse temperature of the NMF.
    gradient: through all NMF updates ("full"), or only the last ("one_step").
    num_groups: of the GroupNorms.
    dropout_rate: whole channels are dropped before the classifier.
    align_corners: corner rule of the resize.
  """

  num_classes: int | None = None
  stages: tuple[str, ...] = ("stage2", "stage3", "stage4")
  channels: int = 256
  ham_channels: int = 256
  middle: Context = "nmf"
  rank: int = 16
  heads: int = 1
  over: Literal["space", "channels"] = "space"
  train_steps: int = 6
  eval_steps: int = 7
  inv_t: float = 1.0
  gradient: Gradient = "full"
  num_groups: int = 32
  dropout_rate: float = 0.1
  align_corners: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(self, features: Features, *, train: bool) -> Float[Array, "b h w k"]:
    missing = [stage for stage in self.stages if stage not in features]
    if missing:
      raise UserError(f"LightHam reads {missing}, but the encoder gives {sorted(features)}; set stages=")
    levels = [jnp.asarray(features[stage]) for stage in self.stages]
    squeeze = ConcatConv(
      self.ham_channels, align_corners=self.align_corners, dtype=self.dtype, name="squeeze"
    )
    x = nn.relu(self._norm("squeeze_norm")(squeeze(levels, levels[0].shape[1:3])))
    if self.middle != "none":
      y = _conv(self.ham_channels, use_bias=False, dtype=self.dtype, name="ham_out")(self._context(x, train))
      x = nn.relu(x + self._norm("ham_out_norm")(y))
    x = _conv(self.channels, use_bias=False, dtype=self.dtype, name="align")(x)
    x = nn.relu(self._norm("align_norm")(x))
    x = nn.Dropout(self.dropout_rate, broadcast_dims=(1, 2), deterministic=not train)(x)
    if self.num_classes is None:
      return x
    init = nn.initializers.normal(0.01)
    return Conv(self.num_classes, kernel_init=init, dtype=self.dtype, name="classifier")(x)

  def _norm(self, name: str) -> nn.Module:
    return GroupNorm(num_groups=self.num_groups, dtype=self.dtype, name=name)

  def _context(self, x: Array, train: bool) -> Array:
    """What goes between the squeezed map and `ham_out`."""
    if self.middle == "nonlocal":
      return NonLocal(dtype=self.dtype, name="nonlocal")(x)
    if self.middle == "ema":
      return ExpectationMaximization(self.rank, name="ema")(x, train=train)
    x = nn.relu(_conv(self.ham_channels, dtype=self.dtype, name="ham_in")(x))
    if self.middle == "criss_cross":
      return CrissCross(dtype=self.dtype, name="criss_cross")(x)
    fields = {name: getattr(self, name) for name in catalog.fields(NMF)}
    return NMF(**fields, name="nmf")(x, train=train)
