"""The label map of an image of any size, by sliding windows in bounded memory.

The result is that of `windows.slide_logits`: the class with the largest mean over all windows that see a
pixel. Sums are kept for the rows of one window and for a panel of columns; what lies above is finished.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer, UInt8

from jaxseg.classes import label_type
from jaxseg.evaluation.decision import labels_of_logits
from jaxseg.layers.resize import resize_logits
from jaxseg.types import AnyArray, Preprocess

# Float32 sums that are held at once: rows of a window x columns of a panel x classes.
_HELD = 1 << 27


def predict_tiled(
  apply: Callable[[Mapping[str, Any], Array], Array],
  variables: Mapping[str, Any],
  image: UInt8[AnyArray, "h w c"],
  *,
  preprocess: Preprocess,
  num_classes: int,
  crop_size: tuple[int, int] = (512, 512),
  stride: tuple[int, int] = (341, 341),
  align_corners: bool = False,
  held: int = _HELD,
  threshold: float | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Integer[np.ndarray, "h w"]:
  """The class of every pixel, uint8 (int32 from 256 classes on).

  Args:
    apply: (variables, normalised windows b h w 3) → logits b h/s w/s k; the same function for every image,
      so that it is compiled once.
    variables: of the model.
    image: RGB of any size.
    preprocess: from uint8 to the model's input.
    num_classes: k.
    crop_size: rows and columns of a window; a shorter side of the image is one window.
    stride: between windows; the last one is moved back into the image.
    align_corners: of the resize from the decoder's resolution to the window.
    held: float32 values of sums that are held at once.
    threshold: None for one class a pixel, else as in `decision.py`.
    progress: is called with the number of windows that are done, and of all.
  """
  rows, columns = image.shape[:2]
  window = (min(crop_size[0], rows), min(crop_size[1], columns))
  tops, lefts = (_starts(side, w, s) for side, w, s in zip((rows, columns), window, stride, strict=True))
  panels = _panels(lefts, window[1], columns, max(held // (window[0] * num_classes), 2 * window[1]))
  width = max(own[-1] + window[1] - start for start, _, own in panels)
  run = _network(apply, preprocess, threshold)
  channels = num_classes + (threshold is not None)
  labels = np.empty((rows, columns), np.uint8 if num_classes <= 256 else np.int32)
  if threshold is not None:
    labels = labels.astype(label_type(num_classes))
  total, done = len(tops) * len(lefts), 0
  shared: dict[tuple[int, int], np.ndarray] = {}  # of windows that reach into the next panel
  for start, finished, own in panels:
    # With room on the left for windows that began in the panel before.
    sums = jnp.zeros((window[0], window[1] + width, channels), jnp.float32)
    carried, shared = shared, {}
    before = sorted({left for _, left in carried})
    for i, top in enumerate(tops):
      for left in before + own:
        logits = carried.get((top, left))
        if logits is None:
          logits = run(variables, image[top : top + window[0], left : left + window[1]])
          done += 1
          if progress is not None:
            progress(done, total)
        if left + window[1] > finished and finished < columns:
          shared[top, left] = np.asarray(logits)
        sums = _add(sums, logits, window[1] + left - start, size=window, align_corners=align_corners)
      ready = (tops[i + 1] if i + 1 < len(tops) else rows) - top
      part, sums = _finish(sums, ready=ready, threshold=threshold)
      labels[top : top + ready, start:finished] = np.asarray(part)[:, window[1] :][:, : finished - start]
  return labels


@functools.lru_cache(maxsize=4)
def _network(
  apply: Callable[..., Array], preprocess: Preprocess, threshold: float | None
) -> Callable[..., Array]:
  def run(variables, window):
    logits = apply(variables, preprocess(window)[None])[0].astype(jnp.float32)
    if threshold is None:
      return logits
    return jnp.concatenate([logits, jnp.ones_like(logits[..., :1])], -1)  # how many windows a sum is of

  return jax.jit(run)


def _starts(side: int, window: int, stride: int) -> list[int]:
  count = -(-(side - window) // stride) + 1
  return [min(i * stride, side - window) for i in range(count)]


def _panels(lefts: list[int], window: int, columns: int, width: int) -> list[tuple[int, int, list[int]]]:
  """(first column, column after the last that is finished, left sides of the windows that begin there)."""
  panels, i, start = [], 0, 0
  while i < len(lefts):
    j = i + 1
    while j < len(lefts) and lefts[j] + window - start <= width:
      j += 1
    finished = lefts[j] if j < len(lefts) else columns
    panels.append((start, finished, lefts[i:j]))
    i, start = j, finished
  return panels


@functools.partial(jax.jit, static_argnames=("size", "align_corners"), donate_argnums=0)
def _add(sums, logits, left, *, size, align_corners):
  """Adds a window's logits at column `left`, in place: nothing but the window's own part is touched."""
  logits = resize_logits(logits, size, align_corners=align_corners)
  here = lax.dynamic_slice(sums, (0, left, 0), (sums.shape[0], size[1], sums.shape[2]))
  return lax.dynamic_update_slice(sums, here + logits, (0, left, 0))


@functools.partial(jax.jit, static_argnames=("ready", "threshold"), donate_argnums=0)
def _finish(sums, *, ready, threshold):
  """The classes of the first rows, and the sums moved up by as many."""
  rest = jnp.concatenate([sums[ready:], jnp.zeros_like(sums[:ready])])
  logits = sums[:ready]
  if threshold is not None:
    logits = logits[..., :-1] / jnp.maximum(logits[..., -1:], 0.5)  # no window: of no interest, but a number
  return labels_of_logits(logits, threshold), rest
