"""The loss of a config: every supervised map of a model, at the label's resolution, weighted and summed."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import suggestion
from jaxseg.errors import UserError
from jaxseg.losses import LOSSES
from jaxseg.ops.resize import resize_labels
from jaxseg.train.optimizer import Settings
from jaxseg.types import AnyArray, Label, Outputs

LossFn = Callable[[Outputs, Label], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]

# Keys that make_loss itself reads; every other one is a parameter of a loss.
_OWN_KEYS = ("name", "factors", "weights", "align_corners", "label_resize")
_LABEL_RESIZES = ("logits_up", "labels_nearest")


# Given by the model and the data, not by the loss's own keys.
_FROM_ELSEWHERE = ("align_corners", "multi_label")


def make_loss(loss: Settings, *, align_corners: bool = False, multi_label: bool = False) -> LossFn:
  """(outputs, labels) → (scalar, {map: its unweighted loss}), from `config.loss`.

  Keys: name, of `jaxseg.losses.LOSSES`, or a sum of them ("cross_entropy+dice") with their factors (one
  each; empty is 1); every keyword of these losses (normalize_by, class_weights, ignore_label,
  label_smoothing, thresh, gamma, ...), which goes to each loss of the sum that takes it; weights (map →
  its share of the sum over maps, {"logits": 1.0} by default); align_corners (of the bilinear resize
  from the decoder's resolution to the label's; None or absent takes the argument); label_resize
  ("logits_up": that resize, the default; "labels_nearest": the label is shrunk to each map's own
  resolution instead, as DeepLab v1 and v2 train).

  The function checks, when it is traced, that every map of the outputs has a weight and every
  weight a map: a decoder that nobody supervises is an error, not a silence.

  Args:
    loss: the settings.
    align_corners: the rule where the settings say nothing: `models.align_corners_of(model)`.
    multi_label: a pixel may have several classes or none, `model.multi_label`.

  Raises:
    UserError: unknown key or loss, a value that the loss refuses or that no loss of the sum takes.
  """
  weights = {"logits": 1.0, **dict(loss.get("weights") or {})}
  align_corners = bool(_or(loss.get("align_corners"), align_corners))
  function = _sum_of_losses(loss, align_corners, multi_label)
  label_resize = loss.get("label_resize") or _LABEL_RESIZES[0]
  if label_resize not in _LABEL_RESIZES:
    raise UserError(f"loss.label_resize is {label_resize!r}; {suggestion(str(label_resize), _LABEL_RESIZES)}")

  def loss_fn(outputs: Outputs, labels: Label) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    maps = _supervised(outputs)
    _check_weights(set(maps), set(weights))
    parts = {}
    for key, logits in sorted(maps.items()):
      target = labels
      if label_resize == "labels_nearest":
        target = resize_labels(labels, logits.shape[1:3], align_corners=align_corners)
      parts[key] = function(logits, target)
    total = sum((float(weights[key]) * part for key, part in parts.items()), jnp.zeros(()))
    return total, parts

  return loss_fn


@functools.cache
def loss_settings(name: str) -> Mapping[str, Any]:
  """Keyword → default of the loss called `name`.

  Raises:
    UserError: there is no such loss.
  """
  if name not in LOSSES:
    raise UserError(f"there is no loss called {name!r}; {suggestion(name, LOSSES)}")
  parameters = inspect.signature(LOSSES[name]).parameters.values()
  # The corner rule is the whole loss's, also that of the labels.
  keywords = (p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
  return {p.name: p.default for p in keywords if p.name not in _FROM_ELSEWHERE}


def takes_several(name: str) -> bool:
  """Whether the loss called `name` is for pixels of several classes, too."""
  return "multi_label" in inspect.signature(LOSSES[name]).parameters


def _sum_of_losses(
  loss: Settings, align_corners: bool, multi_label: bool
) -> Callable[[AnyArray, AnyArray], Float[Array, ""]]:
  """(logits, labels) → the losses of `loss.name`, each with its settings and its factor, summed."""
  names = [name.strip() for name in str(loss.get("name") or "cross_entropy").split("+")]
  taken = {name: loss_settings(name) for name in names}
  known = {key: default for name in LOSSES for key, default in loss_settings(name).items()}
  for key in loss:
    if key not in known and key not in _OWN_KEYS:
      raise UserError(f"loss has no key {key!r}; {suggestion(key, (*_OWN_KEYS, *known))}")
  factors = tuple(float(factor) for factor in loss.get("factors") or (1.0,) * len(names))
  if len(factors) != len(names) or not all(map(math.isfinite, factors)):
    raise UserError(f"loss.factors is {factors}, expected {len(names)} numbers, for {', '.join(names)}")
  several = {name: {"multi_label": True} if multi_label else {} for name in names}
  if multi_label and (single := [name for name in names if not takes_several(name)]):
    possible = ", ".join(filter(takes_several, LOSSES))
    raise UserError(
      f"loss.name {single[0]} gives each pixel exactly one class; with data.multi_label use {possible}, or a"
      " sum of them"
    )
  given = {key: _typed(key, loss.get(key), default) for key, default in known.items()}
  for key, value in given.items():
    # How a sum is averaged is part of most recipes, and dice and Lovász have means of their own.
    unused = not any(key in settings for settings in taken.values()) and key != "normalize_by"
    if unused and value != _typed(key, None, known[key]):
      owners = [name for name in LOSSES if key in loss_settings(name)]
      raise UserError(
        f"loss.{key} is {value!r}, but {' and '.join(names)} has no use for it; it belongs to"
        f" {', '.join(owners)}: change loss.name or leave loss.{key} at {known[key]!r}"
      )
  terms = [
    (
      factor,
      functools.partial(
        LOSSES[name],
        align_corners=align_corners,
        **{key: given[key] for key in taken[name]},
        **several[name],
      ),
    )
    for name, factor in zip(names, factors, strict=True)
  ]

  def function(logits: AnyArray, labels: AnyArray) -> Float[Array, ""]:
    if len(terms) == 1 and factors[0] == 1.0:
      return terms[0][1](logits, labels)
    return sum((factor * term(logits, labels) for factor, term in terms), jnp.zeros(()))

  # The losses check their settings when they are traced: once here, on one pixel.
  classes = len(given["class_weights"]) or 2
  jax.eval_shape(
    function,
    jax.ShapeDtypeStruct((1, 1, 1, classes), jnp.float32),
    jax.ShapeDtypeStruct((1, 1, 1), jnp.int32),
  )
  return function


def _typed(key: str, value: Any, default: Any) -> Any:
  """The value of a setting as the loss takes it: the default for None, an int for a float made one."""
  try:
    if default is None:
      return tuple(float(item) for item in (() if value is None else value))
    return type(default)(default if value is None or value == "" else value)
  except (TypeError, ValueError):
    kind = "a sequence of numbers" if default is None else f"a value like {default!r}"
    raise UserError(f"loss.{key} is {value!r}, expected {kind}") from None


def _supervised(outputs: Outputs) -> dict[str, AnyArray]:
  return {key: x for key, x in outputs.items() if key == "logits" or key.endswith("_logits")}


def _check_weights(maps: set[str], weights: set[str]) -> None:
  if maps == weights:
    return
  problems = []
  if missing := sorted(maps - weights):
    problems.append(f"the model gives {', '.join(missing)} but loss.weights has no weight for it")
  if unused := sorted(weights - maps):
    problems.append(f"loss.weights has {', '.join(unused)} but the model does not give it")
  raise UserError(
    "; ".join(problems) + f"; loss.weights must name exactly the model's maps: {', '.join(sorted(maps))}"
  )


def _or(value, default):
  return default if value is None else value
