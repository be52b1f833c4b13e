"""Learning-rate schedules: pure functions of the step (of the update about to be made, from 0).

Three published ways to warm up:

- "mmcv" (the official SegFormer and SegNeXt repositories, mmseg 0.x): the decay runs from
  step 0 over `total_steps` T, and the warm-up over W steps is a factor on top of it:
  lr(i) = decay(i / T) · (1 − (1 − i/W)·(1 − ratio)) for i < W;
- "mmengine" (mmseg 1.x): a line from ratio·lr to lr over steps 0..W−1, then the decay over
  what is left: lr(i) = decay((i − W) / (T − W − 1)), which reaches its end at step T−1;
- "timm" (DeiT and the ImageNet recipes after it): a line from ratio·lr at step 0 to lr at
  step W, instead of the decay, which runs from step 0 all the same: lr(i) = decay(i / T) for i ≥ W.

timm changes the rate once an epoch: `every` is the steps of one, and the rate is that of the
epoch's first step.

Fractions are taken as (T − i) / T of integers, not as 1 − i/T: in float32 the latter is
wrong by half a percent at the last steps of 160,000.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxseg.catalog import suggestion
from jaxseg.errors import UserError

# A part of a config: a ml_collections.ConfigDict, which is no Mapping, or a plain dict.
Settings = Any

Schedule = Callable[[Int[Any, ""]], Float[Array, ""]]

_KEYS = (
  "name", "power", "end_value", "total_steps", "warmup", "warmup_steps", "warmup_ratio",
  "boundaries", "factor", "every",
)  # fmt: skip
_NAMES = ("constant", "cosine", "poly", "step")
WARMUPS = ("mmcv", "mmengine", "timm")


def make_schedule(schedule: Settings, learning_rate: float) -> Schedule:
  """Learning rate as a function of the step, from `config.optimizer.schedule` and the rate it starts with.

  Keys (those without a default must be given):
    name: "poly", "constant", "cosine" or "step".
    total_steps: T, for poly and cosine.
    power: exponent of poly, default 1.
    end_value: rate at which poly and cosine end, default 0; the same for every group, as in mmcv.
    boundaries, factor: "step" multiplies by `factor` (default 0.1) at each of these steps.
    warmup_steps: W, default 0; warmup_ratio: share of the rate at step 0, default 0;
    warmup: "mmcv" (default), "mmengine" or "timm", see the module.
    every: steps between changes of the rate, default 1.

  Raises:
    UserError: unknown key, name or value.
  """
  for key in schedule:
    if key not in _KEYS:
      raise UserError(f"schedule has no key {key!r}; {suggestion(key, _KEYS)}")
  name = schedule.get("name", "constant")
  if name not in _NAMES:
    raise UserError(f"there is no schedule called {name!r}; {suggestion(str(name), _NAMES)}")
  form = schedule.get("warmup", "mmcv")
  if form not in WARMUPS:
    raise UserError(f"schedule.warmup is {form!r}, expected 'mmcv', 'mmengine' or 'timm'")
  warmup = int(schedule.get("warmup_steps", 0) or 0)
  total = int(schedule.get("total_steps", 0) or 0)
  if name in ("poly", "cosine") and total <= warmup:
    raise UserError(f"schedule.total_steps is {total}, expected more than the {warmup} warm-up steps")
  ratio = float(schedule.get("warmup_ratio", 0.0) or 0.0)
  every = int(schedule.get("every", 1) or 1)
  if every < 1:
    raise UserError(f"schedule.every is {every}, expected at least 1 step")
  base = float(learning_rate)
  decay = _decay(schedule, name, base)

  def now(step):
    step = jnp.asarray(step, jnp.int32)
    return step if every == 1 else step // every * every

  if form in ("mmcv", "timm"):

    def rate(step):
      step = now(step)
      value = decay(step, jnp.maximum(total - step, 0) / max(total, 1))
      if not warmup:
        return value
      if form == "timm":
        line = ratio + (1.0 - ratio) * (jnp.minimum(step, warmup) / warmup)
        return jnp.where(step < warmup, base * _float(line), value)
      # The same factor as above, without a difference of nearly equal numbers at step 0.
      factor = ratio + (1.0 - ratio) * (jnp.minimum(step, warmup) / warmup)
      return value * _float(factor)

  else:

    def rate(step):
      step = now(step)
      length = max(total - warmup - 1, 1)
      value = decay(step, jnp.clip(total - 1 - step, 0, length) / length)
      if not warmup:
        return value
      line = ratio + (1.0 - ratio) * jnp.minimum(step, warmup - 1) / max(warmup - 1, 1)
      return jnp.where(step < warmup, base * _float(line if warmup > 1 else 1.0), value)

  return rate


def _decay(schedule: Settings, name: str, base: float):
  """(step, share of the run that is left, 1 → 0) → rate, without warm-up."""
  end = float(schedule.get("end_value", 0.0) or 0.0)
  match name:
    case "poly":
      power = float(schedule.get("power", 1.0))
      return lambda step, left: _float((base - end) * left**power + end)
    case "cosine":
      return lambda step, left: _float(end + (base - end) * 0.5 * (1.0 + jnp.cos(np.pi * (1.0 - left))))
    case "step":
      boundaries = tuple(int(b) for b in schedule.get("boundaries", ()))
      factor = float(schedule.get("factor", 0.1))
      return lambda step, left: _float(
        base * factor ** sum((step >= b).astype(jnp.int32) for b in boundaries)
      )
    case _:
      return lambda step, left: _float(base)


def _float(x) -> jax.Array:
  return jnp.asarray(x, jnp.float32)
