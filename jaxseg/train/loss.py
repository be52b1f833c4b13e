"""The loss of a config: every supervised map of a model, at the label's resolution, weighted and summed."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.catalog import suggestion
from jaxseg.layers.resize import resize_logits
from jaxseg.losses import LOSSES
from jaxseg.train.schedule import Settings
from jaxseg.types import IGNORE_LABEL, AnyArray, Label, Outputs

LossFn = Callable[[Outputs, Label], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]

_KEYS = (
  "name", "normalize_by", "class_weights", "ignore_label", "label_smoothing", "weights", "align_corners",
)  # fmt: skip


def make_loss(loss: Settings, *, align_corners: bool = False) -> LossFn:
  """(outputs, labels) → (scalar, {map: its unweighted loss}), from `config.loss`.

  Keys: name ("cross_entropy"); normalize_by, class_weights, ignore_label, label_smoothing, as
  that loss takes them; weights (map → its share of the sum, {"logits": 1.0} by default);
  align_corners (of the bilinear resize from the decoder's resolution to the label's; None or absent
  takes the argument).

  The function checks, when it is traced, that every map of the outputs has a weight and every
  weight a map: a decoder that nobody supervises is an error, not a silence.

  Args:
    loss: the settings.
    align_corners: the rule where the settings say nothing: `models.align_corners_of(model)`.

  Raises:
    ValueError: unknown key or loss.
  """
  for key in loss:
    if key not in _KEYS:
      raise ValueError(f"loss has no key {key!r}; {suggestion(key, _KEYS)}")
  name = loss.get("name", "cross_entropy")
  if name not in LOSSES:
    raise ValueError(f"there is no loss called {name!r}; {suggestion(str(name), LOSSES)}")
  function = LOSSES[name]
  settings = dict(
    normalize_by=loss.get("normalize_by") or "valid",
    class_weights=tuple(loss.get("class_weights") or ()),
    ignore_label=_or(loss.get("ignore_label"), IGNORE_LABEL),
    label_smoothing=float(loss.get("label_smoothing") or 0.0),
  )
  weights = {"logits": 1.0, **dict(loss.get("weights") or {})}
  align_corners = bool(_or(loss.get("align_corners"), align_corners))

  def loss_fn(outputs: Outputs, labels: Label) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    maps = _supervised(outputs)
    _check_weights(set(maps), set(weights))
    parts = {
      key: function(_to_label(x, labels, align_corners), labels, **settings)
      for key, x in sorted(maps.items())
    }
    total = sum((float(weights[key]) * part for key, part in parts.items()), jnp.zeros(()))
    return total, parts

  return loss_fn


def _to_label(logits: AnyArray, labels: AnyArray, align_corners: bool) -> Array:
  return resize_logits(logits, labels.shape[1:3], align_corners=align_corners)


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
  raise ValueError(
    "; ".join(problems) + f"; loss.weights must name exactly the model's maps: {', '.join(sorted(maps))}"
  )


def _or(value, default):
  return default if value is None else value
