r"""Renders the page of the CRF from a picture: network output, after the CRF, and the energy by step.

  make crf-page PICTURE=photo.jpg WEIGHTS=model.safetensors
  python docs/render.py --picture=photo.jpg --weights=runs/mine --sxy=67 --srgb=3 --w1=4

WEIGHTS is what `jaxseg.from_pretrained` reads. Without it colour clusters on a coarse grid stand
in for the network, and the page says so. Writes docs/build/crf.html and docs/build/crf.png.
"""

import argparse
import html
import pathlib
import sys
import time

import numpy as np

from jaxseg.commands.flags import parse
from jaxseg.console import exit_on_user_error
from jaxseg.crf import Settings
from jaxseg.errors import UserError

# Sides of the stand-in's blocks; a network's output stride is 8 or 16.
_BLOCK = 16
_CLUSTERS = 5


def main(argv: list[str]) -> None:
  """Flags, then the page; bad input ends in one sentence and exit code 2."""
  parser = argparse.ArgumentParser(
    prog="make crf-page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--picture", default="", help="JPEG or PNG")
  parser.add_argument("--weights", default="", help="anything jaxseg.from_pretrained reads")
  parser.add_argument("--output", default="docs/build", help="default: %(default)s")
  parser.add_argument("--size", type=int, default=500, help="longest side to shrink to; default: %(default)s")
  for name, value in vars(Settings()).items():
    parser.add_argument(f"--{name}", type=type(value), default=value, help="default: %(default)s")
  with exit_on_user_error("make crf-page"):
    flags = parse(parser, argv)
    settings = Settings(**{name: getattr(flags, name) for name in vars(Settings())})
    page = render(
      flags.picture, weights=flags.weights, output=flags.output, size=flags.size, settings=settings
    )
  print(page)


def render(
  picture: str, *, weights: str = "", output: str = "docs/build", size: int = 500, settings: Settings
) -> pathlib.Path:
  """Writes crf.html and crf.png below `output`, and returns the page.

  Raises:
    ValueError: no picture was named or it cannot be read, or the weights cannot.
  """
  from jaxseg.crf import energy_by_step

  image = read(picture, size)
  if weights:
    unary, classes, palette, network = from_network(weights, image)
  else:
    unary, classes, palette, network = from_clusters(image)
  began = time.perf_counter()
  q, energies = energy_by_step(unary, image, settings.kernels, settings.steps, settings.method)
  q, energies = np.asarray(q), np.asarray(energies)
  seconds = time.perf_counter() - began
  before, after = np.argmin(unary, axis=-1), np.argmax(q, axis=-1)
  folder = pathlib.Path(output)
  folder.mkdir(parents=True, exist_ok=True)
  title = "network output" if weights else "colour clusters (no network)"
  draw(folder / "crf.png", image, before, after, energies, classes, palette, title)
  h, w = before.shape
  facts = {
    "Picture": f"{pathlib.Path(picture).name}, {w}×{h} pixels",
    "Network": network,
    "CRF": f"w1 {settings.w1:g}, σα {settings.sxy:g} px, σβ {settings.srgb:g} grey levels;"
    f" w2 {settings.w2:g}, σγ {settings.smooth:g} px; {settings.steps} steps, {settings.method}",
    "Pixels that change class": f"{np.mean(before != after):.2%}",
    "Free energy": f"{energies[0]:,.0f} → {energies[-1]:,.0f} nats",
    "Time": f"{seconds:.1f} s, compilation included",
  }
  (folder / "crf.html").write_text(page_of(facts, energies))
  return folder / "crf.html"


def read(picture: str, size: int) -> np.ndarray:
  """The picture as uint8 RGB h w 3, shrunk until its longest side is `size`."""
  import cv2

  if not picture:
    raise UserError("no picture is named; say which one: make crf-page PICTURE=photo.jpg")
  if not pathlib.Path(picture).is_file():
    raise UserError(f"there is no picture {picture!r}; give the path of a JPEG or PNG file")
  if size < 32:
    raise UserError(f"--size is {size}; networks need at least 32 pixels a side")
  image = cv2.imread(picture, cv2.IMREAD_COLOR)
  if image is None:
    raise UserError(f"{picture!r} cannot be read as a picture; give a JPEG or PNG file")
  h, w = image.shape[:2]
  if max(h, w) > size:
    factor = size / max(h, w)
    new = (max(1, round(w * factor)), max(1, round(h * factor)))
    image = cv2.resize(image, new, interpolation=cv2.INTER_AREA)
  return np.ascontiguousarray(image[..., ::-1])


def from_network(weights: str, image: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, str]:
  """(unary h w k, class names, palette, description) of a network."""
  import cv2

  import jaxseg
  from jaxseg.evaluation.refined import make_scores, unary_of
  from jaxseg.models import align_corners_of

  net = jaxseg.from_pretrained(weights)
  if not net.classes or not hasattr(net.model, "decoder"):
    raise UserError(f"{weights!r} holds {net.arch}, which has no segmentation head; give a whole model")
  seen = image
  if net.preprocess.size is not None:
    seen = cv2.resize(image, net.preprocess.size[::-1], interpolation=cv2.INTER_LINEAR)
  scores = make_scores(net.model, net.variables, preprocess=net.preprocess)(seen)
  unary = unary_of(scores, image.shape[:2], align_corners=align_corners_of(net.model))
  return np.asarray(unary), net.classes, net.palette, f"{net.arch}, {len(net.classes)} classes"


def from_clusters(image: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, str]:
  """The same from colour clusters of blocks: as coarse as a network's output, and as unsure of edges."""
  import cv2

  from jaxseg.data.source import color_map

  h, w = image.shape[:2]
  grid = (max(2, w // _BLOCK), max(2, h // _BLOCK))
  blocks = cv2.cvtColor(cv2.resize(image, grid, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2Lab)
  colours = blocks.reshape(-1, 3).astype(np.float32)
  count = min(_CLUSTERS, len(colours))
  cv2.setRNGSeed(0)
  rule = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 0.1)
  _, _, centres = cv2.kmeans(colours, count, None, rule, 5, cv2.KMEANS_PP_CENTERS)
  square = ((colours[:, None] - centres) ** 2).sum(-1)
  logits = (-square / (2 * 15.0**2)).reshape(grid[1], grid[0], count)
  logits = np.clip(logits - logits.max(-1, keepdims=True), -6, 0)
  logits = cv2.resize(logits, (w, h), interpolation=cv2.INTER_LINEAR).reshape(h, w, count)
  unary = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
  names = tuple(f"cluster {i + 1}" for i in range(count))
  said = "none was given: colour clusters on a coarse grid stand in (WEIGHTS=... for a real one)"
  return unary.astype(np.float32), names, color_map(count), said


def draw(path, image, before, after, energies, classes, palette, title) -> None:
  """The figure, as a PNG file; `title` is that of `before`."""
  # Without pyplot there is no window system, and no global state.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from matplotlib.patches import Patch

  palette = np.asarray(palette, np.float64) / 255

  def overlay(label):
    return 0.45 * image / 255 + 0.55 * palette[label]

  row = 3.7 * min(image.shape[0] / image.shape[1], 1.5) + 0.6
  figure = Figure(figsize=(11.5, 2 * row), layout="constrained")
  FigureCanvasAgg(figure)
  # Rows of their own, lest the curve's numbers push the pictures above it apart.
  upper, lower = figure.subfigures(2, 1)
  axes = np.concatenate([upper.subplots(1, 3), lower.subplots(1, 3)])
  changed = 0.25 + 0.35 * image.mean(-1, keepdims=True) / 255 * np.ones(3)
  changed[before != after] = palette[after][before != after]
  shown = [
    ("picture", image),
    (title, overlay(before)),
    ("after the CRF", overlay(after)),
    (f"pixels that changed: {np.mean(before != after):.1%}", changed),
  ]
  for axis, (name, picture) in zip(axes, shown, strict=False):
    axis.imshow(picture)
    axis.set_title(name, fontsize=11)
    axis.set_axis_off()
  curve = axes[4]
  curve.plot(range(len(energies)), energies / 1e3, marker="o", markersize=4, color="#1f5aa6")
  curve.set_title("free energy by step", fontsize=11)
  curve.set_xlabel("mean-field steps")
  curve.set_ylabel("thousand nats")
  curve.set_xticks(range(0, len(energies), max(1, len(energies) // 10)))
  curve.grid(alpha=0.3)
  curve.spines[["top", "right"]].set_visible(False)
  legend = axes[5]
  legend.set_axis_off()
  share = np.bincount(after.ravel(), minlength=len(classes)) + np.bincount(
    before.ravel(), minlength=len(classes)
  )
  largest = [i for i in np.argsort(-share, kind="stable") if share[i]][:12]
  legend.legend(
    handles=[Patch(facecolor=palette[i], edgecolor="0.3", label=classes[i]) for i in largest],
    loc="center",
    frameon=False,
    fontsize=10,
    ncols=2 if len(largest) > 6 else 1,
    title="classes",
  )
  figure.savefig(path, dpi=110)


def page_of(facts: dict[str, str], energies: np.ndarray) -> str:
  """The page: the figure, what was run, and the energies."""
  rows = "\n".join(
    f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
  )
  steps = "".join(f"<tr><td>{step}</td><td>{value:,.1f}</td></tr>" for step, value in enumerate(energies))
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>The fully-connected CRF</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222 }}
body {{ max-width: 70em; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; margin: 1em 0 }}
th {{ text-align: left; font-weight: 600; padding-right: 1.5em; vertical-align: top }}
.steps td {{ padding-right: 1.5em; text-align: right; font-variant-numeric: tabular-nums }}
</style></head><body>
<h1>The fully-connected CRF</h1>
<p>A network's output is coarse. Mean field on the fully-connected CRF lets every pixel of like colour
and near place vote on each other's class, and so moves borders to where the picture has them. The steps
seek the minimum of the free energy below.</p>
<img src="crf.png" alt="Picture, network output, after the CRF, changed pixels, and the energy by step">
<table>
{rows}
</table>
<h2>Energy</h2>
<table class="steps"><tr><td>step</td><td>nats</td></tr>{steps}</table>
</body></html>
"""


if __name__ == "__main__":
  main(sys.argv[1:])
