"""What the hub's tests share: a small net, its state dict, a file of it, a picture."""

import numpy as np
import pytest
import torch

import jaxseg
from jaxseg.types import Preprocess
from tests.hub.small import TINY, init


@pytest.fixture(scope="module")
def own():
  """A small CGNet of our own, as a Net that no file was read for."""
  model, variables = init(decoder=dict(use_bias=True))
  return jaxseg.Net(
    model=model,
    variables=variables,
    preprocess=Preprocess((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr"),
    classes=tuple("abcde"),
    palette=np.arange(15, dtype=np.uint8).reshape(5, 3),
    arch="cgnet_m3n21",
    fields=dict(num_classes=5, encoder=TINY, decoder=dict(use_bias=True)),
  )


@pytest.fixture(scope="module")
def state(own):
  return jaxseg.to_torch(own, layout="mmseg")


@pytest.fixture
def file(state, tmp_path):
  """Writes a state dict as a PyTorch file, with changes."""

  def write(name="x.pth", drop=(), **change):
    content = {k: torch.tensor(v) for k, v in {**state, **change}.items() if k not in drop}
    torch.save(content, tmp_path / name)
    return tmp_path / name

  return write


@pytest.fixture(scope="module")
def picture():
  return np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
