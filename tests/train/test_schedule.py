"""Learning rates against the published formulas and mmengine's own numbers."""

import jax
import numpy as np
import pytest

from jaxseg.train import make_schedule


def rates(schedule, base, steps):
  return np.asarray(jax.vmap(make_schedule(schedule, base))(np.asarray(steps, np.int32)), np.float64)


def test_poly_of_cgnet():
  steps = np.array([0, 1, 500, 998, 999, 1000])
  ours = rates({"name": "poly", "power": 0.9, "total_steps": 1000}, 1e-3, steps)
  np.testing.assert_allclose(ours, 1e-3 * (1 - steps / 1000) ** 0.9, rtol=1e-6)


def test_mmcv_warm_up_multiplies_the_decay():
  total, warm, ratio, base = 20, 4, 1e-6, 6e-4
  steps = np.arange(20)
  warming = 1 - np.maximum(1 - steps / warm, 0) * (1 - ratio)
  ours = rates(
    {"name": "poly", "total_steps": total, "warmup_steps": warm, "warmup_ratio": ratio}, base, steps
  )
  np.testing.assert_allclose(ours, base * (1 - steps / total) * warming, rtol=1e-6)


def test_mmcv_warm_up_of_the_official_repositories():
  # 6e-5, 1500 steps from 1e-6 of it, of 160,000: lr(i) = 6e-5 (1 - i/160000) (1 - (1 - i/1500)(1 - 1e-6)).
  schedule = {"name": "poly", "total_steps": 160_000, "warmup_steps": 1500, "warmup_ratio": 1e-6}
  steps = {
    0: 6e-11,
    1: 4.00597e-8,
    750: 2.9859405e-5,
    1499: 5.9398234e-5,
    1500: 5.94375e-5,
    159_999: 3.75e-10,
  }
  np.testing.assert_allclose(rates(schedule, 6e-5, list(steps)), list(steps.values()), rtol=2e-6)
  exact = [6e-5 * (1 - i / 160_000) * (1 - max(1 - i / 1500, 0) * (1 - 1e-6)) for i in steps]
  np.testing.assert_allclose(rates(schedule, 6e-5, list(steps)), exact, rtol=2e-6)


def test_timm_warms_up_instead_of_the_decay_and_steps_by_epoch():
  epochs, steps = 30, 7  # of an epoch
  schedule = {
    "name": "cosine", "end_value": 1e-5, "total_steps": epochs * steps, "every": steps,
    "warmup": "timm", "warmup_steps": 5 * steps, "warmup_ratio": 1e-3,
  }  # fmt: skip
  ours = rates(schedule, 1e-3, np.arange(epochs * steps + 3))
  for i, rate in enumerate(ours):
    epoch = i // steps
    warming = 1e-6 + epoch * (1e-3 - 1e-6) / 5
    cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * min(epoch, epochs) / epochs))
    np.testing.assert_allclose(rate, warming if epoch < 5 else cosine, rtol=1e-5)


def test_cosine_and_step_and_constant():
  steps = np.array([0, 25, 50, 99, 100])
  cosine = 1e-5 + (1e-2 - 1e-5) * (1 + np.cos(np.pi * steps / 100)) / 2
  np.testing.assert_allclose(
    rates({"name": "cosine", "total_steps": 100, "end_value": 1e-5}, 1e-2, steps), cosine, rtol=1e-4
  )
  np.testing.assert_allclose(
    rates({"name": "step", "boundaries": (25, 100), "factor": 0.1}, 1.0, steps),
    [1.0, 0.1, 0.1, 0.1, 0.01],
    rtol=1e-6,
  )
  np.testing.assert_allclose(rates({"name": "constant"}, 0.5, steps), 0.5)


def test_a_run_shorter_than_mmengines_decay_still_has_rates():
  ours = rates({"name": "poly", "total_steps": 2, "warmup": "mmengine", "warmup_steps": 1}, 1.0, np.arange(3))
  assert np.all(np.isfinite(ours))


@pytest.mark.parametrize(
  ("schedule", "sentence"),
  [
    ({"name": "pol"}, "no schedule called 'pol'; did you mean 'poly'?"),
    ({"warmup_step": 3}, "schedule has no key 'warmup_step'; did you mean 'warmup_steps'?"),
    ({"name": "poly"}, "schedule.total_steps is 0, expected more than the 0 warm-up steps"),
    ({"warmup": "old"}, "schedule.warmup is 'old', expected 'mmcv', 'mmengine' or 'timm'"),
    ({"every": -1}, "schedule.every is -1, expected at least 1 step"),
  ],
)
def test_bad_schedules(schedule, sentence):
  with pytest.raises(ValueError) as error:
    make_schedule(schedule, 1.0)
  assert sentence in str(error.value)
