"""Corruptions against what their published parameters mean, on images where that can be worked out."""

import cv2
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.evaluation.altered import Chosen, Corrupted, Relabelled
from jaxseg.evaluation.corruptions import CORRUPTIONS, KINDS, SEVERITIES, corrupt, corruptions_for

GREY = np.full((200, 240, 3), 128, np.uint8)


def made(image, name, severity, seed=0, **more):
  return corrupt(image, name, severity, rng=np.random.default_rng(seed), **more)


@pytest.fixture(scope="module")
def scene():
  rng = np.random.default_rng(0)
  return cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (130, 90), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seeded_and_of_the_images_kind(scene, name):
  results = [made(scene, name, severity) for severity in SEVERITIES]
  for result in results:
    assert result.shape == scene.shape and result.dtype == np.uint8 and np.any(result != scene)
  assert len({result.tobytes() for result in results}) == 5, "every severity is another"
  np.testing.assert_array_equal(results[2], made(scene, name, 3))
  drawn = name in (*KINDS["noise"], *KINDS["weather"], "motion_blur", "glass_blur")
  assert np.any(made(scene, name, 3, seed=1) != results[2]) == drawn


def test_noise_has_the_published_variance():
  unit = lambda name, severity: made(GREY, name, severity) / 255.0  # noqa: E731
  grey = 128 / 255
  assert unit("gaussian_noise", 2).std() == pytest.approx(0.12, rel=0.02)
  assert unit("speckle_noise", 1).std() == pytest.approx(0.15 * grey, rel=0.02)
  assert unit("shot_noise", 1).std() == pytest.approx((grey / 60) ** 0.5, rel=0.02)
  hit = unit("impulse_noise", 5)
  assert np.isin(hit, (0.0, 1.0)).mean() == pytest.approx(0.27, abs=0.01)
  assert (hit == 1).mean() == pytest.approx(0.27 / 2, abs=0.01)


def test_blurs_spread_a_point_as_far_as_published():
  edge = np.zeros((60, 60, 3), np.uint8)
  edge[:, 30:] = 255
  slope = np.diff(made(edge, "gaussian_blur", 2)[30, :, 0].astype(float))
  slope /= slope.sum()
  mean = (slope * np.arange(59)).sum()
  assert mean == pytest.approx(29, abs=0.1)
  assert np.sqrt((slope * (np.arange(59) - mean) ** 2).sum()) == pytest.approx(2, rel=0.05)
  point = np.zeros((51, 51, 3), np.uint8)
  point[25, 25] = 255
  distance = np.hypot(*(np.indices((51, 51)) - 25))
  defocus = made(point, "defocus_blur", 1)[..., 0].astype(float)
  assert defocus[distance > 4.5].sum() == 0 and defocus[distance <= 3].sum() > 0.9 * defocus.sum()
  motion = made(point, "motion_blur", 1)[..., 0]
  assert distance[motion > 0].max() > 5, "a way of 21 pixels, of which eight bits show the first"


def test_colour_and_contrast(scene):
  np.testing.assert_allclose(
    made(scene, "contrast", 3).std((0, 1)), 0.2 * scene.std((0, 1)), rtol=0.05, atol=0.3
  )
  value = lambda image: cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2HSV)  # noqa: E731
  brighter = value(made(scene, "brightness", 2))[..., 2]
  np.testing.assert_allclose(brighter, np.minimum(value(scene)[..., 2] + 0.2, 1), atol=0.005)
  duller = value(made(scene, "saturate", 1))[..., 1]
  np.testing.assert_allclose(duller, 0.3 * value(scene)[..., 1], atol=0.03)
  jpeg = cv2.imencode(".jpg", scene[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 10])[1]
  np.testing.assert_array_equal(made(scene, "jpeg_compression", 4), cv2.imdecode(jpeg, 1)[..., ::-1])


@pytest.mark.parametrize("name", corruptions_for(1))
def test_a_grey_image_is_an_image_of_three_equal_channels(scene, name):
  grey = scene[..., :1]
  found = made(grey, name, 3)
  assert found.shape == grey.shape and found.dtype == np.uint8
  if name in KINDS["noise"]:  # each channel has its own
    assert np.abs(found.astype(int) - grey).mean() > 5
    return
  rgb = cv2.cvtColor(made(np.repeat(grey, 3, -1), name, 3), cv2.COLOR_RGB2GRAY)
  assert np.abs(found[..., 0].astype(int) - rgb).max() <= (12 if name == "jpeg_compression" else 1)


@pytest.mark.parametrize("name", corruptions_for(6))
def test_many_channels_are_corrupted_as_three(scene, name):
  found = made(np.concatenate([scene, scene], -1), name, 2)
  assert found.shape == (*scene.shape[:2], 6) and np.any(found[..., 3:] != scene)
  if name not in (*KINDS["noise"], "jpeg_compression"):
    np.testing.assert_allclose(found[..., 3:].astype(int), made(scene, name, 2), atol=1)


def test_what_is_of_colours():
  assert set(CORRUPTIONS) - set(corruptions_for(1)) == {"saturate"}
  assert set(CORRUPTIONS) - set(corruptions_for(2)) == {"saturate", "snow", "spatter", "frost"}
  with pytest.raises(UserError, match="snow is of colours, which images of 5 channels do not have"):
    made(np.zeros((40, 40, 5), np.uint8), "snow", 1)


def test_frost_takes_photographs(scene):
  photo = np.full((50, 300, 3), 200, np.uint8)
  frosted = made(scene, "frost", 1, frost=[photo])
  np.testing.assert_allclose(frosted, np.minimum(scene + 0.4 * 200, 255), atol=1)


def test_sources_of_corrupted_examples(scene):
  class Two:
    def __len__(self):
      return 2

    def __getitem__(self, index):
      return {"image": scene, "label": np.full(scene.shape[:2], index, np.uint8), "id": str(index)}

    def size(self, index):
      return scene.shape[:2]

  source = Corrupted(Two(), "fog", 2, seed=3)
  np.testing.assert_array_equal(source[1]["image"], Corrupted(Two(), "fog", 2, seed=3)[1]["image"])
  assert np.any(source[0]["image"] != source[1]["image"]), "every image has weather of its own"
  assert np.any(source[1]["image"] != Corrupted(Two(), "fog", 2, seed=4)[1]["image"])
  assert source[1]["id"] == "1" and source[1]["label"].max() == 1 and source.size(0) == (90, 130)
  other = Relabelled(Chosen(Two(), [1]), [np.full(scene.shape[:2], 7, np.uint8)])
  assert len(other) == 1 and other[0]["id"] == "1" and other[0]["label"].min() == 7


def test_wrong_names_are_sentences(scene):
  with pytest.raises(UserError, match="there is no corruption 'fogg'; did you mean 'fog'"):
    made(scene, "fogg", 1)
  with pytest.raises(UserError, match="the severity is 0; expected 1 to 5"):
    made(scene, "fog", 0)
