"""What cannot be a parameter, in a drawn tensor of a drawn format: refused when it is loaded, and named.

Files that attack their reader are in tests/pretrained/hostile.
"""

import dataclasses
import hashlib
import io
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg.checkpoint import restore_variables
from jaxseg.errors import UserError
from jaxseg.pretrained import published
from jaxseg.pretrained.readers import read_file
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


def test_another_file_under_a_published_name(tmp_path, monkeypatch):
  known = sorted(name for name, found in published.FILES.items() if found.checksum)

  @cases(25)
  @given(st.sampled_from(known), st.binary(max_size=40), st.booleans())
  def case(name, content, the_one):
    path = tmp_path / name
    path.write_bytes(content)
    entry = published.FILES[name]
    with monkeypatch.context() as patch:
      if the_one:
        entry = dataclasses.replace(entry, checksum=hashlib.sha256(content).hexdigest()[:8])
        patch.setitem(published.FILES, name, entry)
        assert published.find(path) is entry
      else:
        with pytest.raises(UserError, match=f"SHA-256 begins with {entry.checksum}") as error:
          published.find(path)
        assert_sentence(error.value)
        assert published.find(path, strict=False) is None
    path.unlink()

  case()


def test_a_name_twice_in_a_zip(state, tmp_path):
  """Which of two members is meant, nobody can say."""
  path = tmp_path / "x.pth"

  @cases(15)
  @given(st.sampled_from(["pt", "npz"]), st.integers(0, 10**6), st.booleans())
  def case(form, which, changed):
    save(path, state, form)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
      member = old.namelist()[which % len(old.namelist())]
      content = old.read(member)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)  # zipfile's own, of the name
      archive.writestr(member, content[::-1] if changed else content)
    with pytest.raises(UserError) as error:
      jaxseg.from_pretrained(path)
    assert_sentence(error.value)

  case()


def test_views_of_a_storage_have_torchs_values(tmp_path):
  """Transposed, cut, stepped, with torch's lazy bits of sign and conjugate, under either order of bytes."""
  path = tmp_path / "x.pth"
  sides = st.lists(st.integers(1, 4), min_size=2, max_size=3)
  orders = st.sampled_from([b"little", b"big", b"middle", b"", b"LITTLE", b"\x1b[2J", None])

  @cases(40)
  @given(sides, st.booleans(), st.integers(0, 2), st.integers(1, 3), st.sampled_from("nic"), orders)
  def case(shape, transposed, start, step, bit, order):
    tensor = torch.arange(np.prod(shape), dtype=torch.float32).reshape(*shape) + 1
    if bit == "i":
      tensor = torch.complex(tensor, tensor + 0.5).conj().imag  # a view whose sign is a bit of its own
      assert tensor.is_neg()
    elif bit == "c":
      tensor = torch.complex(tensor, tensor + 0.5).conj()
    tensor = tensor.transpose(0, 1) if transposed else tensor
    tensor = tensor[start % tensor.shape[0] :: step]
    buffer = io.BytesIO()
    torch.save({"weight": tensor}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
      for member in old.namelist():
        content = old.read(member)
        if member.endswith("/byteorder"):
          if order is None:
            continue  # as older versions of torch write it: little
          content = order
        elif order == b"big" and "/data/" in member:
          content = np.frombuffer(content, "u4").byteswap().tobytes()
        new.writestr(member, content)
    if order not in (b"little", b"big", None):
      with pytest.raises(UserError) as error:
        read_file(path)
      assert_sentence(error.value)
      return
    found = read_file(path).tensors["weight"]
    wanted = tensor.resolve_conj().resolve_neg().numpy()
    np.testing.assert_array_equal(found, wanted)

  case()
