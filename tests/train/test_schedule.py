"""Learning rates against the published formulas and mmengine's own numbers."""

import json

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


@pytest.mark.parametrize("case", ["segnext_tiny", "segformer_b0", "deeplabv3plus_resnet50"])
def test_mmengine_warm_up_equals_mmengine(shared, case):
  recipe = json.loads((shared / "parity" / "recipes" / f"mmseg1-{case}.json").read_text())
  deeplab = case.startswith("deeplab")
  schedule = {
    "name": "poly",
    "power": 0.9 if deeplab else 1.0,
    "end_value": 1e-4 if deeplab else 0.0,
    "total_steps": recipe["total_steps"],
    "warmup": "mmengine",
    "warmup_steps": recipe["warmup_steps"],
    "warmup_ratio": 1e-6,
  }
  expected = {int(k): v for k, v in recipe["lr_of_a_parameter_with_lr_mult_1"].items()}
  ours = rates(schedule, recipe["optimizer"]["lr"], list(expected))
  np.testing.assert_allclose(ours, list(expected.values()), rtol=2e-6, atol=1e-17)


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
    ({"warmup": "old"}, "schedule.warmup is 'old', expected 'mmcv' or 'mmengine'"),
  ],
)
def test_bad_schedules(schedule, sentence):
  with pytest.raises(ValueError) as error:
    make_schedule(schedule, 1.0)
  assert sentence in str(error.value)
