"""Exported files give what the model gives, in their own runtimes; what cannot be exported is said before."""

import functools
import sys

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.errors import UserError
from jaxseg.export import check, eight_bits, folding, program, stablehlo
from jaxseg.hub import Net
from jaxseg.types import Preprocess
from tests.hub.small import TINY, init

SMALL_RESNET = dict(width=8, stage_sizes=(1, 1, 1, 1))


def net_of(seed=0, preprocess=Preprocess(), **fields) -> Net:  # noqa: B008
  model, variables = init(seed=seed, **fields)
  classes = tuple("abcde")
  return Net(model, variables, preprocess, classes, np.zeros((5, 3), np.uint8), "small")


def export(net, library, *arguments, **fields):
  """`net.export`; skips a test whose converter is not there, or older than the JAX that is."""
  pytest.importorskip(library)
  try:
    return net.export(*arguments, **fields)
  except UserError as error:
    if jax.__version_info__[:2] > (0, 10) and "does not know JAX" in str(error):
      pytest.skip(str(error))
    raise


@pytest.fixture(scope="module")
def net():
  return net_of()


@pytest.mark.parametrize(
  "fields", [{}, dict(name="deeplabv3plus_resnet50", encoder=SMALL_RESNET)], ids=["cgnet", "deeplabv3plus"]
)
def test_folded_norms_change_nothing(fields):
  model, variables = init(**fields)
  changed, shifts = folding.fold(model, variables)
  norms = sum("var" in path for path, _ in jax.tree_util.tree_leaves_with_path(variables["batch_stats"]))
  assert len(shifts) > norms // 3  # of CGNet many join several maps first
  image = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
  run = jax.jit(functools.partial(model.apply, train=False))
  with folding.folded(shifts):
    folded = model.apply(changed, image, train=False)["logits"]
  wanted = run(variables, image)["logits"]
  assert np.abs(folded - wanted).max() <= 1e-4 * np.abs(wanted).max()


# A residual network has what the small CGNet has not: a max pool, and a branch of one pixel. Its shortcut's
# stride leaves of an open size what the block's leaves.
RESIDUAL = dict(name="deeplabv3plus_resnet50", encoder=SMALL_RESNET | {"multi_grid": ()})


@pytest.mark.parametrize(
  ("fields", "weights"), [({}, "float32"), (RESIDUAL, "int8")], ids=["cgnet", "deeplabv3plus"]
)
@pytest.mark.parametrize(
  ("format", "library", "size"),
  [("stablehlo", "jax", None), ("onnx", "jax2onnx", None), ("litert", "litert_converter", (32, 48))],
)
def test_a_file_gives_what_the_model_gives(tmp_path, fields, weights, format, library, size):
  net = net_of(**fields)
  file = tmp_path / "file"
  found = export(net, library, file, format=format, size=size, output="probabilities", weights=weights)
  assert found.agrees and found.images == 3 and found.bytes == file.stat().st_size
  if weights == "int8":
    assert 0.5 < found.labels_kept <= 1
    kernels = sum(x.size for x in jax.tree.leaves(net.variables["params"]) if x.ndim > 1)
    assert found.bytes < 4 * kernels / 2  # kernels are most of a model


def test_a_fixed_size(net, tmp_path):
  found = net.export(tmp_path / "file", format="stablehlo", size=(32, 48), output="probabilities")
  assert found.agrees and found.images == 3


def test_rounded_kernels_are_near_and_hold_eight_bits():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32) * np.float32(
    [1e-3, 1, 9, 0, 2, 5]
  )
  rounded = eight_bits.round_kernel(kernel)
  assert rounded.values.dtype == np.int8 and rounded.scale.shape == (6,)
  error = np.abs(rounded.kernel() - kernel)
  assert (error <= 0.5001 * np.abs(kernel).max((0, 1, 2)) / 127).all() and (error[..., 3] == 0).all()
  again = eight_bits.round_kernel(rounded.kernel())
  np.testing.assert_array_equal(again.values, rounded.values)


@pytest.mark.parametrize(
  ("format", "library", "size"),
  [("stablehlo", "jax", None), ("onnx", "jax2onnx", None), ("litert", "litert_converter", (32, 48))],
)
def test_of_other_channels(tmp_path, format, library, size):
  channels = 5
  preprocess = Preprocess(tuple(80.0 + c for c in range(channels)), (40.0,) * channels)
  net = net_of(preprocess=preprocess, encoder={**TINY, "in_channels": channels})
  found = export(net, library, tmp_path / "file", format=format, size=size, output="probabilities")
  assert found.agrees and found.images == 3
  with pytest.raises(UserError, match=f"a page reads RGB images, and small takes {channels} channels"):
    net.export(tmp_path / "page", format="web")


def test_another_models_file_is_noticed(net, tmp_path):
  other = net_of(seed=1)
  made = program.make(other, size=(32, 48), batch=2, output="labels")
  file = stablehlo.write(made, tmp_path / "file")
  pictures = check.pictures((32, 48))
  assert check.compare(other, made, stablehlo.RUNNER, file, pictures).agrees
  assert not check.compare(net, made, stablehlo.RUNNER, file, pictures).agrees


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (dict(format="onxx"), "onnx"),
    (dict(size=(16, 64)), "at least 32"),
    (dict(format="litert"), "fixed sizes"),
    (dict(batch=0), "batch is 0"),
    (dict(output="logits"), "'probabilities'"),
    (dict(format="web", output="probabilities"), "label maps"),
    (dict(weights="int4"), "int8"),
  ],
)
def test_what_cannot_be_exported_is_said_first(net, tmp_path, arguments, words):
  with pytest.raises(UserError, match=words):
    net.export(tmp_path / "file", **arguments)
  assert not list(tmp_path.iterdir())


def test_a_model_that_resizes_first_wants_a_size(tmp_path):
  with pytest.raises(UserError, match=r"size=\(512, 512\)"):
    net_of(preprocess=Preprocess(size=(512, 512))).export(tmp_path / "file")


def test_a_folder_is_not_overwritten(net, tmp_path):
  (tmp_path / "kept").write_text("")
  for format in ("stablehlo", "web"):
    with pytest.raises(UserError, match="folder"):
      net.export(tmp_path, format=format)
  with pytest.raises(UserError, match="without a segmentation head"):
    encoder = jaxseg.create_model("cgnet_m3n21_encoder")
    Net(encoder, {}, Preprocess(), (), np.zeros((0, 3), np.uint8), "cgnet_m3n21_encoder").export(
      tmp_path / "x"
    )


@pytest.mark.parametrize(
  ("format", "library"),
  [("stablehlo", "flatbuffers"), ("onnx", "jax2onnx"), ("litert", "litert_converter"), ("web", "jax2onnx")],
)
def test_a_library_that_is_not_installed_is_named(net, tmp_path, monkeypatch, format, library):
  for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(
    UserError, match=f"needs {library}, which is not installed; pip install 'jaxseg\\[export\\]'"
  ):
    net.export(tmp_path / "file", format=format, size=(32, 48))
  assert not list(tmp_path.iterdir())


def test_a_file_that_its_runtime_refuses_is_a_sentence(tmp_path):
  (tmp_path / "file").write_bytes(b"no program")
  sentence = r"^the exported file is refused by its runtime \(.+\), so nothing is kept"
  with pytest.raises(UserError, match=sentence):
    check.run(stablehlo.RUNNER, tmp_path / "file", check.pictures((32, 48)))
