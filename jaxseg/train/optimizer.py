"""Optimizers as PyTorch defines them, with learning rate and weight decay by parameter.

- "adam": Adam with L2, the decay is part of the gradient and goes through the moments
  (torch.optim.Adam, the official CGNet);
- "adamw": the decay is taken off the parameter, times its learning rate (torch.optim.AdamW);
- "sgd": L2 in the gradient, buffer = momentum · buffer + gradient, the rate outside of it
  (torch.optim.SGD; a rate inside the buffer, as in TF, is another optimizer when the rate changes),
  with Nesterov's look-ahead as a field.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.catalog import suggestion
from jaxseg.errors import UserError
from jaxseg.train.frozen import frozen_paths, path_of, paths_of
from jaxseg.train.schedule import Schedule, Settings, make_schedule

_KEYS = (
  "name", "learning_rate", "weight_decay", "b1", "b2", "eps", "momentum", "nesterov",
  "groups", "names", "grad_clip", "schedule",
)  # fmt: skip
_NAMES = ("adam", "adamw", "sgd")


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
  if name not in _NAMES:
    raise UserError(f"there is no optimizer called {name!r}; {suggestion(str(name), _NAMES)}")
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
