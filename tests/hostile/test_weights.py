"""What cannot be a parameter, in a drawn tensor of a drawn format: refused when it is loaded, and named.

Files that attack their reader are in tests/pretrained/hostile.
"""

import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg.checkpoint import restore_variables
from jaxseg.errors import UserError
from tests.hostile.changes import assert_sentence, cases
from tests.hub.small import TINY, init

FORMATS = ("pt", "legacy", "safetensors", "npz")


@pytest.fixture(scope="module")
def state():
  tiny = TINY | {"num_blocks": (1, 1)}
  model, variables = init(decoder=dict(use_bias=True), encoder=tiny)
  fields = dict(num_classes=5, encoder=tiny, decoder=dict(use_bias=True))
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  net = jaxseg.Net(
    model, variables, jaxseg.types.Preprocess(), tuple("abcde"), palette, "cgnet_m3n21", fields
  )
  return {k: np.ascontiguousarray(v) for k, v in jaxseg.to_torch(net, layout="mmseg").items()}


def save(path, state, form):
  if form == "safetensors":
    safetensors.numpy.save_file(state, path)
  elif form == "npz":
    with open(path, "wb") as file:
      np.savez(file, **state)
  else:
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=form == "pt")


def spoilt(value, kind, at):
  """`value` with one element that is no parameter's, or of a type that no parameter has."""
  if kind in ("int8", "uint64", "int64", "bool", "complex64"):
    return value.astype(kind)
  out = value.copy()
  out.reshape(-1)[at % out.size] = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "negative": -0.5}[kind]
  return out


def test_a_spoilt_tensor_is_refused(state, tmp_path):
  names = sorted(key for key, value in state.items() if value.dtype == np.float32 and value.size)
  kinds = ("nan", "inf", "-inf", "negative", "int8", "uint64", "int64", "bool", "complex64")
  path = tmp_path / "x.pth"
  for form in FORMATS:
    save(path, state, form)
    jaxseg.from_pretrained(path)

  @cases(20)
  @given(st.sampled_from(names), st.sampled_from(kinds), st.integers(0, 2**31), st.sampled_from(FORMATS))
  def case(name, kind, at, form):
    if kind == "negative" and not name.endswith("running_var"):
      return
    if kind in ("uint64", "complex64") and form == "legacy":
      return  # a format that has neither
    save(path, {**state, name: spoilt(state[name], kind, at)}, form)
    with pytest.raises(UserError) as error:
      jaxseg.from_pretrained(path)
    assert_sentence(error.value)
    assert name.rsplit(".", 1)[0] in str(error.value) or kind in str(error.value)

  case()


def test_statistics_of_images_that_are_none(state, tmp_path):
  path = tmp_path / "x.safetensors"
  save(path, state, "safetensors")
  value = st.one_of(
    st.sampled_from([0.0, -1.0, 1e-300, float("nan"), float("inf"), 1e300]), st.floats(0.1, 255)
  )

  @cases(20)
  @given(st.lists(value, min_size=2, max_size=4), st.lists(value, min_size=3, max_size=3))
  def case(mean, std):
    good = (
      len(mean) == 3 and np.isfinite(mean + std).all() and max(map(abs, mean + std)) < 1e30 and min(std) > 0
    )
    try:
      net = jaxseg.from_pretrained(path, preprocess={"mean": mean, "std": std})
      assert good and net.preprocess.mean == tuple(mean)
    except UserError as error:
      assert_sentence(error)
      assert not good

  case()


def test_a_checkpoint_under_another_number(run, tmp_path):
  """Copied or renamed by hand: it has its own step, and is not taken for another."""

  @cases(5)
  @given(st.integers(0, 10**6).filter(lambda step: step != 2))
  def case(step):
    folder = tmp_path / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "checkpoints" / "2", folder / str(step))
    with pytest.raises(UserError, match="it is the checkpoint of step 2, under another name"):
      restore_variables(folder)

  case()
