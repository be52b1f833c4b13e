"""Label maps of images that are too large for the network at once, by windows."""

import argparse
from collections.abc import Callable

import numpy as np

from jaxseg.commands.flags import parse_size
from jaxseg.errors import UserError
from jaxseg.evaluation.decision import threshold_of
from jaxseg.evaluation.inference import forward
from jaxseg.evaluation.tiled import predict_tiled
from jaxseg.hub import Net
from jaxseg.models import align_corners_of


class Windows:
  """Label maps of images that are too large for the network at once."""

  def __init__(self, net: Net, flags: argparse.Namespace, threshold: float):
    self._net, self._threshold = net, threshold_of(net.model, threshold)
    self._crop, self._stride = sides(flags)
    model = forward(net.model)
    self._apply = lambda variables, windows: model(variables, windows)["logits"]

  def __call__(self, image: np.ndarray, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    return predict_tiled(
      self._apply,
      self._net.variables,
      image,
      preprocess=self._net.preprocess,
      num_classes=len(self._net.classes),
      crop_size=self._crop,
      stride=self._stride,
      align_corners=align_corners_of(self._net.model),
      threshold=self._threshold,
      progress=progress,
    )


def sides(flags: argparse.Namespace) -> tuple[tuple[int, int], tuple[int, int]]:
  """(rows and columns of a window, the same between windows) that the flags say.

  Raises:
    UserError: windows that leave pixels out.
  """
  crop = parse_size("512x512" if flags.crop_size is None else flags.crop_size, "--crop_size")
  if flags.stride is None:
    return crop, tuple(max(1, side * 2 // 3) for side in crop)
  stride = parse_size(flags.stride, "--stride")
  if any(s > c for s, c in zip(stride, crop, strict=True)):
    raise UserError(
      f"--stride {flags.stride} is larger than the windows, so that pixels would be skipped; give at most"
      f" {crop[0]}x{crop[1]}"
    )
  return crop, stride
