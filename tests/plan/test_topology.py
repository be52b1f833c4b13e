"""Accelerators' names as topologies; published rates of the newest chips."""

import pytest

from jaxseg.chips import chip_of
from jaxseg.errors import UserError
from jaxseg.plan.topology import slice_of


@pytest.mark.parametrize(
  ("name", "topology"),
  [
    ("v5litepod-16", "v5e:4x4"),
    ("v5litepod-8", "v5e:2x4"),
    ("v5litepod-256", "v5e:16x16"),
    ("v6e-8", "v6e:2x4"),
    ("v6e-1", "v6e:1x1"),
    ("v4-64", "v4:2x4x4"),  # TensorCores: 32 chips
    ("v4-8", "v4:2x2x1"),
    ("v4-128", "v4:4x4x4"),
    ("v5p-256", "v5p:4x4x8"),
    ("tpu7x-128", "tpu7x:4x4x8"),
    ("v5e:16x16", "v5e:16x16"),
    ("cpu:8", "cpu:8"),
  ],
)
def test_an_accelerators_name_is_a_topology(name, topology):
  assert slice_of(name) == topology


@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("v5litepod-17", "there is no slice 'v5litepod-17'; the nearest is v5litepod-16"),
    ("v6e-1000", "the nearest is v6e-256"),
    ("v4-7", "the nearest is v4-8"),
    ("v3-8", "no rates and no compiler for 'v3-8'; chips: v4"),
  ],
)
def test_a_name_that_no_slice_has(name, sentence):
  with pytest.raises(UserError, match=sentence):
    slice_of(name)


def test_the_newest_chips_have_rates():
  chip = chip_of("TPU7x")
  assert (chip.flops, chip.hbm_bytes, chip.cores) == (2307e12, 192 << 30, 2)
  assert chip_of("NVIDIA B200").flops == 2250e12 and chip_of("NVIDIA GB200").flops == 2500e12
