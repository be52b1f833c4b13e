"""Every layout writes what it reads and reads what it writes, under its own names only; published shapes."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import jaxseg
from jaxseg.errors import UserError
from jaxseg.hub import loading
from jaxseg.pretrained import LAYOUTS, keymap, tree
from jaxseg.pretrained.weights import Weights
from tests.hub.small import init, same

SMALL_RESNET = dict(width=8, stage_sizes=(1, 1, 2, 1))
SMALL = {
  "segnext_tiny": (
    dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1)),
    dict(channels=16, ham_channels=16, rank=4),
  ),
  "mscan_tiny": (dict(dims=(8, 8, 16, 16), depths=(1, 1, 2, 1)), {}),
  "segformer_b0": (dict(dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)), dict(width=16)),
  "mit_b0": (dict(dims=(8, 16, 16, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)), {}),
  "mit_b1": ({}, {}),
  "cgnet_m3n21": (dict(widths=(8, 16, 32), num_blocks=(2, 2), reductions=(4, 8)), {}),
  "cgnet_m3n21_encoder": (dict(widths=(8, 16, 32), num_blocks=(2, 2), reductions=(4, 8)), {}),
  "resnet50": (SMALL_RESNET, {}),
  "resnet101": (SMALL_RESNET, {}),
  "deeplabv3_resnet50": (SMALL_RESNET, dict(channels=16)),
  "deeplabv3plus_resnet50": (SMALL_RESNET, dict(channels=16)),
  "deeplabv2_resnet101": (SMALL_RESNET, {}),
  "vgg16": ({}, {}),
  "mobilenetv2": ({}, {}),
  "deeplabv3_mobilenetv2": ({}, {}),
  "deeplabv3plus_mobilenetv2": ({}, {}),
}


def claims():
  for layout in LAYOUTS:
    for arch in SMALL:
      if arch.startswith(layout.archs):
        for num_classes in (5, None):
          yield pytest.param(
            layout, arch, num_classes, id=f"{layout.family}/{layout.name}-{arch}-{num_classes}"
          )


def fields_of(layout, arch, num_classes):
  """The fields of the models that the layout's publishers have."""
  encoder, decoder = SMALL[arch]
  told = layout.detect({})
  encoder = {k: v for k, v in told.encoder.items() if k not in ("depths", "dims", "stage_sizes")} | encoder
  fields = {
    "encoder": encoder,
    "decoder": {k: v for k, v in told.decoder.items() if k != "channels"} | decoder,
  }
  return fields


@pytest.mark.parametrize(("layout", "arch", "num_classes"), list(claims()))
def test_round_trip(layout, arch, num_classes, tmp_path):
  fields = fields_of(layout, arch, num_classes)
  try:
    model, variables = init(num_classes, fields["decoder"] or None, name=arch, encoder=fields["encoder"])
  except UserError as e:
    pytest.fail(str(e))
  net = jaxseg.Net(model, variables, jaxseg.types.Preprocess(), (), np.zeros((0, 3), np.uint8), arch)
  state = jaxseg.to_torch(net, layout=layout.name)
  for name in state:
    assert re.fullmatch(layout.pattern, name) or layout.is_unused(name), name
  safetensors.numpy.save_file(state, tmp_path / "x.safetensors")
  back = jaxseg.from_pretrained(tmp_path / "x.safetensors")
  assert (back.arch, back.layout) == (arch, layout.name)
  same(back.variables, variables)
