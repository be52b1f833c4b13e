"""The label map in bounded memory is that of sliding windows over the whole image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.tiled import predict_tiled
from jaxseg.evaluation.windows import slide_logits
from jaxseg.types import Preprocess

CLASSES = 5


def network(variables, windows):
  """Logits at an eighth of the resolution."""
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(windows, variables["kernel"], (8, 8), "SAME", dimension_numbers=numbers)


@pytest.mark.parametrize(
  "size, stride, held",
  [
    ((100, 150), (32, 40), 1 << 27),  # one panel
    ((100, 333), (32, 40), 48 * CLASSES * 130),  # windows that reach into the next panel
    ((97, 401), (31, 17), 1),  # the narrowest panels, many windows over each pixel
    ((30, 333), (32, 40), 1),  # lower than a window
    ((200, 60), (32, 64), 1),  # narrower than one
  ],
)
def test_equal_to_sliding_windows(size, stride, held):
  rng, crop, preprocess = np.random.default_rng(0), (48, 64), Preprocess()
  variables = {"kernel": jnp.asarray(rng.standard_normal((8, 8, 3, CLASSES)), jnp.float32)}
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  steps = []
  labels = predict_tiled(
    network, variables, image, preprocess=preprocess, num_classes=CLASSES, crop_size=crop, stride=stride,
    held=held, progress=lambda done, total: steps.append((done, total)),
  )  # fmt: skip
  canvas = InferenceRule(mode="slide", crop_size=crop, stride=stride).canvas(size)
  padded = np.zeros((1, *canvas, 3), np.float32)
  padded[0, : size[0], : size[1]] = preprocess(jnp.asarray(image))
  logits = slide_logits(
    lambda x: network(variables, x), jnp.asarray(padded), jnp.asarray([size]), crop_size=crop, stride=stride
  )[0, : size[0], : size[1]]
  assert labels.dtype == np.uint8 and len(np.unique(labels)) == CLASSES
  # Sums in another order: where two classes are equal to rounding, either may win.
  best, second = np.sort(logits, axis=-1)[..., [-1, -2]].transpose(2, 0, 1)
  assert np.array_equal(labels[best - second > 1e-5], np.argmax(logits, -1)[best - second > 1e-5])
  assert np.mean(best - second > 1e-5) > 0.999
  # Each window goes through the network once, however many panels it reaches into.
  assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
