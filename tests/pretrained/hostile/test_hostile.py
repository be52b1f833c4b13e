"""Weight files of an attacker: no code, 1 GB and 10 s at most, a sentence or the right values.

`JAXSEG_HOSTILE=2000` reads so many mutated files instead of a few hundred, and prints the figures of
docs/security.md.
"""

import collections
import json
import os
import pathlib
import random
import struct

import numpy as np
import pytest
import safetensors.numpy
import torch

import jaxseg
from tests.hub.small import TINY, init
from tests.pretrained.hostile import cases
from tests.pretrained.hostile.running import Worker, fault

MUTATED = int(os.environ.get("JAXSEG_HOSTILE", "240"))


@pytest.fixture(scope="module")
def net():
  tiny = TINY | {"num_blocks": (1, 1)}
  model, variables = init(decoder=dict(use_bias=True), encoder=tiny)
  fields = dict(num_classes=5, encoder=tiny, decoder=dict(use_bias=True))
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  return jaxseg.Net(
    model, variables, jaxseg.types.Preprocess(), tuple("abcde"), palette, "cgnet_m3n21", fields
  )


@pytest.fixture(scope="module")
def state(net):
  return jaxseg.to_torch(net, layout="mmseg")


@pytest.fixture(scope="module")
def worker(state, tmp_path_factory):
  sound = tmp_path_factory.mktemp("sound") / "sound.safetensors"
  safetensors.numpy.save_file(dict(state), sound)
  worker = Worker(sound)
  worker.values = worker.read(sound)["values"]
  yield worker
  worker.close()


def test_files_made_by_hand(worker, state, tmp_path):
  marker = tmp_path / "marker"
  wrong = {}
  refused, read = cases.refused(state), cases.read(state, str(marker))
  assert len(refused) + len(read) >= 60
  for name, data in {**{f"refused: {k}": v for k, v in refused.items()}, **read}.items():
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    result = worker.read(path)
    if problem := fault(result, path):
      wrong[name] = problem
    elif name.startswith("refused: ") and "sentence" not in result:
      wrong[name] = "was read"
    elif not name.startswith("refused: ") and "values" not in result:
      wrong[name] = result["sentence"]
    elif name in read and name not in ("half", "bfloat16") and result["values"] != worker.values:
      wrong[name] = "other values"
  assert not marker.exists()
  assert not wrong, json.dumps(wrong, indent=1)


def _broken(data: bytes, rng: random.Random) -> bytes:
  """Some bytes changed, cut, doubled or put in."""
  data = bytearray(data)
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(len(data) or 1)
    kind = rng.randrange(6)
    if kind == 0:
      data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
      data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]))
    elif kind == 2:
      del data[at : at + rng.randint(1, 40)]
    elif kind == 3:
      data[at:at] = data[at : at + rng.randint(1, 200)] * rng.choice([1, 2, 50])
    elif kind == 4:
      data[at:at] = rng.randbytes(rng.randint(1, 8))
    else:
      del data[at:]
  return bytes(data)


_ODD = (
  None,
  True,
  -1,
  0,
  1e308,
  10**30,
  "x\x1b[31m|\n",
  [],
  {},
  [[[]]],
  {"a": 1},
  [1, 2, 3],
  "cgnet_m3n21",
  2**31,
)


def _odd_json(value, rng: random.Random):
  """One value of a JSON tree replaced by something else."""
  if isinstance(value, dict) and value and rng.random() < 0.9:
    key = rng.choice(list(value))
    return {**value, key: _odd_json(value[key], rng)}
  if isinstance(value, list) and value and rng.random() < 0.7:
    at = rng.randrange(len(value))
    return [*value[:at], _odd_json(value[at], rng), *value[at + 1 :]]
  return rng.choice(_ODD)


def _originals(net, state, folder: pathlib.Path) -> dict[str, bytes]:
  tensors = {k: torch.tensor(v) for k, v in state.items()}
  torch.save({"state_dict": tensors, "meta": {"CLASSES": tuple("abcde")}}, folder / "zip")
  torch.save(tensors, folder / "legacy", _use_new_zipfile_serialization=False)
  with (folder / "npz").open("wb") as file:
    np.savez(file, **state)
  net.save_pretrained(folder / "ours")
  files = {name: (folder / name).read_bytes() for name in ("zip", "legacy", "npz")}
  files["safetensors"] = (folder / "ours" / "model.safetensors").read_bytes()
  return files | {"pickle": cases.plain(state), "config": (folder / "ours" / "config.json").read_bytes()}


def _mutant(kind: str, data: bytes, rng: random.Random) -> bytes:
  if kind == "config" and rng.random() < 0.7:
    return json.dumps(_odd_json(json.loads(data), rng)).encode()
  if kind in ("zip", "npz") and rng.random() < 0.7:  # inside the members, their checksums right again
    inner = (lambda name: name.endswith("data.pkl")) if kind == "zip" else (lambda name: rng.random() < 0.1)
    return cases.torch_members(data, lambda name, old: _broken(old, rng) if inner(name) else old)
  if kind == "safetensors" and rng.random() < 0.7:  # inside the header, its length right again
    length = struct.unpack("<Q", data[:8])[0]
    return cases.header(_broken(data[8 : 8 + length], rng), data[8 + length :])
  return _broken(data, rng)


def test_mutated_files(worker, net, state, tmp_path):
  rng = random.Random(13)
  originals = _originals(net, state, tmp_path)
  counts, wrong, slowest = collections.Counter(), {}, 0.0
  for i in range(MUTATED):
    kind = list(originals)[i % len(originals)]
    path = tmp_path / "x.pth"
    data = _mutant(kind, originals[kind], rng)
    if kind == "config":
      (tmp_path / "ours" / "config.json").write_bytes(data)
    else:
      path.write_bytes(data)
    path = tmp_path / "ours" if kind == "config" else path
    result = worker.read(path)
    slowest = max(slowest, result.get("seconds", 0.0))
    if problem := fault(result, path):
      wrong[f"{i} {kind}"] = problem
    same = result.get("values") == worker.values
    counts["sentence" if "sentence" in result else "right values" if same else "changed values"] += 1
  print(f"{MUTATED} mutated files: {dict(counts)}; faults: {len(wrong)}; slowest {slowest:.1f} s")
  assert not wrong, json.dumps(wrong, indent=1)
