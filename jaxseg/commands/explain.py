"""What an output pixel looks at: effective receptive fields of stages and head, one checkpoint or two.

  jaxseg explain segformer.safetensors
  jaxseg explain segformer.pth deeplabv3plus.pth --at=stage4,head --images=photos/ --size=512x512

The effective receptive field (Luo et al. 2016; SegFormer's figure 3) is the absolute gradient of the output
pixel in the middle by every input pixel, its mean over images: photos that are cut to --size around their
middle, or drawn noise. The picture has a row for each checkpoint and a column for each place; brightness is
the square root of the influence, the dashed square holds half of it, the solid one 95 %. The output folder
gets receptive_fields.png, receptive_fields.npz (the maps, float32) and receptive_fields.json (the table).
"""

import argparse
import io
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxseg import catalog
from jaxseg.commands import outputs, plots, predict_files
from jaxseg.commands.flags import parse_size
from jaxseg.commands.networks import Network, open_network
from jaxseg.console import print_line
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.receptive_field import (
  HEAD,
  drawn_images,
  luo_size,
  middle_of,
  places_of,
  receptive_fields,
  side_of_share,
)
from jaxseg.hub.reading import read_image
from jaxseg.types import Preprocess

_SHARES = ((0.5, "--"), (0.95, "-"))


def add_flags(parser: argparse.ArgumentParser) -> None:
  """SOURCE ..., --at, --images, --count, --size, --output."""
  parser.add_argument(
    "sources",
    nargs="+",
    metavar="SOURCE",
    help="weights, a workdir, or a name of jaxseg list, whose weights are then drawn; one or two",
  )
  parser.add_argument(
    "--at", metavar="PLACE,PLACE", help="of stage1, stage2, ... and head; default: all that both have"
  )
  parser.add_argument("--images", metavar="FOLDER", help="photos; drawn noise unless given")
  parser.add_argument("--count", type=int, default=8, help="of images; default: %(default)s")
  parser.add_argument("--size", metavar="HxW", default="256x256", help="of images; default: %(default)s")
  parser.add_argument("--output", metavar="DIR", default="runs/explain", help="default: %(default)s")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Computes the fields, writes picture, maps and table; the lines are the table.

  Raises:
    UserError: more than two sources, one that cannot be read, an unknown place, too few photos.
  """
  del changes
  if len(flags.sources) > 2:
    raise UserError(f"{len(flags.sources)} sources are given; expected one, or two side by side")
  if not 1 <= flags.count <= 10_000:
    raise UserError(f"--count is {flags.count}; expected 1 to 10000 images")
  size = parse_size(flags.size, "--size")
  if flags.images is not None and not pathlib.Path(flags.images).is_dir():
    raise UserError(f"--images is {printable(flags.images)!r}, which is no folder")
  output = outputs.try_folder(flags.output)
  networks = [open_network(source, dtype="float32") for source in flags.sources]
  images = _images(networks, flags, size)
  known = [places_of(network.model, network.variables, size) for network in networks]
  places = (
    flags.at.split(",") if flags.at is not None else [p for p in known[0] if all(p in k for k in known)]
  )
  for network, shapes in zip(networks, known, strict=True):
    for place in places:
      if place not in shapes:
        near = catalog.suggestion(place, shapes)
        raise UserError(f"--at: {printable(network.name)} has no {printable(place)!r}; {near}")
  rows, fields, middles = [], [], []
  for network, shapes, own in zip(networks, known, images, strict=True):
    print_line(f"{printable(network.name)}: {', '.join(map(printable, places))}")
    found = receptive_fields(
      network.model, network.variables, own, preprocess=network.preprocess, places=places
    )
    fields.append(found)
    middles.append({place: middle_of(size, shapes[place]) for place in places})
    rows += [_row(network, place, field, middles[-1][place]) for place, field in found.items()]
  buffer = io.BytesIO()
  arrays = {
    f"{i}_{place}": field.astype(np.float32) for i, f in enumerate(fields) for place, field in f.items()
  }
  np.savez_compressed(buffer, **arrays)
  outputs.write(output / "receptive_fields.npz", buffer.getvalue())
  facts = {"size": list(size), "images": flags.images or "drawn", "count": len(images[0]), "fields": rows}
  outputs.write(output / "receptive_fields.json", (json.dumps(facts, indent=1) + "\n").encode())
  outputs.write(output / "receptive_fields.png", _plot(networks, fields, middles))
  return [*_table(rows), f"receptive_fields.png, .npz and .json in {printable(flags.output)}"]


def _images(
  networks: Sequence[Network], flags: argparse.Namespace, size: tuple[int, int]
) -> list[list[np.ndarray]]:
  """Those of each network: the same photos, or noise of as many channels as it takes."""
  channels = [network.preprocess.channels for network in networks]
  if flags.images is None:
    return [drawn_images(flags.count, size, channels=n) for n in channels]
  if len(set(channels)) > 1:
    raise UserError(
      f"--images: {printable(networks[0].name)} takes images of {channels[0]} channels and"
      f" {printable(networks[1].name)} of {channels[1]}; look at one after the other, or leave out --images"
    )
  return [_photos(flags.images, flags.count, size, networks[0].preprocess)] * len(networks)


def _photos(folder: str, count: int, size: tuple[int, int], preprocess: Preprocess) -> list[np.ndarray]:
  """The middles of the first photos that are large enough."""
  images = []
  for file in predict_files.find_files([folder]):
    if file.is_video:
      continue
    try:
      image = read_image(file.path, preprocess=preprocess)
    except UserError as error:
      print_line(str(error), error=True)
      continue
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape[:2], size, strict=True))
    if min(top, left) >= 0:
      images.append(np.asarray(image[top : top + size[0], left : left + size[1]]))
    if len(images) == count:
      return images
  if not images:
    raise UserError(
      f"no image in {printable(folder)} has {size[0]}x{size[1]} pixels; give a smaller --size, or leave out"
      " --images"
    )
  return images


def _row(network: Network, place: str, field: np.ndarray, middle: tuple[int, int]) -> dict:
  return {
    "source": network.name,
    "trained": network.trained,
    "place": place,
    "luo_size": round(luo_size(field), 1),
    **{f"side_{share:.0%}": side_of_share(field, share, middle) for share, _ in _SHARES},
  }


def _table(rows: list[dict]) -> list[str]:
  width = max(len(printable(row["source"])) for row in rows)
  lines = [f"{'':<{width}}  place   Luo's size  half within  95 % within (pixels, side of a square)"]
  for row in rows:
    note = "" if row["trained"] else "  (drawn weights)"
    lines.append(
      f"{printable(row['source']):<{width}}  {row['place']:<6}  {row['luo_size']:10.1f}"
      f"  {row['side_50%']:11d}  {row['side_95%']:11d}{note}"
    )
  return lines


def _plot(
  networks: list[Network],
  fields: list[dict[str, np.ndarray]],
  middles: list[dict[str, tuple[int, int]]],
) -> bytes:
  patches = plots.load_patches()
  places = list(fields[0])
  made, grid = plots.figure(
    len(networks), len(places), size=(2.3 * len(places) + 0.6, 2.35 * len(networks) + 0.3)
  )
  for row, (network, found) in enumerate(zip(networks, fields, strict=True)):
    for column, place in enumerate(places):
      axes, field = grid[row, column], found[place]
      axes.imshow(np.sqrt(field / max(field.max(), 1e-30)), cmap="magma", vmin=0, vmax=1)
      middle = middles[row][place]
      for share, style in _SHARES:
        side = side_of_share(field, share, middle)
        corner = (middle[1] - side / 2, middle[0] - side / 2)
        axes.add_patch(
          patches.Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=0.9, linestyle=style)
        )
      axes.set_xlim(-0.5, field.shape[1] - 0.5)
      axes.set_ylim(field.shape[0] - 0.5, -0.5)
      axes.set_xticks([])
      axes.set_yticks([])
      if row == 0:
        axes.set_title("head" if place == HEAD else place.replace("stage", "stage "), fontsize=10)
      if column == 0:
        note = "" if network.trained else "\n(drawn weights)"
        axes.set_ylabel(printable(network.name)[:32] + note, fontsize=9)
  return plots.png(made)
