"""Which part of a model is the first that every device has whole, where rows are spread."""

import pytest

import jaxseg
from jaxseg.models import first_whole_stage

SMALL = dict(depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
  ("name", "fields", "size", "spatial", "first"),
  [
    # MSCA reads 12 rows of a neighbour: of 512, stage 3 has 32 rows, 16 for each of two devices.
    ("segnext_tiny", SMALL, (512, 64), 1, None),
    ("segnext_tiny", SMALL, (512, 64), 2, "stage4"),
    ("segnext_tiny", SMALL, (512, 64), 4, "stage3"),
    ("segnext_tiny", SMALL, (1536, 64), 4, None),
    ("segformer_b0", SMALL, (512, 64), 4, None),
    ("segformer_b0", SMALL, (512, 64), 32, "stage1"),
    ("cgnet_m3n21", dict(num_blocks=(2, 2)), (64, 64), 4, "stage3"),
    ("deeplabv3plus_resnet50", {}, (512, 64), 4, "decoder"),
    ("deeplabv3plus_mobilenetv2", {}, (513, 64), 4, "stem"),
  ],
)
def test_first_whole_stage(name, fields, size, spatial, first):
  model = jaxseg.create_model(name, num_classes=3, encoder=fields)
  assert first_whole_stage(model, size, spatial=spatial) == first
