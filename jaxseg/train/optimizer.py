"""Optimizers as PyTorch defines them, by parameter: learning rate, decay, schedule, and what stays frozen.

- "adam": Adam with L2, the decay is part of the gradient and goes through the moments
  (torch.optim.Adam, the official CGNet);
- "adamw": the decay is taken off the parameter, times its learning rate (torch.optim.AdamW);
- "sgd": L2 in the gradient, buffer = momentum · buffer + gradient, the rate outside of it
  (torch.optim.SGD; a rate inside the buffer, as in TF, is another optimizer when the rate changes),
  with Nesterov's look-ahead as a field.

Learning-rate schedules: pure functions of the step (of the update about to be made, from 0).

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

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxseg.catalog import suggestion
from jaxseg.errors import UserError
from jaxseg.layers.norm import BatchNorm
from jaxseg.layers.stage import never_scan

# A part of a config: a ml_collections.ConfigDict, which is no Mapping, or a plain dict.
Settings = Any

Schedule = Callable[[Int[Any, ""]], Float[Array, ""]]

_SCHEDULE_KEYS = (
  "name", "power", "end_value", "total_steps", "warmup", "warmup_steps", "warmup_ratio",
  "boundaries", "factor", "every",
)  # fmt: skip
_SCHEDULES = ("constant", "cosine", "poly", "step")
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
    if key not in _SCHEDULE_KEYS:
      raise UserError(f"schedule has no key {key!r}; {suggestion(key, _SCHEDULE_KEYS)}")
  name = schedule.get("name", "constant")
  if name not in _SCHEDULES:
    raise UserError(f"there is no schedule called {name!r}; {suggestion(str(name), _SCHEDULES)}")
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


_KEYS = (
  "name", "learning_rate", "weight_decay", "b1", "b2", "eps", "momentum", "nesterov",
  "groups", "names", "grad_clip", "schedule",
)  # fmt: skip
_OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclasses.dataclass(frozen=True)
class Group:
  """How one parameter is trained: the name its rule was matched with, and what the rule says."""

  name: str
  lr_mult: float = 1.0
  decay_mult: float = 1.0
  rule: str | None = None  # the regex that hit


def make_optimizer(
  optimizer: Settings, params: Any, *, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`, for parameters of this structure.

  Keys: name ("adam", "adamw", "sgd"); learning_rate; weight_decay, default 0; b1 0.9, b2 0.999,
  eps 1e-8; momentum 0.9, nesterov False; grad_clip (largest global norm, 0 for none); schedule (see
  `make_schedule`; none is a constant rate); groups and names (see `parameter_groups`).

  Args:
    optimizer: the settings.
    params: the parameters, or their shapes.
    frozen: regexes that fullmatch paths of parameters ("encoder/.*"): these are not updated, have no
      moments, and are no part of the norm that is clipped. Give the same to `make_step`.

  Raises:
    UserError: unknown key or name, no learning rate, a rule that is not (regex, lr_mult, decay_mult),
      a pattern that freezes nothing, or nothing left to train.
  """
  for key in optimizer:
    if key not in _KEYS:
      raise UserError(f"optimizer has no key {key!r}; {suggestion(key, _KEYS)}")
  name = optimizer.get("name", "adamw")
  if name not in _OPTIMIZERS:
    raise UserError(f"there is no optimizer called {name!r}; {suggestion(str(name), _OPTIMIZERS)}")
  if optimizer.get("learning_rate") is None:
    raise UserError("optimizer has no learning_rate; give the rate the schedule starts with, such as 1e-3")

  groups = parameter_groups(optimizer, params)
  decay = _number(optimizer, "weight_decay", 0.0)
  still = frozen_paths(params, frozen)
  # Where a parameter is frozen there is a hole, as optax.partition makes one in the gradients.
  hole = optax.MaskedNode()
  decays = _like(params, lambda path: hole if path in still else decay * groups[path].decay_mult)
  mults = _like(params, lambda path: hole if path in still else groups[path].lr_mult)

  clip = _number(optimizer, "grad_clip", 0.0)
  parts = [optax.clip_by_global_norm(clip)] if clip else []
  match name:
    case "adam" | "adamw":
      moments = _scale_by_adam(
        b1=_number(optimizer, "b1", 0.9),
        b2=_number(optimizer, "b2", 0.999),
        eps=_number(optimizer, "eps", 1e-8),
      )
    case "sgd":
      momentum, nesterov = _number(optimizer, "momentum", 0.9), bool(optimizer.get("nesterov"))
      if nesterov and not momentum:
        raise UserError("optimizer.nesterov is true with momentum 0, which has nothing to look ahead with")
      moments = optax.trace(decay=momentum, nesterov=nesterov) if momentum else optax.identity()
  parts += [moments, _add_decay(decays)] if name == "adamw" else [_add_decay(decays), moments]
  schedule, rate = dict(optimizer.get("schedule") or {}), float(optimizer["learning_rate"])
  # A rate of its own for each factor, since a schedule's end value is not multiplied (as in mmcv).
  rates = {mult: make_schedule(schedule, rate * mult) for mult in set(jax.tree.leaves(mults))}
  tx = optax.chain(*parts, _scale_by_rate(mults, rates))
  if not still:
    return tx
  labels = _like(params, lambda path: "frozen" if path in still else "trained")
  return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def parameter_groups(optimizer: Settings, params: Any) -> dict[str, Group]:
  """Parameter path ("encoder/stage1/conv/kernel") → its group, in the order of the tree.

  `optimizer.groups` holds (regex, lr_mult, decay_mult); the first whose regex is found in the
  parameter's name (`re.search`) decides, and a parameter that none hits has both at 1. The name is
  the path, or, when `optimizer.names` is a published layout ("mmseg"), what it is called there.

  Raises:
    UserError: a rule that is no triple, an invalid regex, or an unknown layout.
  """
  rules = []
  for rule in optimizer.get("groups") or ():
    try:
      pattern, lr_mult, decay_mult = rule
      rules.append((re.compile(pattern), float(lr_mult), float(decay_mult)))
    except (TypeError, ValueError, re.error) as error:
      raise UserError(
        f"optimizer.groups holds {rule!r}, expected (regex, lr_mult, decay_mult), such as ('norm', 1.0, 0.0)"
      ) from error
  layout = optimizer.get("names") or "jaxseg"
  names = None
  if layout != "jaxseg":
    from jaxseg.pretrained import published_names

    names = published_names(params, layout)
  groups = {}
  for path in paths_of(params):
    name = path if names is None else names[path]
    hit = next(((p, lr, decay) for p, lr, decay in rules if p.search(name)), None)
    groups[path] = Group(name) if hit is None else Group(name, hit[1], hit[2], hit[0].pattern)
  return groups


def _scale_by_adam(*, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """`optax.scale_by_adam` with exact bias corrections.

  In float32, 1 − 0.999^t is wrong by 1e-5 in the first steps, which is several times what PyTorch and
  we otherwise differ by after ten steps.
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros(), nu=zeros())

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(updates, state.nu, b2, 2)
    left1, left2 = (-jnp.expm1(count * math.log(b)) if b else jnp.ones(()) for b in (b1, b2))
    root = jnp.sqrt(left2)
    updates = jax.tree.map(lambda m, v: m / left1 / (jnp.sqrt(v) / root + eps), mu, nu)
    return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


def _add_decay(decays: Any) -> optax.GradientTransformation:
  def add(updates, params):
    if params is None:
      raise UserError(optax.NO_PARAMS_MSG)
    return jax.tree.map(lambda u, p, d: u + d * p if d else u, updates, params, decays)

  return optax.stateless(add) if any(jax.tree.leaves(decays)) else optax.identity()


def _scale_by_rate(mults: Any, rates: Mapping[float, Schedule]) -> optax.GradientTransformation:
  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

  def update(updates, state, params=None):
    del params
    now = {mult: rate(state.count) for mult, rate in rates.items()}
    updates = jax.tree.map(lambda u, mult: -now[mult] * u, updates, mults)
    return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _number(optimizer: Settings, key: str, default: float) -> float:
  value = optimizer.get(key)
  return default if value is None else float(value)


def _like(params: Any, value: Callable[[str], Any]) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: value(path_of(path)), params)
