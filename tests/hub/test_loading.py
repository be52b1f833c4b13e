"""`from_pretrained`, `load_pretrained`, `to_torch`: sources, facts, errors, transfer, workdirs."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxseg
from jaxseg.pretrained import published
from jaxseg.types import Preprocess
from tests.hub.small import TINY, init, same

KEEP = ("decoder/classifier/.*",)


def test_what_was_assumed_stays_assumed_in_a_saved_copy(file, tmp_path):
  net = jaxseg.from_pretrained(file())
  assert set(net.assumed) == {"preprocess", "licence", "classes"}
  net.save_pretrained(tmp_path / "copy")
  assert jaxseg.from_pretrained(tmp_path / "copy").assumed == net.assumed
  told = jaxseg.from_pretrained(tmp_path / "copy", preprocess=Preprocess())
  assert set(told.assumed) == {"licence", "classes"}


_PUBLISHED = "cgnet_680x680_60k_cityscapes_20201101_110253-4c0b2f2d.pth"


def published_as(file, monkeypatch):
  """A file under a published name, whose checksum is the known one."""
  path = file(_PUBLISHED)
  checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
  monkeypatch.setitem(
    published.FILES, _PUBLISHED, dataclasses.replace(published.FILES[_PUBLISHED], checksum=checksum)
  )
  return path


def test_another_file_under_a_published_name_is_refused(file):
  path = file(_PUBLISHED)
  with pytest.raises(ValueError, match=r"SHA-256 begins with 4c0b2f2d, its own begins with .*rename it"):
    jaxseg.from_pretrained(path)
  net = jaxseg.from_pretrained(path, preprocess=Preprocess())
  assert net.lineage["weights"] == _PUBLISHED and "licence" in net.assumed
  assert jaxseg.from_pretrained(path.rename(path.with_name("mine.pth"))).assumed


def test_facts_come_from_the_surest_source(file, state, tmp_path, monkeypatch):
  """Argument, then the file's metadata, then the record of a published name, then the layout's default."""
  mmseg = (72.39239876, 82.90891754, 73.15835921)
  plain = jaxseg.from_pretrained(file())
  assert (plain.preprocess.mean, "preprocess" in plain.assumed) == (mmseg, True)
  claimed = published_as(file, monkeypatch)
  known = jaxseg.from_pretrained(claimed)
  assert (known.preprocess.mean, "preprocess" in known.assumed) == (mmseg, False)
  meta = {"config": "mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]", "CLASSES": tuple("vwxyz")}
  weights = {k: torch.tensor(v) for k, v in state.items()}
  torch.save({"state_dict": weights, "meta": meta}, tmp_path / "meta.pth")
  meant = jaxseg.from_pretrained(tmp_path / "meta.pth")
  assert (meant.preprocess.mean, meant.preprocess.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
  assert meant.classes == tuple("vwxyz") and set(meant.assumed) == {"licence"}
  said = jaxseg.from_pretrained(tmp_path / "meta.pth", preprocess=dict(mean=[9, 9, 9], std=[1, 1, 1]))
  assert said.preprocess == Preprocess((9.0, 9.0, 9.0), (1.0, 1.0, 1.0))
  with pytest.raises(ValueError, match="preprocess has no field 'man'; known: mean, std"):
    jaxseg.from_pretrained(tmp_path / "meta.pth", preprocess=dict(man=[9, 9, 9]))
  with pytest.raises(ValueError, match="expected finite numbers"):
    jaxseg.from_pretrained(tmp_path / "meta.pth", preprocess=dict(mean=9))
  with pytest.raises(ValueError, match="channel_order is 'gbr', expected one of rgb, bgr"):
    jaxseg.from_pretrained(tmp_path / "meta.pth", preprocess=dict(channel_order="gbr"))


def test_half_and_bfloat16_files_come_back_to_the_bit(state, tmp_path):
  for dtype in (torch.float16, torch.bfloat16):
    source = {
      k: torch.tensor(v).to(dtype) if v.dtype == np.float32 else torch.tensor(v) for k, v in state.items()
    }
    torch.save(source, tmp_path / "x.pth")
    net = jaxseg.from_pretrained(tmp_path / "x.pth")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(net.variables))
    back = jaxseg.to_torch(net)
    for name, value in source.items():
      assert back[name].tobytes() == value.reshape(-1).view(torch.uint8).numpy().tobytes(), name


def test_prefixes_and_wrappers(state, own, tmp_path):
  inner = {f"module.{k}": torch.tensor(v) for k, v in state.items()}
  for key in ("state_dict", "model", "model_state"):
    torch.save({"epoch": 3, key: inner}, tmp_path / "x.pth")
    same(jaxseg.from_pretrained(tmp_path / "x.pth").variables, own.variables)


def test_missing_unexpected_and_shapes_in_one_sentence(file):
  path = file(
    drop=("backbone.stem.1.conv.weight", "backbone.level2.1.f_sur.weight"),
    **{
      "decode_head.conv_seg.other": np.zeros(2, np.float32),
      "backbone.stem.2.bn.bias": np.zeros(9, np.float32),
    },
  )
  with pytest.raises(ValueError) as error:
    jaxseg.from_pretrained(path)
  text = str(error.value)
  assert "\n" not in text
  assert "missing (2): backbone.level2.1.f_sur.weight, backbone.stem.1.conv.weight; " in text
  assert "unexpected (1): decode_head.conv_seg.other" in text
  assert "other shape (1): backbone.stem.2.bn.bias is (9,), the model wants (8,)" in text


def test_bad_requests(file, tmp_path):
  path = file()
  with pytest.raises(ValueError, match=r"has 5 classes, not 7; .*load_pretrained\(.*decoder/classifier"):
    jaxseg.from_pretrained(path, num_classes=7)
  with pytest.raises(ValueError, match="no model called 'cgnet_m3n12'; did you mean 'cgnet_m3n21'"):
    jaxseg.from_pretrained(path, arch="cgnet_m3n12")
  with pytest.raises(ValueError, match=r"cgnet weights \(mmseg\), not those of 'mscan_tiny'"):
    jaxseg.from_pretrained(path, arch="mscan_tiny")
  with pytest.raises(ValueError, match="has no field 'use_bais'; did you mean 'use_bias'"):
    jaxseg.from_pretrained(path, decoder=dict(use_bais=True))
  with pytest.raises(ValueError, match=r"there is no file .*did you mean '.*x.pth'"):
    jaxseg.from_pretrained(tmp_path / "y.pth")
  torch.save({"conv9.weight": torch.ones(3), "conv9.bias": torch.ones(3)}, path)
  with pytest.raises(ValueError, match=r"'conv9.weight'.* belong to no known layout; known: cgnet/official"):
    jaxseg.from_pretrained(path)
  with pytest.raises(ValueError, match="cgnet_m3n21 has no layout 'hf'; known: official, mmseg"):
    jaxseg.to_torch(_net(tmp_path), layout="hf")
  path.write_bytes(b"short")
  with pytest.raises(ValueError, match="has only 5 bytes: was it cut short"):
    jaxseg.from_pretrained(path)


def test_a_published_name_on_other_classes_names_none(file, monkeypatch):
  """Somebody trained it further and kept the name: the classes are not Cityscapes' any more."""
  net = jaxseg.from_pretrained(published_as(file, monkeypatch))
  assert net.classes == tuple(f"class {i}" for i in range(5)) and "classes" in net.assumed


def test_variables_of_another_family(file):
  model = jaxseg.create_model("mit_b0")
  init = functools.partial(model.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
  with pytest.raises(ValueError, match=r"holds cgnet weights \(mmseg\), and the given .* another family"):
    jaxseg.load_pretrained(file(), shapes)


def _net(tmp_path):
  model, variables = init()
  return jaxseg.Net(model, variables, Preprocess(), tuple("abcde"), np.zeros((5, 3), np.uint8), "cgnet_m3n21")


def test_to_torch_without_a_place_for_the_bias(own):
  with pytest.raises(ValueError, match="cgnet/official has no name for decoder/classifier/bias"):
    jaxseg.to_torch(own, layout="official")


def test_directories(own, state, tmp_path):
  with pytest.raises(ValueError, match="holds no weights"):
    jaxseg.from_pretrained(tmp_path)
  np.savez(tmp_path / "a.npz", **state)
  same(jaxseg.from_pretrained(tmp_path).variables, own.variables)
  np.savez(tmp_path / "b.npz", **state)
  with pytest.raises(ValueError, match=r"several weight files \(a.npz, b.npz\); name one"):
    jaxseg.from_pretrained(tmp_path)


def test_a_directory_of_transformers_gives_labels_and_statistics(state, tmp_path):
  np.savez(tmp_path / "x.npz", **state)
  (tmp_path / "config.json").write_text(json.dumps({"id2label": {str(i): f"n{i}" for i in range(5)}}))
  processor = {
    "image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 1.0, 1.0], "size": {"height": 32, "width": 48},
    "resample": 2, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
  }  # fmt: skip
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
  net = jaxseg.from_pretrained(tmp_path)
  assert net.classes == ("n0", "n1", "n2", "n3", "n4")
  assert net.preprocess.size == (32, 48) and net.preprocess.resize == "bilinear"
  np.testing.assert_allclose(net.preprocess.mean, (127.5, 63.75, 0))
  np.testing.assert_allclose(net.preprocess.std, (127.5, 255, 255))
  assert net.predict(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="not readable JSON"):
    jaxseg.from_pretrained(tmp_path)


def test_shards_are_read_together_and_only_from_their_directory(own, state, tmp_path):
  names = list(state)
  for i, part in enumerate((names[:50], names[50:])):
    np.savez(tmp_path / f"{i}.npz", **{n: state[n] for n in part})
  index = {"weight_map": {n: f"{int(i >= 50)}.npz" for i, n in enumerate(names)}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  same(jaxseg.from_pretrained(tmp_path).variables, own.variables)
  index["weight_map"][names[0]] = "../0.npz"
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(ValueError, match=r"names '../0.npz', expected a file of the same directory"):
    jaxseg.from_pretrained(tmp_path)


def test_transfer_to_another_number_of_classes(file, own):
  _, fresh = init(num_classes=3, decoder=dict(use_bias=False), seed=7)
  with pytest.raises(
    ValueError, match=r"conv_seg.weight is \(5, 64, 1, 1\), the model wants \(3, 64, 1, 1\)"
  ):
    jaxseg.load_pretrained(file(), fresh)
  filled = jaxseg.load_pretrained(file(), fresh, keep=KEEP)
  same(filled["params"]["encoder"], own.variables["params"]["encoder"])
  same(filled["batch_stats"], own.variables["batch_stats"])
  same(filled["params"]["decoder"], fresh["params"]["decoder"])
  wrong = file(drop=("backbone.stem.0.bn.weight",), **{"backbone.stem.0.bn.strange": np.zeros(1, np.float32)})
  with pytest.raises(
    ValueError, match=r"missing \(1\): backbone.stem.0.bn.weight; unexpected \(1\): .*strange"
  ):
    jaxseg.load_pretrained(wrong, fresh, keep=KEEP)
  with pytest.raises(
    ValueError, match=r"'decoder/clasifier/.\*', which matches no path; there is 'decoder/classifier"
  ):
    jaxseg.load_pretrained(file(), fresh, keep=("decoder/clasifier/.*",))
  with pytest.raises(ValueError, match="expected a sequence of patterns"):
    jaxseg.load_pretrained(file(), fresh, keep="decoder/.*")
  with pytest.raises(ValueError, match="no regular expression"):
    jaxseg.load_pretrained(file(), fresh, keep=("decoder/(",))


def test_a_lone_encoder_takes_its_part_of_a_whole_file_and_back(file, own, state, tmp_path):
  _, encoder = init(None, name="cgnet_m3n21_encoder", seed=3)
  own.save_pretrained(tmp_path / "mine")
  for source in (file(), tmp_path / "mine"):
    filled = jaxseg.load_pretrained(source, encoder)
    same(filled["params"], own.variables["params"]["encoder"])
    same(filled["batch_stats"], own.variables["batch_stats"]["encoder"])
    net = jaxseg.from_pretrained(source, arch="cgnet_m3n21_encoder")
    same(net.variables, filled)
  with pytest.raises(ValueError, match="without a segmentation head"):
    net.predict(np.zeros((64, 64, 3), np.uint8))
  backbone = file(drop=("decode_head.conv_seg.weight", "decode_head.conv_seg.bias"))
  net = jaxseg.from_pretrained(backbone)
  assert net.arch == "cgnet_m3n21_encoder" and net.classes == ()
  with pytest.raises(ValueError, match=r"missing \(2\): decode_head.conv_seg"):
    jaxseg.load_pretrained(backbone, own.variables)
  same(jaxseg.load_pretrained(backbone, own.variables, keep=("decoder/.*",)), own.variables)


def test_transfer_keeps_where_and_what_the_values_are(file, own):
  host = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), own.variables)
  filled = jaxseg.load_pretrained(file(), host)
  assert all(isinstance(x, np.ndarray) and x.dtype == jnp.bfloat16 for x in jax.tree.leaves(filled))


def test_a_workdir_gives_its_best_weights(own, tmp_path):
  """Of `best/` where it is there, else of the latest checkpoint."""
  from jaxseg.checkpoint import Checkpoints
  from jaxseg.train import results
  from jaxseg.train.step import TrainState

  worse = jax.tree.map(lambda x: x + 1, own.variables)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    for step, variables in ((1, own.variables), (2, worse)):
      state = TrainState(
        step=jnp.int32(step), params=variables["params"], opt_state=(),
        model_state={"batch_stats": variables["batch_stats"]}, apply_fn=own.model.apply, tx=optax.identity(),
      )  # fmt: skip
      checkpoints.save(step, state)
      checkpoints.wait()
  fields = {"num_classes": 5, "scales": [1.0], "encoder": TINY, "decoder": {"use_bias": True}}
  config = {
    "jaxseg_version": "0",
    "model": {"arch": "cgnet_m3n21", **fields},
    "classes": list("abcde"),
    "palette": own.palette.tolist(),
    "preprocess": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "channel_order": "bgr"},
  }  # fmt: skip
  (tmp_path / "config.json").write_text(json.dumps(config))
  same(jaxseg.from_pretrained(tmp_path).variables, worse)
  results.write_best(tmp_path, config, own.variables, {"step": 1, "mIoU": 0.6})
  net = jaxseg.from_pretrained(tmp_path)
  same(net.variables, own.variables)
  assert (net.classes, net.preprocess) == (own.classes, own.preprocess)
  assert results.step_of_best(tmp_path) == 1


def test_the_hub_offline_gives_the_cache_or_a_sentence(own, tmp_path):
  """In a process of its own: the client reads its settings when it is imported."""
  snapshot = tmp_path / "hub" / "models--me--mine" / "snapshots" / ("a" * 40)
  own.save_pretrained(snapshot)
  refs = tmp_path / "hub" / "models--me--mine" / "refs"
  refs.mkdir()
  (refs / "main").write_text("a" * 40)
  code = (
    "import jaxseg\n"
    "print(jaxseg.from_pretrained('me/mine').classes)\n"
    "try:\n  jaxseg.from_pretrained('me/other')\n"
    "except ValueError as error:\n  print(error)\n"
  )
  environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
  out = subprocess.run(
    [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
  ).stdout.splitlines()
  assert out[0] == str(own.classes)
  assert out[1].startswith(
    "there is no file or directory 'me/other', and the Hugging Face hub did not give it"
  )


def test_loading_never_imports_torch(own, state, file, tmp_path):
  code = (
    "import sys, jaxseg\n"
    f"net = jaxseg.from_pretrained({str(file())!r})\n"
    "jaxseg.to_torch(net, layout='mmseg')\n"
    "assert 'torch' not in sys.modules and 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
