"""Convolution layers against PyTorch: padding, strides, groups, the 1×1 product."""

import jax
import numpy as np
import pytest
import torch

from jaxseg.layers.conv import Conv, DepthwiseConv, fan_out_normal


@pytest.mark.parametrize(
  "fields",
  [
    dict(kernel_size=3, strides=2),
    dict(kernel_size=7, strides=4, padding=3),
    dict(kernel_size=(1, 7)),
    dict(kernel_size=3, dilation=12),
    dict(kernel_size=3, dilation=2, padding=0),
    dict(kernel_size=1),
    dict(kernel_size=1, strides=2),
    dict(kernel_size=1, padding=1),
    dict(kernel_size=3, groups=2),
  ],
  ids=str,
)
def test_conv_equals_torch(fields):
  x = np.random.default_rng(0).standard_normal((2, 29, 32, 4)).astype(np.float32)
  layer = Conv(6, **fields)
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  variables["params"]["bias"] = np.arange(6, dtype=np.float32)
  ours = jax.jit(layer.apply)(variables, x)
  kernel = np.asarray(variables["params"]["kernel"])
  size, rate = np.array(kernel.shape[:2]), fields.get("dilation", 1)
  padding = fields.get("padding", tuple(int(p) for p in (size - 1) // 2 * rate))
  theirs = torch.nn.functional.conv2d(
    torch.from_numpy(x.transpose(0, 3, 1, 2)),
    torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))),
    torch.arange(6.0),
    stride=fields.get("strides", 1),
    padding=padding,
    dilation=rate,
    groups=fields.get("groups", 1),
  )
  np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_depthwise_has_one_filter_a_channel():
  x = jax.ShapeDtypeStruct((1, 8, 9, 3), np.float32)
  y, variables = jax.eval_shape(DepthwiseConv(3, dilation=2).init_with_output, jax.random.key(1), x)
  assert variables["params"]["kernel"].shape == (3, 3, 1, 3) and y.shape == x.shape


def test_fan_out_rule():
  """Standard deviation sqrt(2 / (kh·kw·out / groups))."""
  dense = fan_out_normal()(jax.random.key(0), (3, 3, 64, 128))
  assert abs(float(dense.std()) - (2 / (9 * 128)) ** 0.5) < 1e-3
  depthwise = fan_out_normal(groups=512)(jax.random.key(0), (5, 5, 1, 512))
  assert abs(float(depthwise.std()) - (2 / 25) ** 0.5) < 1e-2
