"""Exact top-k accuracy of an image classifier over a split (encoders are pretrained as classifiers)."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.errors import UserError
from jaxseg.evaluation.inference import PredictFn, forward
from jaxseg.metrics.topk import topk_hits
from jaxseg.sharding import on_mesh, replicated, to_global
from jaxseg.types import Batch, Preprocess


@dataclasses.dataclass(frozen=True)
class ClassificationReport:
  """Attributes: `images` that had a label, and `hits`, {k: images with it among the k largest logits}."""

  images: int
  hits: Mapping[int, int]

  def accuracy(self, k: int = 1) -> float:
    """Share of the images that are hits at `k`, in [0, 1]; NaN when there was none."""
    return self.hits[k] / self.images if self.images else float("nan")

  def scalars(self) -> dict[str, float]:
    """{"top1": ..., "top5": ...}, for logs and for the choice of the best checkpoint."""
    return {f"top{k}": self.accuracy(k) for k in self.hits}


def evaluate_classifier(
  model: nn.Module | PredictFn,
  variables: Mapping[str, Any],
  batches: Iterable[Batch],
  *,
  preprocess: Preprocess,
  mesh: Mesh | None = None,
  top: Sequence[int] = (1, 5),
  progress: Callable[[int], None] | None = None,
) -> ClassificationReport:
  """Top-k over all of `batches`, from integer counts: no batch is dropped, no image counted twice.

  Args:
    model: a Linen module, or a function (variables, normalised image) → logits b k.
    variables: the model's.
    batches: {"image": uint8 b h w 3, "label": int b}; a batch is filled up with the label -1.
      With several processes, each gives the rows that `jaxseg.sharding.rows_to_read` says.
    preprocess: from uint8 to the model's input, applied on the device.
    mesh: where to run; None for the default device.
    top: the k.
    progress: called with the number of labelled images so far, of this process.

  Raises:
    UserError: there are no batches, or a k is less than 1.
  """
  make = _cached_step if isinstance(model, Hashable) else _make_step
  step = make(model, preprocess, mesh, tuple(top))
  if mesh is not None:
    variables = on_mesh(variables, mesh)
  total, pending, images = np.zeros(1 + len(top), np.int64), None, 0
  for batch in batches:
    counts = step(variables, {name: batch[name] for name in ("image", "label")})
    # The previous batch is fetched while this one is computed.
    if pending is not None:
      total += np.asarray(pending, np.int64)
    pending = counts
    images += int(np.sum(np.asarray(batch["label"]) >= 0))
    if progress is not None:
      progress(images)
  if pending is None:
    raise UserError("there are no batches to evaluate; check the split and its folder")
  total += np.asarray(pending, np.int64)
  return ClassificationReport(int(total[0]), {k: int(n) for k, n in zip(top, total[1:], strict=True)})


def _make_step(model, preprocess, mesh, top):
  apply = forward(model)

  def count(variables, batch):
    outputs = apply(variables, preprocess(jnp.asarray(batch["image"])))
    logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    if logits.ndim != 2:
      raise UserError(
        f"the model gives logits of shape {tuple(logits.shape)}, expected b k;"
        " a classifier is create_model(ENCODER, num_classes=...)"
      )
    return topk_hits(logits.astype(jnp.float32), batch["label"], top=top)

  if mesh is None:
    return jax.jit(count)
  compiled = jax.jit(count, out_shardings=replicated(mesh))

  def step(variables, batch):
    with jax.set_mesh(mesh):
      return compiled(variables, to_global(batch, mesh))

  return step


_cached_step = lru_cache(maxsize=4)(_make_step)
