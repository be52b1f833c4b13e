"""Segments images: an overlay, a label map in the classes' colours, and probabilities on request.

  jaxseg predict photo.jpg --source=cgnet_cityscapes.pth
  jaxseg predict holiday/ --source=runs/mine --output=segmented

For NAME.jpg the output folder gets NAME.overlay.png and NAME.label.png, a palette image whose values are the
class ids; with `--probabilities` also NAME.probabilities.npz (float16, h w k). A folder is searched with all
folders in it, its files keep their places, and contact_sheet.png shows up to 24 of them. What cannot be read
is named at the end, and the rest is done.

A folder of many sizes is padded to a few input sizes, since each is compiled once; `--exact` takes every
image as it is. An image of more than 6 million pixels goes through the network in windows.
"""

import argparse
import dataclasses
import io
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer, UInt8

from jaxseg import lazy
from jaxseg.commands import outputs
from jaxseg.console import print_line, printable
from jaxseg.crf import Settings, mean_field
from jaxseg.data import overlay
from jaxseg.data.progress import Progress
from jaxseg.data.source import DatasetInfo
from jaxseg.errors import UserError
from jaxseg.evaluation.canvases import pad_to_canvases
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.rule import InferenceRule
from jaxseg.evaluation.tiled import predict_tiled
from jaxseg.hub import Net, from_pretrained
from jaxseg.models import align_corners_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
LARGE = 6_000_000  # pixels; more go through the network in windows
_SMALLEST = 32
_THUMBNAIL = 320  # the longer side of an image on the contact sheet
_MOST_SHOWN = 24


@dataclasses.dataclass(frozen=True)
class _Image:
  """A file to segment, the name of its results below the output folder, and its rows and columns."""

  path: pathlib.Path
  name: pathlib.PurePath
  size: tuple[int, int] = (0, 0)

  @property
  def is_large(self) -> bool:
    return self.size[0] * self.size[1] > LARGE


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The images, --source, --output and how an image reaches the network."""
  parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER")
  parser.add_argument(
    "--source", required=True, help="weights, a workdir, or org/name on the Hugging Face hub"
  )
  parser.add_argument("--output", metavar="DIR", default="runs/predict", help="default: %(default)s")
  parser.add_argument("--mode", choices=("auto", "whole", "slide"), default="auto", help="auto: by size")
  parser.add_argument("--crop_size", metavar="HxW", default="512x512", help="of a window")
  parser.add_argument("--stride", metavar="HxW", help="between windows; two thirds of them unless given")
  parser.add_argument("--scales", metavar="S,S", default="1", help="of which the probabilities are averaged")
  parser.add_argument("--flip", action="store_true", help="add the mirrored image")
  parser.add_argument("--crf", action="store_true", help="refine by the papers' fully-connected CRF")
  parser.add_argument("--probabilities", action="store_true", help="write them too")
  parser.add_argument("--opacity", type=float, default=0.5, help="of the colours in overlays, 0 to 1")
  parser.add_argument("--exact", action="store_true", help="pad no image to the size of others")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Segments all images; the lines say what was written and what could not be read."""
  del changes
  if not 0 <= flags.opacity <= 1:
    raise UserError(f"--opacity is {flags.opacity}; expected 0 (the image) to 1 (the colours)")
  crop = _sides(flags.crop_size, "--crop_size")
  stride = _sides(flags.stride, "--stride") if flags.stride else tuple(max(1, s * 2 // 3) for s in crop)
  views = dict(scales=_scales(flags.scales), flip=flags.flip)
  rule = InferenceRule(**views)
  if flags.mode == "slide":
    rule = InferenceRule(mode="slide", crop_size=crop, stride=stride, **views)
  files = list(find_images(flags.images))
  images, refused = [], []
  for file in files:
    try:
      images.append(dataclasses.replace(file, size=read_size(file.path)))
    except UserError as error:
      refused.append(str(error))
  large = [image for image in images if image.is_large and flags.mode != "whole"]
  if large and (views["scales"] != (1.0,) or flags.flip or flags.crf or flags.probabilities):
    raise UserError(
      f"{printable(large[0].path)} has more than {LARGE:,} pixels and goes through the network in windows,"
      " which take no --scales, --flip, --crf or --probabilities; leave these out, or give --mode=whole"
    )
  output = pathlib.Path(outputs.try_folder(flags.output))
  net = from_pretrained(flags.source)
  if not net.classes or not hasattr(net.model, "decoder"):
    raise UserError(f"{flags.source} holds {net.arch} without a segmentation head; give a segmentation model")
  small = [image for image in images if image not in large]
  if not flags.exact and small:
    padded = pad_to_canvases(rule, [image.size for image in small])
    if padded != rule:
      print_line("images of many sizes are padded to a few; --exact takes each as it is")
    rule = padded
  predictor = Predictor(net.model, rule=rule, preprocess=net.preprocess)
  began, shown, compiled = time.monotonic(), [], set()
  keys = {rule.key(image.size) for image in small}
  with Progress(len(images)) as progress:
    # Equal input sizes after one another: each is compiled when the first image of it comes.
    for image in sorted(small, key=lambda i: (rule.key(i.size), str(i.path))) + large:
      key = rule.key(image.size)
      if image not in large and key not in compiled:
        compiled.add(key)
        if len(keys) > 1:
          print_line(f"compiling {len(compiled)} of {len(keys)}")
      try:
        pixels = read_image(image.path)
      except UserError as error:
        refused.append(str(error))
        continue
      if image in large:
        labels, probabilities = _by_windows(net, pixels, crop, stride), None
      else:
        labels, probabilities = _at_once(net, predictor, pixels, flags)
      _write(output / image.name, pixels, labels, probabilities, net, flags.opacity)
      if len(files) > 1 and len(shown) < _MOST_SHOWN:
        step = max(1, max(image.size) // _THUMBNAIL)
        small_copy = {"image": pixels[::step, ::step], "label": labels[::step, ::step].astype(np.uint8)}
        shown.append({"id": printable(image.name), **small_copy})
      progress.advance()
  done = len(files) - len(refused)
  lines = [
    f"{done} of {len(files)} images in {time.monotonic() - began:.1f} s, written to {printable(output)}"
  ]
  if refused:
    lines += [f"{len(refused)} could not be read:", *(f"  {text}" for text in refused)]
  if not done:
    raise UserError("\n".join(lines[1:]))
  if len(shown) > 1:
    info = DatasetInfo(name="predicted", classes=net.classes, palette=np.asarray(net.palette, np.uint8))
    outputs.write(outputs.epath.Path(output / "contact_sheet.png"), _png(overlay.sheet(shown, info)))
  return lines


def find_images(places: Sequence[str]) -> Iterator[_Image]:
  """The files themselves, and those in folders; hidden ones are left out.

  Raises:
    UserError: a place that is not there, or nothing that is an image.
  """
  found = False
  for place in map(pathlib.Path, places):
    if place.is_dir():
      for folder, inner, files in os.walk(place):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
          path = pathlib.Path(folder) / name
          if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
            found = True
            yield _Image(path, path.relative_to(place))
    elif place.is_file():
      found = True
      yield _Image(place, pathlib.PurePath(place.name))
    else:
      raise UserError(f"there is no file or folder {printable(place)!r}")
  if not found:
    raise UserError(
      f"there is no image in {', '.join(map(printable, places))}; looked for {', '.join(SUFFIXES)}"
    )


def read_size(path: pathlib.Path) -> tuple[int, int]:
  """(rows, columns) of an image file, upright, from its header.

  Raises:
    UserError: it is no image, or too small.
  """
  pillow = lazy.load("PIL.Image")
  try:
    with pillow.open(path) as image:
      columns, rows = image.size
      if image.getexif().get(0x0112, 1) >= 5:  # orientations that swap rows and columns
        rows, columns = columns, rows
  except pillow.DecompressionBombError:
    raise UserError(f"{printable(path)} has more than {2 * pillow.MAX_IMAGE_PIXELS:,} pixels") from None
  except (OSError, ValueError, SyntaxError) as error:
    raise UserError(
      f"{printable(path)} cannot be read ({type(error).__name__}): damaged, or no image"
    ) from None
  if min(rows, columns) < _SMALLEST:
    raise UserError(f"{printable(path)} is {rows}x{columns}; a side needs at least {_SMALLEST} pixels")
  return rows, columns


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """An image file as RGB, turned upright by its EXIF orientation.

  Raises:
    UserError: it cannot be decoded, or has 16 bits a channel.
  """
  cv2 = lazy.load("cv2")
  try:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB) if data.size else None
  except (OSError, cv2.error) as error:
    raise UserError(f"{printable(path)} cannot be read ({error})") from None
  if image is None:
    raise UserError(f"{printable(path)} is damaged, or no image")
  if image.dtype != np.uint8:
    raise UserError(
      f"{printable(path)} has {image.dtype} pixels, expected 8 bits a channel; scale them to 0..255 first"
    )
  return image


def blend(
  image: UInt8[np.ndarray, "h w 3"],
  labels: Integer[np.ndarray, "h w"],
  palette: UInt8[np.ndarray, "k 3"],
  opacity: float,
) -> UInt8[np.ndarray, "h w 3"]:
  """The image with the classes' colours laid over it; in strips, as a large image has no room for floats."""
  mixed = np.empty_like(image)
  for top in range(0, len(image), 256):
    rows = slice(top, top + 256)
    colors = palette[labels[rows]]
    mixed[rows] = np.round(image[rows] * np.float32(1 - opacity) + colors * np.float32(opacity))
  return mixed


def _at_once(
  net: Net, predictor: Predictor, image: np.ndarray, flags: argparse.Namespace
) -> tuple[np.ndarray, Float[np.ndarray, "h w k"] | None]:
  """Label map, and probabilities where they are asked for."""
  rows, columns = image.shape[:2]
  batch = {"image": image[None]}
  if not (flags.crf or flags.probabilities):
    return np.asarray(predictor.labels(net.variables, batch)[0, :rows, :columns]), None
  scores = predictor.scores(net.variables, batch)[0, :rows, :columns]
  probabilities = jnp.exp(scores)
  if flags.crf:
    crf = Settings()
    probabilities = mean_field(-scores, image, crf.kernels, steps=crf.steps, method=crf.method)
  labels = np.asarray(jnp.argmax(probabilities, -1).astype(jnp.int32))
  return labels, np.asarray(probabilities, np.float16) if flags.probabilities else None


def _by_windows(net: Net, image: np.ndarray, crop: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
  return predict_tiled(
    lambda variables, windows: net.model.apply(variables, windows, train=False)["logits"],
    net.variables,
    image,
    preprocess=net.preprocess,
    num_classes=len(net.classes),
    crop_size=crop,
    stride=stride,
    align_corners=align_corners_of(net.model),
  )


def _write(place: pathlib.Path, image, labels, probabilities, net: Net, opacity: float) -> None:
  """NAME.overlay.png, NAME.label.png and perhaps NAME.probabilities.npz, for `place` = .../NAME.jpg."""
  pillow = lazy.load("PIL.Image")
  palette = np.asarray(net.palette, np.uint8)
  place.parent.mkdir(parents=True, exist_ok=True)

  def write(kind: str, data: bytes) -> None:
    # With the image's own suffix: a.png and a.jpg are two images.
    outputs.write(outputs.epath.Path(place.with_name(f"{place.name}.{kind}")), data)

  write("overlay.png", _png(blend(image, labels, palette, opacity)))
  if len(palette) <= 256:
    ids = pillow.fromarray(labels.astype(np.uint8))
    ids.putpalette(palette.reshape(-1).tolist())
  else:
    ids = pillow.fromarray(labels.astype(np.uint16))
  buffer = io.BytesIO()
  ids.save(buffer, "PNG")
  write("label.png", buffer.getvalue())
  if probabilities is not None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=probabilities, classes=np.array(net.classes))
    write("probabilities.npz", buffer.getvalue())


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
  cv2 = lazy.load("cv2")
  return cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()


def _sides(text: str, flag: str) -> tuple[int, int]:
  sides = text.lower().split("x")
  if len(sides) != 2 or not all(side.isdigit() and _SMALLEST <= int(side) <= 65536 for side in sides):
    raise UserError(
      f"{flag} is {printable(text)!r}; expected HxW of at least {_SMALLEST} pixels, such as 512x512"
    )
  return int(sides[0]), int(sides[1])


def _scales(text: str) -> tuple[float, ...]:
  try:
    scales = tuple(float(word) for word in text.split(","))
  except ValueError:
    scales = ()
  if not scales or not all(0.05 <= scale <= 16 for scale in scales):
    raise UserError(f"--scales is {printable(text)!r}; expected factors of 0.05 to 16, such as 0.75,1,1.25")
  return scales
