"""configs/finetune.py trains from every kind of weight file there is, three steps each.

Published layouts by their parity cases and real files; every family also from a folder of our own
`save_pretrained`, and from encoders alone.
"""

import math

import numpy as np
import pytest

import jaxseg
from jaxseg.train import loop
from jaxseg.train.metrics import read_metrics
from tests import parity_cases
from tests.configs.test_configs import load
from tests.configs.test_finetune import make_folder
from tests.hub.small import TINY, init

pytestmark = pytest.mark.usefixtures("quick_depthwise")
PARITY = [name for name in parity_cases.CASES if not name.startswith("train-")]
FILES = {
  "cgnet/cityscapes_m3n21_trainset.npz": "cgnet_m3n21",
  "deeplabv3_mnv2/deeplabv3_257_mv_gpu.npz": "deeplabv3_mobilenetv2",
}
SMALL_MSCAN = dict(dims=(8, 8, 16, 16), depths=(1, 1, 1, 1))
SMALL_MIT = dict(dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
SMALL_RESNET = dict(width=8, stage_sizes=(1, 1, 1, 1))
# Systems as our own files: one of each encoder with each decoder; the large ones shrunk by their fields.
OWN = {
  "cgnet_m3n21": ("cgnet_m3n21", TINY, {}),
  "segnext_tiny": ("segnext_tiny", SMALL_MSCAN, dict(channels=32, ham_channels=32, rank=4)),
  "segformer_b0": ("segformer_b0", SMALL_MIT, dict(width=16)),
  "deeplabv3_resnet50": ("deeplabv3_resnet50", SMALL_RESNET | {"multi_grid": ()}, dict(channels=8)),
  "deeplabv3plus_resnet50": ("deeplabv3plus_resnet50", SMALL_RESNET | {"multi_grid": ()}, dict(channels=8)),
  "deeplabv2_resnet101": ("deeplabv2_resnet101", SMALL_RESNET, {}),
  "deeplabv1_vgg16": ("deeplabv1_vgg16", dict(widths=(8, 8, 8, 8, 8)), dict(width=8)),
  # An encoder alone, and with an ImageNet classifier.
  "mit_b0 alone": ("segformer_b0", SMALL_MIT, {}),
  "mscan_tiny alone": ("segnext_tiny", SMALL_MSCAN, {}),
}


# An encoder alone; a whole system runs in test_finetune.py, and the others differ in the key map, which the
# first test shows.
QUICK = ("mit_b0 alone",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return make_folder(tmp_path_factory.mktemp("data") / "own", count=4)


@pytest.mark.parametrize("case", [*PARITY, *FILES])
def test_the_config_is_made_from_every_published_layout(request, folder, tmp_path, case):
  """What ended in a KeyError; the three steps of the full-size models are slow."""
  if case in PARITY:
    source = tmp_path / "x.npz"
    np.savez(source, **parity_cases.load(case)[0])
    arch = parity_cases.describe(case)["model"].split("-")[1]
  else:
    source, arch = request.getfixturevalue("shared") / "weights" / case, FILES[case]
  config = load(f"finetune:{arch}", f"init_from={source}", f"data.dir={folder}")
  assert config.model.arch == arch and config.data.classes == ("class0", "class1", "class2")


def three_steps(system: str, source, folder, tmp_path) -> None:
  sizes = ("total_steps=3", "batch_size=2", "eval.batch_size=1", "data.crop_size=32,32", "eval.every_steps=0")
  rest = ("data.workers=0", "log.panel_every_steps=0", "log.every_steps=1", "checkpoint.every_steps=0")
  where = (f"init_from={source}", f"data.dir={folder}", f"data.data_dir={folder.parent / 'prepared'}")
  config = load(f"finetune:{system}", *where, *sizes, *rest)
  loop.train(config, tmp_path / "run")
  losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
  assert len(losses) == 3 and all(map(math.isfinite, losses)), losses


@pytest.mark.full
@pytest.mark.parametrize("case", PARITY)
def test_from_a_published_layout(folder, tmp_path, case):
  state, *_ = parity_cases.load(case)
  np.savez(tmp_path / "x.npz", **state)
  three_steps(
    parity_cases.describe(case)["model"].split("-")[1],
    tmp_path / "x.npz",
    folder,
    tmp_path,
  )


@pytest.mark.full
@pytest.mark.parametrize("name", FILES)
def test_from_a_published_file(shared, folder, tmp_path, name):
  three_steps(FILES[name], shared / "weights" / name, folder, tmp_path)


@pytest.mark.parametrize(
  "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in OWN]
)
def test_from_our_own_files(folder, tmp_path, name):
  system, encoder, decoder = OWN[name]
  arch = name.removesuffix(" alone")
  alone = arch != system
  model, variables = init(None if alone else 5, None if alone else decoder, name=arch, encoder=encoder)
  fields = {"encoder": encoder} | ({} if alone else {"num_classes": 5, "decoder": decoder})
  names = () if alone else tuple("abcde")
  palette = np.zeros((len(names), 3), np.uint8)
  net = jaxseg.Net(model, variables, jaxseg.types.Preprocess(), names, palette, arch, fields)
  net.save_pretrained(tmp_path / "net")
  three_steps(system, tmp_path / "net", folder, tmp_path)
