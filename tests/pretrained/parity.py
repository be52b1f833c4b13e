"""Reading the parity cases, and the tolerances that every one of them is held to."""

import importlib.util
import pathlib

import jax
import numpy as np


def recipe(shared: pathlib.Path):
  """The module that makes weights and images from names and a seed."""
  spec = importlib.util.spec_from_file_location("parity_recipe", shared / "parity" / "recipe.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def check_close(ours, reference: np.ndarray) -> None:
  """Within 1e-4 of the reference's largest value, argmax equal in 99.9 % of pixels."""
  ours = np.asarray(ours)
  assert ours.shape == reference.shape
  assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()
  assert np.mean(ours.argmax(-1) == reference.argmax(-1)) >= 0.999


def run(net, images):
  """Logits and features."""

  @jax.jit
  def apply(variables, images):
    logits = net.model.apply(variables, images, train=False)["logits"]
    return logits, net.model.apply(variables, images, train=False, method="features")

  return apply(net.variables, images)


def output(net, images):
  """Whatever the model gives for images, compiled."""
  return jax.jit(lambda v, x: net.model.apply(v, x, train=False))(net.variables, images)


def check_round_trip(back: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> None:
  """Same names in the same order, same types, same bits."""
  assert list(back) == list(state)
  for name, value in state.items():
    assert (back[name].shape, back[name].dtype) == (value.shape, value.dtype), name
    assert back[name].tobytes() == value.tobytes(), name
