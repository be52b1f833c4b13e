"""The tolerances that every parity case is held to."""

import jax
import numpy as np

from tests.parity_cases import Sample


def check_close(ours, reference: Sample | np.ndarray) -> None:
  """Within 1e-4 of the reference's largest value, argmax equal in 99.9 % of pixels."""
  if isinstance(reference, Sample):
    ours, reference = reference.of(ours), reference.values
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
