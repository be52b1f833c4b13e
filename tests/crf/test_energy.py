"""The free energy: its definition, and that mean field lowers it."""

import numpy as np
import pytest

from jaxseg.crf import energy, energy_by_step, mean_field
from tests.crf.conftest import KERNELS, dense_kernel


def test_energy_is_the_definition(case):
  unary, image = case
  mu = np.asarray([[0.0, 2.0, 0.5], [2.0, 0.0, 1.0], [0.5, 1.0, 0.0]])
  kernels = [KERNELS[0], (*KERNELS[1][:2], mu)]
  q = np.random.default_rng(5).dirichlet(np.ones(3), size=unary.shape[:2])
  flat, u = q.reshape(-1, 3), unary.reshape(-1, 3)
  want = np.sum(flat * (u + np.log(flat)))
  want -= 0.5 * KERNELS[0][2] * np.sum(flat * (dense_kernel(image, *KERNELS[0][:2]) @ flat))
  want += 0.5 * np.sum(flat * (dense_kernel(image, *KERNELS[1][:2]) @ flat @ mu))
  np.testing.assert_allclose(energy(q.astype(np.float32), unary, image, kernels), want, rtol=1e-5)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_energy_falls_by_step(case, method):
  _, trace = energy_by_step(*case, KERNELS, 6, method)
  assert trace.shape == (7,)
  assert (np.diff(trace) < 0).all()


def test_trace_ends_at_the_result(case):
  q, trace = energy_by_step(*case, KERNELS, 6)
  np.testing.assert_allclose(q, mean_field(*case, KERNELS, 6), atol=1e-6)
  np.testing.assert_allclose(trace[-1], energy(q, *case, KERNELS), rtol=1e-5)


def test_batch_has_an_energy_for_each_image(case):
  unary, image = np.stack([case[0]] * 2), np.stack([case[1], case[1][::-1]])
  both = energy(np.full(unary.shape, 1 / 3, np.float32), unary, image, KERNELS)
  assert both.shape == (2,) and both[0] != both[1]
