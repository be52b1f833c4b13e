"""Given the draws, our augmentation equals mmsegmentation's: stored cases, and its rules written out."""

import cv2
import numpy as np
import pytest

from jaxseg.data import DataError, color, transforms
from jaxseg.data.draws import parse_draws, replay
from jaxseg.data.transforms import fit_size


def test_mmseg(shared):
  """Every stored case: labels equal, geometry within one grey level, colour within two."""
  cases = sorted((shared / "parity" / "transforms").glob("*.npz"))
  assert len(cases) >= 8
  wrong = {}
  for path in cases:
    case = dict(np.load(path))
    crop = case["crop"]
    draws = dict(crop_size=crop, scale=case["scale"], offset=case["offset"], flip=bool(case["flip"]))
    image, label = replay(case["image"], case["label"], **draws)
    colored, same = replay(case["image"], case["label"], color_draws=case["photometric_draws"], **draws)
    # The limits themselves are int(base × ratio).
    limits = [int(side * float(case["ratio"])) for side in case["base_scale"]]
    # Pixels, not the mean: one wrong grey level in one channel counts.
    difference = {
      "scale": np.abs(np.subtract(limits, case["scale"])).max(),
      "label": (label != case["geometry_label"]).sum() + (same != label).sum(),
      "geometry": max(0, _largest(image, case["geometry_image"]) - 1),
      "color": max(0, _largest(colored, case["photometric_image"]) - 2),
    }
    if any(difference.values()):
      wrong[path.name] = difference
    # Colours alone, on the reference's own geometry: a grey level of the resampling is not doubled.
    alone, _ = replay(
      case["geometry_image"],
      case["geometry_label"],
      crop_size=crop,
      color_draws=case["photometric_draws"],
    )
    assert _largest(alone, case["photometric_image"]) <= 2, path.name
  assert not wrong


def _largest(a: np.ndarray, b: np.ndarray) -> int:
  assert a.shape == b.shape
  return int(np.abs(a.astype(int) - b).max())


def _opencv(image, label, *, crop, scale, offset, flip):
  """On the whole picture, in the order of mmsegmentation: resize, crop, flip."""
  h, w = fit_size(label.shape, scale)
  image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
  label = cv2.resize(label, (w, h), interpolation=cv2.INTER_NEAREST)
  window = np.s_[offset[0] : offset[0] + crop[0], offset[1] : offset[1] + crop[1]]
  image, label = image[window], label[window]
  return (image[:, ::-1], label[:, ::-1]) if flip else (image, label)


@pytest.mark.parametrize("kind", ["noise", "edges"])
def test_extremes(kind, monkeypatch):
  """Crops at the borders, doubling, shrinking below the crop, one pixel more or less, narrow pictures."""
  if kind == "edges":  # and as if most pictures were too large to be resized as a whole
    monkeypatch.setattr(transforms, "_WHOLE_PIXELS", 1 << 18)
  rng = np.random.default_rng(0)
  cases = [
    # shape, limits (long, short), crop
    ((360, 480), (4096, 1024), (256, 256)),
    ((333, 500), (1000, 666), (512, 512)),  # exactly doubled
    ((511, 513), (513, 512), (512, 512)),
    ((512, 512), (513, 513), (512, 512)),
    ((512, 512), (511, 511), (512, 512)),
    ((200, 900), (2048, 512), (64, 512)),
    ((900, 200), (512, 2048), (512, 64)),
    ((683, 512), (128, 64), (96, 96)),
    ((97, 1200), (300, 33), (40, 33)),
    ((600, 800), (800, 600), (512, 512)),  # as it is
    ((2000, 3000), (1333, 800), (720, 720)),
  ]
  for shape, scale, crop in cases:
    if kind == "noise":
      image = rng.integers(0, 256, (*shape, 3), np.uint8)
    else:  # black and white stripes, the largest steps there are
      image = np.broadcast_to(255 * (np.arange(shape[1]) // 2 % 2), shape).astype(np.uint8)
      image = np.repeat(image[..., None], 3, axis=-1)
    label = rng.integers(0, 256, shape, np.uint8)
    size = fit_size(shape, scale)
    last = [max(side - c, 0) for side, c in zip(size, crop, strict=True)]
    for offset in ([0, 0], last, [last[0], 0], [last[0] // 2, last[1] // 3]):
      for flip in (False, True):
        draws = dict(scale=scale, offset=offset, flip=flip)
        got = replay(image, label, crop_size=crop, **draws)
        want = _opencv(image, label, crop=crop, **draws)
        np.testing.assert_array_equal(got[1], want[1], err_msg=f"{shape} {scale} {crop} {draws}")
        assert _largest(got[0], want[0]) <= 1, (shape, scale, crop, draws)


def test_padding_after_and_before_the_flip():
  image, label = np.full((4, 6, 3), 200, np.uint8), np.zeros((4, 6), np.uint8)
  image[:, 0], label[:, 0] = 50, 1
  draws = [1.0, 10.0, 0.0, 0.0, 0.0, 0.0]  # ten levels brighter
  for pad, columns in (("after_flip", slice(0, 6)), ("before_flip", slice(2, 8))):
    got = replay(image, label, crop_size=8, flip=True, color_draws=draws, pad=pad, fill=(1, 2, 3))
    want = np.full((8, 8), 255, np.uint8)
    want[:4, columns] = label[:, ::-1]
    np.testing.assert_array_equal(got[1], want)
    # Colours of the padding do not change.
    assert (got[0][want == 255] == (1, 2, 3)).all()
    assert (got[0][want == 0] == 210).all() and (got[0][want == 1] == 60).all()
  assert image.max() == 200  # the caller's picture is left alone


def test_draws_in_order():
  # Brightness on, contrast first and on, saturation off, hue on.
  draws = parse_draws([1, -5.5, 1, 1, 1.25, 0, 1, -18])
  assert (draws.brightness[0], draws.contrast[0], draws.hue[0]) == (-5.5, 1.25, -18)
  on = [draws.apply_brightness, draws.apply_contrast, draws.contrast_first, draws.apply_saturation]
  assert [bool(x[0]) for x in on] == [True, True, True, False]
  # Contrast last.
  draws = parse_draws([0, 0, 1, 0.5, 0, 1, 0.75])
  assert (draws.contrast[0], draws.saturation[0]) == (0.75, 0.5) and not draws.contrast_first[0]
  for numbers, sentence in (
    ([1], "end too early"),
    ([0, 0, 0, 0, 1], "end too early"),
    ([0] * 9, "4 are left"),
  ):
    with pytest.raises(DataError, match=sentence):
      parse_draws(numbers)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ({"scale": (0, 5)}, r"scale is \(0, 5\); expected a factor above 0, or \(long, short\)"),
    ({"scale": (1, 2, 3)}, "expected a factor"),
    ({"offset": (9, 0)}, r"offset is \(9, 0\), outside of the scaled picture, which is 8x8"),
    ({"pad": "none"}, "pad is 'none'; expected None, 'after_flip' or 'before_flip'"),
  ],
)
def test_draws_that_nobody_makes(change, sentence):
  image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
  with pytest.raises(DataError, match=sentence):
    replay(image, label, crop_size=4, **change)


def test_zero_padding():
  image = np.ones((2, 3, 4, 3), np.float32)
  out = np.asarray(color.zero_padding(image, np.array([[0, 1, 2, 4], [0, 0, 3, 4]], np.int32)))
  assert out[1].min() == 1
  assert out[0, ..., 0].tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
