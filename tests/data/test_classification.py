"""ImageNet's transforms: what is drawn follows the rule, what is done is worked out by hand."""

import numpy as np
import pytest

from jaxseg.data import DataError
from jaxseg.data.classification import (
  OPERATIONS,
  Operation,
  apply_operation,
  draw_box,
  draw_operations,
  eval_image,
  strength,
  train_image,
)


def _noise(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_boxes_follow_the_rule():
  rng = np.random.default_rng(0)
  boxes = np.array([draw_box(rng, (400, 500)) for _ in range(10_000)])
  top, left, height, width = boxes.T
  assert (top >= 0).all() and (left >= 0).all()
  assert (top + height <= 400).all() and (left + width <= 500).all()
  share, ratio = height * width / 200_000, width / height
  assert 0.075 < share.min() < 0.1 and share.max() > 0.95
  assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
  # Small boxes always fit, so among them shares are uniform and aspects log-uniform.
  small = share < 0.4
  counts = np.histogram(share[small], bins=4, range=(0.08, 0.4))[0]
  assert np.abs(counts / counts.mean() - 1).max() < 0.1
  counts = np.histogram(np.log(ratio[small]), bins=4, range=(np.log(3 / 4), np.log(4 / 3)))[0]
  assert np.abs(counts / counts.mean() - 1).max() < 0.1
  place = (top / np.maximum(400 - height, 1))[small]
  assert np.abs(np.histogram(place, bins=4, range=(0, 1.0001))[0] / small.sum() - 0.25).max() < 0.03


def test_boxes_of_narrow_pictures():
  rng = np.random.default_rng(0)
  # No box of this area fits: the middle with the nearest aspect.
  assert draw_box(rng, (1000, 30), area=(1.0, 1.0)) == (480, 0, 40, 30)
  assert draw_box(rng, (30, 1000), area=(1.0, 1.0)) == (0, 480, 30, 40)


def test_operations_follow_the_rule():
  rng = np.random.default_rng(0)
  draws = [draw_operations(rng) for _ in range(10_000)]
  lengths = np.bincount([len(d) for d in draws]) / len(draws)
  np.testing.assert_allclose(lengths, [0.25, 0.5, 0.25], atol=0.015)
  flat = [operation for d in draws for operation in d]
  names, counts = np.unique([operation.name for operation in flat], return_counts=True)
  assert sorted(names) == sorted(OPERATIONS)
  assert np.abs(counts / counts.mean() - 1).max() < 0.15
  degrees = np.array([o.amount for o in flat if o.name == "rotate"])
  assert np.mean(degrees > 0) == pytest.approx(0.5, abs=0.06)
  # Magnitude 9 ± 0.5, at most 10: 27 ± 1.5 degrees, at most 30.
  assert np.abs(degrees).max() <= 30
  assert np.mean(np.abs(degrees)) == pytest.approx(27, abs=0.2)
  assert np.std(np.abs(degrees)) == pytest.approx(1.5, abs=0.15)
  assert not draw_operations(rng, layers=0)


def test_strengths():
  at_nine = {name: strength(name, 9.0) for name in OPERATIONS}
  want = dict(
    auto_contrast=0, equalize=0, invert=0, rotate=27, posterize=1, solarize=26, solarize_add=99,
    color=1.81, contrast=1.81, brightness=1.81, sharpness=1.81,
    shear_x=0.27, shear_y=0.27, translate_x=0.405, translate_y=0.405,
  )  # fmt: skip
  assert at_nine == pytest.approx(want)
  assert strength("color", 10.0, sign=-1.0) == pytest.approx(0.1)
  assert strength("rotate", 10.0, sign=-1.0) == -30


def test_operations_by_hand():
  image = np.array([[[10, 100, 250], [0, 127, 128]]], np.uint8)

  def do(name, amount=0.0, picture=image):
    return apply_operation(picture, Operation(name, amount)).tolist()

  assert do("invert") == [[[245, 155, 5], [255, 128, 127]]]
  assert do("posterize", 1) == [[[0, 0, 128], [0, 0, 128]]]
  assert do("posterize", strength("posterize", 10.0)) == [[[0, 0, 0], [0, 0, 0]]]
  assert do("solarize", 128) == [[[10, 100, 5], [0, 127, 127]]]
  assert do("solarize_add", 50) == [[[60, 150, 250], [50, 177, 128]]]
  assert do("brightness", 0.5) == [[[5, 50, 125], [0, 63, 64]]]
  assert do("color", 1.0) == image.tolist()
  assert do("contrast", 1.0) == image.tolist()
  gray = do("color", 0.0)
  assert all(len(set(pixel)) == 1 for pixel in gray[0])
  ramp = np.repeat(np.arange(50, 150, 10, np.uint8)[None, :, None], 3, axis=2)
  stretched = np.array(do("auto_contrast", picture=ramp))
  assert (stretched.min(), stretched.max()) == (0, 255)
  # A translation shows the mean colour where it moves in from outside.
  wide = _noise((8, 10))
  moved = np.array(do("translate_x", 0.4, wide))
  np.testing.assert_array_equal(moved[:, :6], wide[:, 4:])
  assert (moved[:, 6:] == (124, 116, 104)).all()
  moved = np.array(do("translate_y", -0.25, wide))
  np.testing.assert_array_equal(moved[2:], wide[:6])
  # Quarter turns move pixels and change none.
  square = _noise((6, 6))
  np.testing.assert_array_equal(do("rotate", 90.0, square), np.rot90(square))
  for name in OPERATIONS:
    for level in (0.0, 9.0, 10.0):
      assert apply_operation(wide, Operation(name, strength(name, level))).shape == wide.shape


def test_train_image():
  image = _noise((60, 80))
  outputs = [train_image(image, np.random.default_rng(seed), size=32) for seed in range(6)]
  assert all(out.shape == (32, 32, 3) and out.dtype == np.uint8 for out in outputs)
  assert len({out.tobytes() for out in outputs}) == 6
  again = train_image(image, np.random.default_rng(3), size=32)
  np.testing.assert_array_equal(again, outputs[3])
  # The whole of a square picture at its own size is the picture, mirrored or not.
  square = _noise((32, 32))
  whole = dict(size=32, area=(1.0, 1.0), aspect=(1.0, 1.0), layers=0)
  np.testing.assert_array_equal(train_image(square, np.random.default_rng(0), flip=0.0, **whole), square)
  mirrored = train_image(square, np.random.default_rng(0), flip=1.0, **whole)
  np.testing.assert_array_equal(mirrored, square[:, ::-1])


def test_eval_image():
  # 256 / 224 of the crop on the short side; on a picture of that size only the middle is cut.
  image = _noise((256, 300))
  np.testing.assert_array_equal(eval_image(image), image[16:240, 38:262])
  np.testing.assert_array_equal(eval_image(image[:, :256].transpose(1, 0, 2)).shape, (224, 224, 3))
  tall = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None], (100, 50, 3)).copy()
  # Short side 50 → 25: rows are halved; of 50 rows the middle 20 stay.
  out = eval_image(tall, size=20, crop_share=0.8)
  np.testing.assert_allclose(out[:, 0, 0], np.arange(20) * 2 + 30.5, atol=1)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda x: eval_image(x, crop_share=1.2), "crop_share is 1.2; expected above 0, up to 1"),
    (lambda x: eval_image(x, interpolation="cubic"), "interpolation is 'cubic'; expected one of 'bilinear'"),
    (lambda x: apply_operation(x, Operation("blur", 1.0)), "no operation 'blur'; known: auto_contrast"),
  ],
)
def test_errors(call, sentence):
  with pytest.raises(DataError, match=sentence):
    call(np.zeros((8, 8, 3), np.uint8))
