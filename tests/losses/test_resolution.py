"""Logits at a lower resolution, brought up in strips, give the loss and gradient of the full-size map."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.layers.resize import resize_logits
from jaxseg.losses import LOSSES, cross_entropy
from jaxseg.ops import upsampled

WEIGHTS = (1.0, 0.25, 3.0, 2.0, 0.5)
CASES = [
  ("cross_entropy", {}),
  ("cross_entropy", {"class_weights": WEIGHTS, "normalize_by": "weights", "label_smoothing": 0.1}),
  ("cross_entropy", {"normalize_by": "all", "label_smoothing": 0.2, "align_corners": True}),
  ("ohem_cross_entropy", {"min_kept": 40, "thresh": 0.3, "class_weights": WEIGHTS}),
  ("ohem_cross_entropy", {"min_kept": 9, "thresh": 0.0, "normalize_by": "kept"}),
  ("dice", {"class_weights": WEIGHTS}),
  ("dice", {"per_class": False, "exponent": 1.0, "align_corners": True}),
  ("focal", {"class_weights": WEIGHTS, "normalize_by": "weights"}),
  ("focal", {"activation": "softmax", "class_weights": WEIGHTS, "normalize_by": "all"}),
  ("lovasz", {}),
]


def example(small=(6, 7), large=(24, 26)):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(3 * rng.standard_normal((2, *small, 5)), jnp.float32)
  labels = rng.integers(0, 5, (2, *large)).astype(np.int32)
  labels[rng.random(labels.shape) < 0.3] = 255
  return logits, labels


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_equals_the_loss_of_the_full_size_map(monkeypatch, name, settings):
  logits, labels = example()
  corners = settings.get("align_corners", False)

  def full(x):
    return LOSSES[name](resize_logits(x, labels.shape[1:], align_corners=corners), labels, **settings)

  expected = jax.jit(jax.value_and_grad(full))(logits)
  monkeypatch.setattr(upsampled, "STRIP_VALUES", 2 * 26 * 5 * 5)  # five rows
  ours = jax.jit(jax.value_and_grad(lambda x: LOSSES[name](x, labels, **settings)))
  if name != "lovasz":
    assert "scan" in str(jax.make_jaxpr(ours)(logits)), "in strips"
  np.testing.assert_allclose(ours(logits)[0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(
    ours(logits)[1], expected[1], rtol=1e-5, atol=1e-6 * float(np.abs(expected[1]).max())
  )
  low = jax.jit(jax.value_and_grad(lambda x: LOSSES[name](x, labels, **settings)))(
    logits.astype(jnp.bfloat16)
  )
  assert low[0].dtype == jnp.float32 and low[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "focal"])
def test_traced_class_weights(name):
  """They cannot enter a strip's derivative, and take the full-size map instead."""
  logits, labels = example()
  settings = {"label_smoothing": 0.1} if name == "cross_entropy" else {}
  loss = jax.jit(lambda x, w: LOSSES[name](x, labels, class_weights=w, **settings))
  np.testing.assert_allclose(
    loss(logits, jnp.asarray(WEIGHTS)),
    LOSSES[name](logits, labels, class_weights=WEIGHTS, **settings),
    rtol=1e-6,
  )


def test_an_id_that_is_no_class_is_not_silently_dropped(monkeypatch):
  logits, labels = example()
  monkeypatch.setattr(upsampled, "STRIP_VALUES", 2 * 26 * 5 * 5)
  labels[1, -1, -1] = 7
  for name in LOSSES:
    assert np.isnan(LOSSES[name](logits, labels)), name


def test_shapes_that_do_not_belong_together():
  logits, labels = example()
  for wrong in (labels[:1], labels[0]):
    with pytest.raises(UserError, match="expected one label for each position, or logits b h w k"):
      cross_entropy(logits, wrong)


_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jaxseg import sharding
from jaxseg.losses import LOSSES
from jaxseg.ops import upsampled
from tests.losses.test_resolution import CASES, example

jax.config.update("jax_num_cpu_devices", 2)
# Rows that divide, and rows that do not; logits' rows that divide, or not.
SIZES = [((6, 7), (24, 26)), ((5, 7), (26, 11)), ((6, 7), (25, 26))]
for data, spatial in ((1, 2), (2, 1)):
  mesh = sharding.make_mesh(data=data, spatial=spatial)
  for small, large in SIZES:
    logits, labels = example(small, large)
    for name, settings in CASES[1::2][:4] if large == (24, 26) else CASES[1:2]:
      step = lambda x, y: jax.value_and_grad(lambda x: LOSSES[name](x, y, **settings))(x)
      upsampled.STRIP_VALUES = 1 << 23
      expected = jax.jit(step)(logits, labels)
      upsampled.STRIP_VALUES = 2 * large[1] * 5 * 5 // data
      with jax.set_mesh(mesh):
        batch = sharding.to_global({"label": labels}, mesh)
        x = jax.device_put(logits, sharding.batch_sharding(mesh))
        ours = jax.block_until_ready(jax.jit(lambda x, y: step(x, y))(x, batch["label"]))
      np.testing.assert_allclose(ours[0], expected[0], rtol=1e-6)
      scale = float(np.abs(expected[1]).max())
      np.testing.assert_allclose(ours[1], expected[1], rtol=1e-5, atol=1e-6 * scale)
      print(data, spatial, small, large, name, flush=True)
"""


def test_the_same_on_two_devices():
  """Images, or the rows of one, on two devices."""
  root = pathlib.Path(__file__).parent.parent.parent
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT],
    cwd=root,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  assert len(done.stdout.splitlines()) == 12
