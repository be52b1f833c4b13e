"""The real TF-Lite DeepLab v3 on MobileNetV2, and its key map."""

import cv2
import jax
import numpy as np
import pytest

import jaxseg
from jaxseg.pretrained import mobilenet

_PICTURES = ("labelme_2011_000003", "labelme_2011_000006", "labelme_2011_000025")


@pytest.fixture(scope="module")
def folder(shared):
  return shared / "weights" / "deeplabv3_mnv2"


@pytest.fixture(scope="module")
def net(folder):
  return jaxseg.from_pretrained(folder / "deeplabv3_257_mv_gpu.npz")


@pytest.fixture(scope="module")
def apply(net):
  return jax.jit(lambda variables, image: net.model.apply(variables, image, train=False)["logits"])


def test_what_the_file_tells(net, folder):
  assert (net.arch, net.layout, net.fields["num_classes"]) == ("deeplabv3_mobilenetv2", "tflite", 21)
  encoder = net.model.encoder
  assert (encoder.width_multiplier, encoder.divisible_by, encoder.output_stride) == (0.5, 1, 8)
  assert net.preprocess.mean == net.preprocess.std == (127.5, 127.5, 127.5)
  assert net.classes[0] == "background" and "encoder.padding" in net.assumed
  source = dict(np.load(folder / "deeplabv3_257_mv_gpu.npz"))
  assert set(net.unused) == {name for name, value in source.items() if value.dtype == np.int32}
  back = jaxseg.to_torch(net)
  assert list(back) == list(source)
  for name in set(source) - set(net.unused):
    assert back[name].tobytes() == source[name].tobytes(), name


@pytest.mark.parametrize("picture", _PICTURES)
def test_real_pictures(net, apply, folder, picture):
  image = cv2.imread(str(folder / f"{picture}_257.png"))[..., ::-1]
  reference = np.load(folder / f"{picture}_257__float257__logits_os8.npy").reshape(33, 33, 21)
  logits = np.asarray(apply(net.variables, net.preprocess(image)[None]))[0]
  assert np.abs(logits - reference).max() <= 1e-3
  expected = cv2.imread(str(folder / f"{picture}_257__float257__argmax.png"), cv2.IMREAD_UNCHANGED)
  # At the image's size, so the corner rule of the last resize counts as well.
  assert np.mean(net.predict(image) == expected) >= 0.999


@pytest.mark.parametrize("multiplier, divisible_by", [(0.5, 1), (1.0, 8), (1.4, 8)])
def test_shapes_tell_the_width(multiplier, divisible_by):
  encoder = dict(
    output_stride=8, padding="same", folded=True, width_multiplier=multiplier, divisible_by=divisible_by
  )
  decoder = dict(folded=True, align_corners=True)
  model = jaxseg.create_model("deeplabv3_mobilenetv2", num_classes=4, encoder=encoder, decoder=decoder)
  told = mobilenet.TFLITE.detect(
    {
      "MobilenetV2/expanded_conv_16/project/weights": (model.encoder.channels(320), 1, 1, 9),
      "logits/semantic/weights": (4, 1, 1, 256),
      "aspp0/weights": (256, 1, 1, 9),
    }
  )
  again = jaxseg.create_model(
    told.arch, num_classes=told.num_classes, encoder=told.encoder, decoder=told.decoder
  )
  widths = (16, 24, 32, 64, 96, 160, 320)
  assert told.num_classes == 4
  assert [again.encoder.channels(w) for w in widths] == [model.encoder.channels(w) for w in widths]
