"""A model under a test-time rule: batches of pictures → label maps or scores at their own size."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxseg.errors import UserError
from jaxseg.evaluation import merge, views
from jaxseg.evaluation.ahead import AheadOfTime, Waiting, shapes_on_mesh
from jaxseg.evaluation.class_map import ClassMap, mapped, mapped_terms
from jaxseg.evaluation.counts import Counts, confusion_counts, count_all, terms_for
from jaxseg.evaluation.decision import threshold_of
from jaxseg.evaluation.inference import PredictFn, forward, label_map
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.windows import mirrored, slide_logits
from jaxseg.models import align_corners_of
from jaxseg.sharding import BATCH_AXES, batch_sharding, replicated, to_global
from jaxseg.types import IGNORE_LABEL, AnyArray, Batch, Preprocess

# Windows that go through the network at once on one device.
_WINDOWS = 8


class Predictor:
  """The network compiled once for each canvas, what follows once for each canvas and label size.

  Batches are those of `views.collate`, or of pictures of one size ({"image": uint8 b h w 3,
  and perhaps "label"}), which are brought into that form.

  Args:
    model: a Linen module, or a function (variables, normalised image) → outputs or logits.
    rule: how a picture reaches the network.
    preprocess: from uint8 to the model's input.
    mesh: where to run; None for the default device.
    spread: under a mesh, whether a batch is spread over it; otherwise every device does all of it.
    align_corners: of every resize of logits; None takes the decoder's own.
    class_map: of the counts, whose labels are then other classes than the model's.
  """

  def __init__(
    self,
    model: nn.Module | PredictFn,
    *,
    rule: InferenceRule,
    preprocess: Preprocess,
    mesh: Mesh | None = None,
    spread: bool = True,
    align_corners: bool | None = None,
    class_map: ClassMap | None = None,
  ):
    self._class_map = class_map
    self._threshold = threshold = threshold_of(model, rule.threshold)
    self._terms_of = terms_for(threshold) if class_map is None else mapped_terms(class_map)
    self._apply, self._rule, self._preprocess = forward(model), rule, preprocess
    self._mesh, self._spread = mesh, mesh is not None and spread
    self._align_corners = align_corners_of(model, given=align_corners)
    self._shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES])) if self._spread else 1
    self._view = AheadOfTime(self._jit(self._view_logits), mesh=mesh)
    self._labels = self._jit(partial(merge.merge_labels, threshold=threshold), static=("size", "images"))
    self._scores = self._jit(partial(merge.merge_scores, threshold=threshold), static=("size", "images"))
    self._count = self._jit(self._counts, static=("images", "num_classes", "ignore_label"), whole=True)
    self._count_all = self._jit(
      self._all_counts, static=("images", "num_classes", "ignore_label"), whole=True
    )
    # Of views at their own full size only the sum is kept.
    self._sums = rule.mode == "slide" and len(rule.scales) * (1 + rule.flip) > 1
    self._add = self._jit(
      partial(merge.add_view, threshold=threshold), static=("size", "images"), donate=("total",)
    )
    self._labels_of_sum = self._jit(partial(merge.labels_of_sum, threshold=threshold), static=("views",))
    self._scores_of_sum = self._jit(merge.scores_of_sum, static=("views",))
    self._count_of_sum = self._jit(
      self._counts_of_sum, static=("views", "num_classes", "ignore_label"), whole=True
    )
    self._count_all_of_sum = self._jit(
      self._all_counts_of_sum, static=("views", "num_classes", "ignore_label"), whole=True
    )

  def compile_ahead(
    self,
    variables: Mapping[str, Any],
    keys: Sequence[tuple[tuple[int, int], ...]],
    batch_size: int,
    *,
    waiting: Waiting | None = None,
  ) -> None:
    """Starts to compile the network for batches of `batch_size` (of all processes) of these `rule.key`s.

    `waiting` is called with (number, how many) when a batch has to wait for a compilation.
    """
    calls = []
    for canvas in dict.fromkeys(canvas for key in keys for canvas in key):
      view = {
        "image": jax.ShapeDtypeStruct((batch_size, *canvas, self._preprocess.channels), np.uint8),
        "size": jax.ShapeDtypeStruct((batch_size, 2), np.int32),
        "flipped": jax.ShapeDtypeStruct((batch_size,), np.bool_),
      }
      if self._spread:
        view = shapes_on_mesh(view, self._mesh)
      calls.append((variables, view))
    self._view.waiting = waiting
    self._view.compile_ahead(calls)

  def count(
    self, variables: Mapping[str, Any], batch: Batch, *, num_classes: int, ignore_label: int = IGNORE_LABEL
  ) -> Int[Array, "k k"] | Int[Array, "k 2 2"]:
    """Confusion matrix int32 [truth, prediction] over the batch of all processes."""
    batch = self._prepared(batch)
    settings = dict(num_classes=num_classes, ignore_label=ignore_label)
    labels = self._place({"label": batch["label"]})["label"]
    if self._sums:
      total, count = self._sum(variables, batch)
      with self._on_mesh():
        return self._count_of_sum(total, labels, views=count, **settings)
    logits, ways, images = self._parts(variables, batch)
    with self._on_mesh():
      return self._count(logits, ways, labels, images=images, **settings)

  def count_all(
    self, variables: Mapping[str, Any], batch: Batch, *, num_classes: int, ignore_label: int = IGNORE_LABEL
  ) -> Counts:
    """Everything that is counted over the batch of all processes."""
    batch = self._prepared(batch)
    settings = dict(num_classes=num_classes, ignore_label=ignore_label)
    placed = self._place({"label": batch["label"], "size": batch["size"]})
    labels, sizes = placed["label"], placed["size"]
    if self._sums:
      total, count = self._sum(variables, batch)
      with self._on_mesh():
        return self._count_all_of_sum(total, labels, sizes, views=count, **settings)
    logits, ways, images = self._parts(variables, batch)
    with self._on_mesh():
      return self._count_all(logits, ways, labels, sizes, images=images, **settings)

  def labels(self, variables: Mapping[str, Any], batch: Batch) -> Int[Array, "b _ _"]:
    """The class of every pixel; each row's own part is the first rows and columns, as many as its size."""
    batch = self._prepared(batch)
    if self._sums:
      total, count = self._sum(variables, batch)
      with self._on_mesh():
        return self._labels_of_sum(total, views=count)
    return self._full_size(self._labels, variables, batch)

  def scores(self, variables: Mapping[str, Any], batch: Batch) -> Float[Array, "b _ _ k"]:
    """Log-probabilities of every pixel, placed as in `labels`."""
    batch = self._prepared(batch)
    if self._sums:
      total, views = self._sum(variables, batch)
      with self._on_mesh():
        return self._scores_of_sum(total, views=views)
    return self._full_size(self._scores, variables, batch)

  def _full_size(self, function, variables, batch):
    logits, ways, images = self._parts(variables, batch)
    with self._on_mesh():
      return function(logits, ways, size=batch["label"].shape[1:], images=images)

  def _sum(self, variables, batch):
    """(the views' softmaxes at the result's size, added up, how many views there are)."""
    total, views = None, 0
    for logits, way in self._views(variables, batch):
      with self._on_mesh():
        total = self._add(total, logits, way, size=batch["label"].shape[1:], images=self._images(logits))
      views += 1
      del logits, way  # or they would stay while the next view is made
    return total, views

  def _prepared(self, batch: Batch) -> Batch:
    return batch if "view0" in batch else views.collate_batch(self._rule, batch)

  def _parts(self, variables, batch):
    """The logits of each view, their ways back, and the images that a device holds."""
    logits, ways = zip(*self._views(variables, batch), strict=True)
    return logits, ways, self._images(logits[0])

  def _images(self, logits) -> int:
    return -(-logits.shape[0] // self._shards)

  def _views(self, variables, batch):
    """(logits, way back) of one view after the other."""
    for i in range(len(self._rule.scales)):
      view = self._place({"image": batch[f"view{i}"], "size": batch[f"view{i}_size"]})
      for flipped in (False, True)[: 1 + self._rule.flip]:
        flags = self._place({"flipped": np.full(len(batch["size"]), flipped)})
        with self._on_mesh():
          logits = self._view(variables, view | flags)
        # Made while the device computes.
        way = views.ways_back(
          self._rule,
          batch,
          i,
          tuple(logits.shape[1:3]),
          flipped=flipped,
          align_corners=self._align_corners,
        )
        way = None if way is None else self._place(way)
        yield logits, way
        del logits, way

  def _view_logits(self, variables, view):
    """Logits of one view: the decoder's map of the whole canvas, or every pixel's by sliding windows."""
    rule, size = self._rule, view["size"]
    image = self._preprocess(jnp.asarray(view["image"]))
    row, column = (jnp.arange(side) for side in image.shape[1:3])
    inside = (row < size[:, :1])[:, :, None] & (column < size[:, 1:])[:, None, :]
    image = jnp.where(inside[..., None], image, 0.0)
    if rule.flip:
      image = jnp.where(view["flipped"][:, None, None, None], mirrored(image, size[:, 1]), image)
    network = lambda image: _logits(self._apply(variables, image))  # noqa: E731
    if rule.mode == "whole":
      return network(image)
    multiple = rule.multiple if rule.multiple_rule == "pad" else 0
    logits = slide_logits(
      network,
      image,
      -(-size // multiple) * multiple if multiple else size,
      crop_size=rule.crop_size,
      stride=rule.stride,
      windows=max(1, _WINDOWS * self._shards // len(image)),
      align_corners=self._align_corners,
    )
    if rule.flip:
      logits = jnp.where(view["flipped"][:, None, None, None], mirrored(logits, size[:, 1]), logits)
    return logits

  def _counts(self, logits, ways, labels, *, images, **settings):
    size = labels.shape[1:]
    pred = merge.merge_labels(logits, ways, size, images=images, threshold=self._threshold)
    return self._confusion(pred, labels, **settings)

  def _counts_of_sum(self, total, labels, *, views, **settings):
    return self._confusion(
      merge.labels_of_sum(total, views=views, threshold=self._threshold), labels, **settings
    )

  def _confusion(self, pred, labels, **settings):
    return confusion_counts(
      mapped(pred, self._class_map), labels, multi_label=self._threshold is not None, **settings
    )

  def _all_counts(self, logits, ways, labels, sizes, *, images, **settings):
    how = dict(terms_of=self._terms_of, threshold=self._threshold)
    terms = merge.merge_terms(logits, ways, labels, images=images, **how)
    return count_all(terms, labels, sizes=sizes, multi_label=self._threshold is not None, **settings)

  def _all_counts_of_sum(self, total, labels, sizes, *, views, **settings):
    how = dict(terms_of=self._terms_of, threshold=self._threshold)
    terms = merge.terms_of_sum(total, labels, views=views, **how)
    return count_all(terms, labels, sizes=sizes, multi_label=self._threshold is not None, **settings)

  def _jit(
    self, function, *, static: tuple[str, ...] = (), donate: tuple[str, ...] = (), whole: bool = False
  ):
    names = dict(static_argnames=static, donate_argnames=donate)
    if self._mesh is None:
      return jax.jit(function, **names)
    # Everything comes as it is laid out already.
    out = replicated(self._mesh) if whole or not self._spread else batch_sharding(self._mesh)
    return jax.jit(function, **names, out_shardings=out)

  def _place(self, arrays: dict[str, AnyArray]) -> dict[str, AnyArray]:
    return to_global(arrays, self._mesh) if self._spread else arrays

  def _on_mesh(self):
    return jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext()


def make_predict(
  model: nn.Module | PredictFn,
  *,
  preprocess: Preprocess,
  rule: InferenceRule = InferenceRule(),  # noqa: B008
  mesh: Mesh | None = None,
  align_corners: bool | None = None,
) -> Callable[[Mapping[str, Any], AnyArray], Array]:
  """(variables, uint8 image b h w 3) → int32 label map b h w, compiled once for each image size.

  Args:
    model: a Linen module, or a function (variables, normalised image) → outputs or logits.
    preprocess: from uint8 to the model's input.
    rule: how a picture reaches the network; by default as it is.
    mesh: every device of it computes all of the batch; None for the default device.
    align_corners: of the resizes of logits; None takes the decoder's own.
  """
  if not rule.plain:
    predictor = Predictor(
      model, rule=rule, preprocess=preprocess, mesh=mesh, spread=False, align_corners=align_corners
    )

    def predict_by_rule(variables, image):
      image = np.asarray(image)
      return predictor.labels(variables, {"image": image})[:, : image.shape[1], : image.shape[2]]

    return predict_by_rule
  apply, corners = forward(model), align_corners_of(model, given=align_corners)
  threshold = threshold_of(model, rule.threshold)

  def predict(variables, image):
    image = jnp.asarray(image)
    outputs = apply(variables, preprocess(image))
    return label_map(outputs, image.shape[1:3], align_corners=corners, threshold=threshold)

  if mesh is None:
    return jax.jit(predict)
  compiled = jax.jit(predict, out_shardings=replicated(mesh))

  def predict_on_mesh(variables, image):
    with jax.set_mesh(mesh):
      return compiled(variables, image)

  return predict_on_mesh


def _logits(outputs: Any) -> Array:
  logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
  if logits.ndim != 4:
    raise UserError(
      f"the model gives a label map of shape {tuple(logits.shape)}, but windows, resizes, scales and flips"
      " need logits b h w k; return logits, or leave the test-time rule at its defaults"
    )
  return jnp.asarray(logits).astype(jnp.float32)
