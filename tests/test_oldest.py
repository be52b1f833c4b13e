"""What the core does without any extra; `make test-oldest` runs it with the oldest versions allowed."""

import subprocess
import sys

import jax
import numpy as np

import jaxseg
from jaxseg.types import Preprocess
from tests import filled


def test_a_model_is_saved_read_and_used(tmp_path):
  model = jaxseg.create_model("segformer_b0", num_classes=3, encoder=dict(depths=(1, 1, 1, 1)))
  image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
  variables = jax.tree.map(np.asarray, filled.variables(model, image[None].astype(np.float32)))
  fields = {"num_classes": 3, "encoder": {"depths": (1, 1, 1, 1)}}
  palette = np.zeros((3, 3), np.uint8)
  net = jaxseg.Net(model, variables, Preprocess(), ("a", "b", "c"), palette, "segformer_b0", fields)
  net.save_pretrained(tmp_path / "net")
  read = jaxseg.from_pretrained(tmp_path / "net")
  probabilities = read.probabilities(image)
  assert probabilities.shape == (40, 56, 3)
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  np.testing.assert_array_equal(read.predict(image), net.predict(image))


def test_the_command_lists_models():
  done = subprocess.run([sys.executable, "-m", "jaxseg", "list"], capture_output=True, text=True, check=True)
  assert "segformer_b0" in done.stdout
