"""Programs of this folder are compiled without optimisation: their numbers are tested elsewhere."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def unoptimised():
  """Three steps of a dozen networks are all compiling."""
  before = jax.config.values["jax_disable_most_optimizations"]
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
