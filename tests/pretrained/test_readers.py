"""Readers: every element type bit for bit, damaged and wrong files as sentences, nothing executed."""

import builtins
import io
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from jaxseg.pretrained.readers import read_file

_BITS = np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes()
_DTYPES = {
  torch.float32: np.float32,
  torch.float64: np.float64,
  torch.float16: np.float16,
  torch.bfloat16: ml_dtypes.bfloat16,
  torch.int64: np.int64,
  torch.int32: np.int32,
  torch.int16: np.int16,
  torch.int8: np.int8,
  torch.uint8: np.uint8,
  torch.complex64: np.complex64,
}


def _tensors() -> dict[str, torch.Tensor]:
  """Random bit patterns (NaNs and denormals among them) of every type, and odd memory layouts."""
  state = {str(d).removeprefix("torch."): torch.frombuffer(bytearray(_BITS), dtype=d) for d in _DTYPES}
  base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
  return state | {
    "bool": torch.tensor([True, False, True]),
    "transposed": base.permute(2, 0, 1),
    "offset": base[1:, ::2, 1:4],
    "shared": base,
    "expanded": torch.tensor([1.5, 2.5])[:, None].expand(2, 3),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "denormal": torch.tensor([5.6e-45, 1e-41, -1e-40]),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
  }


def _bytes(tensor: torch.Tensor) -> bytes:
  return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check(arrays, state):
  assert list(arrays) == list(state)
  for name, tensor in state.items():
    assert arrays[name].shape == tuple(tensor.shape), name
    if tensor.dtype in _DTYPES:
      assert arrays[name].dtype == _DTYPES[tensor.dtype], name
    assert np.ascontiguousarray(arrays[name]).tobytes() == _bytes(tensor), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_are_read_bit_for_bit(tmp_path, zipped):
  state = _tensors()
  torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
  _check(read_file(tmp_path / "x.pth").tensors, state)


def test_types_that_only_the_zip_format_has(tmp_path):
  state = {
    "fp8": torch.tensor([1.0, 0.5]).to(torch.float8_e4m3fn),
    "u16": torch.tensor([1, 65535], dtype=torch.uint16),
  }
  torch.save(state, tmp_path / "x.pt")
  arrays = read_file(tmp_path / "x.pt").tensors
  assert arrays["fp8"].dtype == ml_dtypes.float8_e4m3fn
  assert arrays["u16"].tolist() == [1, 65535]
  assert arrays["fp8"].astype(np.float32).tolist() == [1.0, 0.5]


def test_big_endian_zip(tmp_path):
  state = {"a": torch.arange(4, dtype=torch.float32), "h": torch.tensor([1.5], dtype=torch.bfloat16)}
  torch.save(state, tmp_path / "little.pth")
  with zipfile.ZipFile(tmp_path / "little.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
    for name in old.namelist():
      data = old.read(name)
      if name.endswith("byteorder"):
        data = b"big"
      elif "/data/" in name:
        width = 4 if len(data) == 16 else 2
        data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
      new.writestr(name, data)
  _check(read_file(tmp_path / "big.pth").tensors, state)


def test_safetensors_are_read_bit_for_bit(tmp_path):
  state = {k: v.detach().clone().contiguous() for k, v in _tensors().items() if k != "complex64"}
  safetensors.torch.save_file(state, tmp_path / "x.safetensors")
  arrays = read_file(tmp_path / "x.safetensors").tensors
  _check({k: arrays[k] for k in state}, state)


def test_npz(tmp_path):
  np.savez(tmp_path / "x.npz", **{"a/b": np.float32([5.6e-45]), "c": np.arange(3)})
  arrays = read_file(tmp_path / "x.npz").tensors
  assert arrays["a/b"].tobytes() == np.float32([5.6e-45]).tobytes()
  assert arrays["c"].tolist() == [0, 1, 2]


def test_plain_pickle_of_numpy_arrays(tmp_path):
  state = {
    "a": np.arange(6, dtype=">f4").reshape(2, 3),
    "f": np.asfortranarray(np.eye(3)),
    "s": np.float64(2.5),
  }
  for protocol in (2, 4, 5):
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(state, protocol=protocol))
    arrays = read_file(tmp_path / "x.pdparams").tensors
    for name, value in state.items():
      np.testing.assert_array_equal(arrays[name], value)


def test_the_content_decides_the_format_not_the_ending(tmp_path):
  torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
  assert read_file(tmp_path / "x.safetensors").tensors["a"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_checkpoint_with_training_state_beside_the_weights(tmp_path, zipped):
  """The HistoryBuffer of mmengine, argparse's Namespace and optimizer state are passed over."""
  module = types.ModuleType("mmengine_like")
  buffer = type("HistoryBuffer", (), {"__module__": "mmengine_like"})
  module.HistoryBuffer = buffer
  sys.modules["mmengine_like"] = module
  try:
    log = buffer()
    log.history = np.arange(3.0)
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    namespace = __import__("argparse").Namespace(lr=0.1, root=__import__("pathlib").Path("x"))
    checkpoint = {
      "meta": {
        "CLASSES": ("road", "sky"),
        "PALETTE": [[1, 2, 3], [4, 5, 6]],
        "log": log,
        "hook": [log, {1: log}],
      },
      "message_hub": {"loss": log},
      "args": namespace,
      "optimizer": optimizer.state_dict(),
      "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()} | {"module.log": log},
    }
    path = tmp_path / "x.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
  finally:
    del sys.modules["mmengine_like"]
  weights = read_file(path)
  _check(weights.tensors, dict(net.state_dict()))
  assert weights.opaque == {"log": "mmengine_like.HistoryBuffer"}
  assert weights.meta.classes == ("road", "sky")
  assert weights.meta.palette.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_image_statistics_in_the_config_text_of_mmcv(tmp_path):
  text = "img_norm_cfg = dict(\n    mean=[72.3, 82.9, 73.1], std=[1, 1, 1], to_rgb=True)"
  torch.save({"meta": {"config": text}, "state_dict": {"a": torch.ones(1)}}, tmp_path / "x.pth")
  preprocess = read_file(tmp_path / "x.pth").meta.preprocess
  assert preprocess.mean == (72.3, 82.9, 73.1)
  assert preprocess.std == (1.0, 1.0, 1.0)


class _Evil:
  """Unpickling this the ordinary way calls `function(*args)`."""

  def __init__(self, function, *args):
    self.call = (function, args)

  def __reduce__(self):
    return self.call


def _attacks(marker: str) -> dict[str, _Evil]:
  code = f"__import__('pathlib').Path({marker!r}).write_text('x')"
  return {
    "system": _Evil(os.system, f"echo > '{marker}'"),
    "eval": _Evil(eval, code),
    "exec": _Evil(exec, code),
    "popen": _Evil(subprocess.Popen, ["touch", marker]),
    "import": _Evil(builtins.__import__, "antigravity"),
    "open": _Evil(open, marker, "w"),
    "getattr": _Evil(getattr, _Evil(builtins.__import__, "os"), "system"),
  }


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("attack", ["system", "eval", "exec", "popen", "import", "open", "getattr"])
def test_a_pickle_runs_nothing(tmp_path, form, attack):
  marker = tmp_path / "marker"
  evil = _attacks(str(marker))[attack]
  path = tmp_path / "x.pth"
  weights = torch.ones(2) if form != "plain" else np.ones(2, np.float32)
  content = {"meta": evil, "state_dict": {"a": weights, "b": evil}}
  if form == "plain":
    path.write_bytes(pickle.dumps(content))
  else:
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
  found = read_file(path)
  assert found.tensors["a"].tolist() == [1, 1]
  assert list(found.opaque) == ["b"]
  assert not marker.exists()


def test_the_attack_would_have_run(tmp_path):
  """The control: without the restricted reader the marker appears."""
  marker = tmp_path / "marker"
  pickle.loads(pickle.dumps(_attacks(str(marker))["eval"]))
  assert marker.exists()


def test_an_npz_of_objects_is_refused_unexecuted(tmp_path):
  marker = tmp_path / "marker"
  np.savez(tmp_path / "x.npz", a=np.array([_attacks(str(marker))["eval"]], object))
  with pytest.raises(ValueError, match="never unpickled"):
    read_file(tmp_path / "x.npz")
  assert not marker.exists()


def test_a_tensor_cannot_reach_outside_its_storage(tmp_path):
  """Strides and offsets are the file's word; they are checked before memory is looked at."""
  torch.save({"a": torch.ones(2, 3)}, tmp_path / "x.pth")
  with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w") as new:
    for name in old.namelist():
      data = old.read(name)
      if name.endswith("data.pkl"):
        assert data.count(b"K\x02K\x03\x86") == 1  # the shape (2, 3)
        data = data.replace(b"K\x02K\x03\x86", b"K\x02K\x7f\x86")
      new.writestr(name, data)
  with pytest.raises(ValueError, match="damaged at 'a'"):
    read_file(tmp_path / "y.pth")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "npz"])
def test_cut_and_changed_files_give_a_sentence_or_arrays(tmp_path, form):
  state = {"w": torch.arange(40.0).reshape(8, 5), "b": torch.ones(3)}
  path, broken = tmp_path / "x", tmp_path / "broken"
  if form == "npz":
    with path.open("wb") as file:
      np.savez(file, **{k: v.numpy() for k, v in state.items()})
  elif form == "safetensors":
    safetensors.torch.save_file(state, path)
  else:
    torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
  data = path.read_bytes()
  rng = random.Random(0)
  for n in {0, 1, 9, len(data) // 2, len(data) - 1}:
    broken.write_bytes(data[:n])
    with pytest.raises(ValueError, match=r"download it again|not a weight file"):
      read_file(broken)
  for _ in range(150):
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
      changed[rng.randrange(len(changed))] = rng.randrange(256)
    broken.write_bytes(changed)
    try:
      read_file(broken)
    except ValueError as error:
      assert str(broken) in str(error)


@pytest.mark.parametrize(
  "opcodes",
  [
    pickle.BYTEARRAY8 + (1 << 30).to_bytes(8, "little"),
    pickle.BINBYTES8 + (1 << 30).to_bytes(8, "little"),
    pickle.EMPTY_DICT + pickle.LONG_BINPUT + (1 << 26).to_bytes(4, "little") + pickle.STOP,
  ],
  ids=["bytearray", "bytes", "memo"],
)
def test_a_stated_length_is_no_allocation(tmp_path, opcodes):
  (tmp_path / "x.pth").write_bytes(pickle.PROTO + b"\x05" + opcodes)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match=r"damaged|holds no named tensors|a pickle of"):
      read_file(tmp_path / "x.pth")
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    (b"\n <html>404</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git-lfs pointer"),
    (b"\x89PNG\r\n\x1a\n", "not a weight file"),
    (pickle.dumps([1, 2]), "a pickle of a list"),
    (pickle.dumps({"epoch": 3}), "holds no named tensors: it is a dict with the keys 'epoch'"),
  ],
)
def test_files_that_are_no_weights(tmp_path, content, sentence):
  (tmp_path / "x.pth").write_bytes(content)
  with pytest.raises(ValueError, match=sentence):
    read_file(tmp_path / "x.pth")


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path):
  torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
  with pytest.raises(ValueError, match=r"torch.nn.modules.linear.Linear object.*save its state_dict"):
    read_file(tmp_path / "x.pth")


def test_torchscript_and_other_zips_are_refused(tmp_path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
      archive.writestr(name, b"")
  (tmp_path / "x.pt").write_bytes(buffer.getvalue())
  with pytest.raises(ValueError, match="TorchScript program"):
    read_file(tmp_path / "x.pt")
  with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
    archive.writestr("readme.txt", b"hello")
  with pytest.raises(ValueError, match=r"without PyTorch's data.pkl"):
    read_file(tmp_path / "y.pt")


def test_a_missing_file_names_the_nearest(tmp_path):
  np.savez(tmp_path / "cgnet_m3n21.npz", a=np.ones(1))
  with pytest.raises(ValueError, match=r"did you mean '.*cgnet_m3n21.npz'"):
    read_file(tmp_path / "cgnet_m3n12.npz")
  with pytest.raises(ValueError, match=r"the folder '.*nowhere' does not exist"):
    read_file(tmp_path / "nowhere" / "x.npz")
