"""VGG16 with holes against the same layers in PyTorch, with every pooling rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jaxseg
from jaxseg.encoders.vgg import VGG
from tests.encoders.checks import image

TINY = dict(widths=(4, 6, 8, 10, 12))


def _shapes(model, size):
  picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), picture)


def test_the_papers_map():
  features, _ = _shapes(jaxseg.create_model("vgg16"), (321, 321))
  assert features["stage5"].shape == (1, 41, 41, 512)
  sides = {k: v.shape[1] for k, v in features.items()}
  assert sides == {"stage1": 161, "stage2": 81, "stage3": 41, "stage4": 41, "stage5": 41}


@pytest.mark.parametrize(
  "output_stride, pool_size, ceil_pool", [(8, 3, False), (16, 3, True), (32, 2, False)]
)
def test_equals_torch(output_stride, pool_size, ceil_pool):
  model = VGG(**TINY, output_stride=output_stride, pool_size=pool_size, ceil_pool=ceil_pool)
  picture = image(46, 65)
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), picture)
  features = jax.jit(functools.partial(model.apply, train=False))(variables, picture)

  x, stride, rate = torch.from_numpy(picture).permute(0, 3, 1, 2), 1, 1
  for stage, size in enumerate((2, 2, 3, 3, 3), start=1):
    for n in range(size):
      leaf = variables["params"][f"stage{stage}_conv{n}"]
      kernel = torch.from_numpy(np.array(leaf["kernel"])).permute(3, 2, 0, 1)
      x = torch.relu(F.conv2d(x, kernel, torch.from_numpy(np.array(leaf["bias"])), 1, rate, rate))
    step = 2 if stride < output_stride else 1
    stride, rate = stride * step, rate * (3 - step)
    if pool_size == 2 and step == 1:
      x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)  # ReLU's outputs: a zero outside wins nothing
    else:
      x = F.max_pool2d(x, pool_size, step, padding=pool_size // 3, ceil_mode=ceil_pool)
    if stage == 5:
      x = F.avg_pool2d(x, 3, 1, padding=1)
    theirs = x.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(features[f"stage{stage}"], theirs, atol=1e-5)


def test_the_image_can_be_a_feature():
  features, _ = _shapes(VGG(**TINY, with_image=True), (45, 71))
  assert list(features) == [f"stage{i}" for i in range(6)] and features["stage0"].shape == (1, 45, 71, 3)


@pytest.mark.parametrize(
  "fields, sentence",
  [
    (dict(output_stride=4), "output_stride is 4, but VGG gives 8, 16 or 32"),
    (dict(pool_size=4), r"pool_size is 4; choose 3 \(DeepLab\) or 2 \(ImageNet\)"),
  ],
)
def test_bad_fields(fields, sentence):
  with pytest.raises(ValueError, match=sentence):
    _shapes(VGG(**TINY, **fields), (33, 33))
