"""Every layout writes what it reads and reads what it writes, under its own names only; published shapes."""

import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy

import jaxseg
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.hub import loading
from jaxseg.pretrained import LAYOUTS, tree
from jaxseg.pretrained.weights import Weights
from tests.hub.small import init, same

SMALL_RESNET = dict(width=8, stage_sizes=(1, 1, 2, 1))
SMALL = {
  "segnext_tiny": (
    dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1)),
    dict(channels=32, ham_channels=32, rank=4),
  ),
  "mscan_tiny": (dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1)), {}),
  "segformer_b0": (dict(dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)), dict(width=16)),
  "mit_b0": (dict(dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)), {}),
  "cgnet_m3n21": (dict(widths=(8, 16, 32), num_blocks=(2, 2), reductions=(4, 8)), {}),
  "cgnet_m3n21_encoder": (dict(widths=(8, 16, 32), num_blocks=(2, 2), reductions=(4, 8)), {}),
  "resnet50": (SMALL_RESNET, {}),
  "deeplabv3_resnet50": (SMALL_RESNET, dict(channels=16)),
  "deeplabv3plus_resnet50": (SMALL_RESNET, dict(channels=16)),
  "deeplabv2_resnet101": (SMALL_RESNET, {}),
  "vgg16": ({}, {}),
  "mobilenetv2": ({}, {}),
  "deeplabv3_mobilenetv2": ({}, {}),
  "deeplabv3plus_mobilenetv2": ({}, {}),
}


# What each publisher's models have that ours have not by default.
PUBLISHED = {
  "segformer/mmseg": (dict(epsilons="mmseg"), dict(projection="conv", concat_order="fine_to_coarse")),
  "segformer/hf": (dict(epsilons="hf"), dict(dropout="elements")),
  "segformer/hf4": (dict(epsilons="hf"), dict(dropout="elements")),
  "cgnet/mmseg": ({}, dict(use_bias=True)),
  "deeplab/mmseg": (dict(stem="v1c", output_stride=8), dict(fuse_kernel=3)),
  "deeplab/torchvision": (dict(output_stride=8), dict(extra_conv=True)),
  "resnet/mmseg_backbone": (dict(stem="v1c"), {}),
  "mobilenet/mmseg": (dict(output_stride=8), dict(fuse_kernel=3, rates=(12, 24, 36))),
  "mobilenet/tflite": (dict(folded=True, padding="same", output_stride=8), dict(folded=True)),
}
# Layouts with a model that they have to hold completely; of others any one will do.
WHOLE = {
  "cgnet/official": "cgnet_m3n21",
  "cgnet/mmseg": "cgnet_m3n21",
  **{f"segnext/{name}": "segnext_tiny" for name in ("official", "mmseg")},
  **{f"segnext/{name}_backbone": "mscan_tiny" for name in ("official", "mmseg")},
  **{f"segformer/{name}": "segformer_b0" for name in ("nvlabs", "mmseg", "hf", "hf4")},
  **{f"segformer/{name}_backbone": "mit_b0" for name in ("nvlabs", "mmseg", "hf", "hf4")},
  "deeplab/mmseg": "deeplabv3plus_resnet50",
  "deeplab/torchvision": "deeplabv3_resnet50",
  "deeplab/kazuto1011": "deeplabv2_resnet101",
  "deeplab/kazuto1011_single": "deeplabv2_resnet101",
  "mobilenet/mmseg": "deeplabv3plus_mobilenetv2",
  "mobilenet/tflite": "deeplabv3_mobilenetv2",
  "resnet/torchvision_backbone": "resnet50",
  "resnet/mmseg_backbone": "resnet50",
  "vgg/torchvision_backbone": "vgg16",
}


def key(layout) -> str:
  return f"{layout.family}/{layout.name}"


def claims():
  cases = [(layout, arch) for layout in LAYOUTS for arch in SMALL if arch.startswith(layout.archs)]
  return [pytest.param(*case, id=f"{key(case[0])}-{case[1]}") for case in cases]


def test_each_layout_holds_a_model():
  assert set(WHOLE) <= {key(layout) for layout in LAYOUTS}
  for layout in LAYOUTS:
    archs = [arch for arch in SMALL if arch.startswith(layout.archs)]
    assert archs, f"{key(layout)} is for {layout.archs}: give one of them a small form in SMALL"
    if key(layout) not in WHOLE:
      refusals = [written(layout, arch)[2] for arch in archs]
      assert "" in refusals, f"{key(layout)} holds none of {archs} completely: {refusals[0]}"


def written(layout, arch):
  """(variables, the tensors of the file, "") of the small model.

  Where the layout has no place for a leaf: None, and the sentence that names the first such leaves.
  """
  encoder, decoder = SMALL[arch]
  theirs = PUBLISHED.get(key(layout).removesuffix("_backbone"), PUBLISHED.get(key(layout), ({}, {})))
  encoder, alone = encoder | theirs[0], arch in ENCODERS
  decoder = {} if alone else decoder | theirs[1]
  if arch == "deeplabv3plus_resnet50":
    decoder |= dict(separable=True)
  num_classes = None if arch == "vgg16" else 5
  model, variables = init(num_classes, decoder or None, name=arch, encoder=encoder)
  net = jaxseg.Net(model, variables, jaxseg.types.Preprocess(), (), np.zeros((0, 3), np.uint8), arch)
  try:
    return variables, jaxseg.to_torch(net, layout=layout.name), ""
  except UserError as error:
    assert "has no name for" in str(error)
    assert WHOLE.get(key(layout)) != arch, error
    return variables, None, str(error)


@pytest.mark.parametrize(("layout", "arch"), claims())
def test_what_is_written_is_read_back(layout, arch, tmp_path):
  """Or it is refused in one sentence: a layout never writes names of which it is not recognised."""
  variables, state, _ = written(layout, arch)
  if state is None:
    return
  for name in state:
    assert re.fullmatch(layout.pattern, name) or layout.is_unused(name), name
  safetensors.numpy.save_file(state, tmp_path / "x.safetensors")
  back = jaxseg.from_pretrained(tmp_path / "x.safetensors")
  assert (back.arch, back.layout) == (arch, layout.name)
  same(back.variables, variables)


# Published checkpoints that no model here can hold → what their refusal says they are.
REFUSED = {
  "mmseg/DeepLabV3+_R18": "ResNet of basic blocks",
  "torchvision/deeplabv3_mobilenet_v3_large": "torchvision on MobileNetV3",
  "torchvision/fcn_resnet50": "ResNet model of torchvision",
  "torchvision/vgg16_bn": "VGG with BatchNorm",
  **{
    f"transformers-auto-model/Francesco_resnet{n}-224-1k": "ResNet of transformers" for n in (26, 34, 50, 152)
  },
}


def test_published_shapes_are_accepted_or_refused_by_what_they_are(shared):
  wrong = {}
  for name, shapes in json.loads((shared / "reference" / "published_shapes.json").read_text()).items():
    one = np.zeros((), np.float32)
    tensors = {tensor: np.broadcast_to(one, shape) for tensor, shape in shapes.items()}
    found = Weights(tensors, pathlib.Path(name))
    try:
      file = loading.identify(found, None)
      fields = loading.model_fields(file.told, file.told.arch, None, None, None)
      wanted = loading.build(found, file.told.arch, fields)[1]
      differences = tree.fill(found, file.layout, wanted)[1]
      loading.drop_spare(differences, file, wanted)
      if differences or name in REFUSED:
        wrong[name] = differences.text() or "accepted"
    except UserError as error:
      if name not in REFUSED or REFUSED[name] not in str(error):
        wrong[name] = str(error)
  assert not wrong, json.dumps(wrong, indent=1)
