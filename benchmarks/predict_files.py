r"""`jaxseg predict` on a photo, a folder, a large image and a video: time and peak memory of the process.

  python benchmarks/predict_files.py --source=cgnet_cityscapes.pth --photos=photos/ --rounds=2

The folder has forty files of mixed sizes and formats, three of which are broken. On it `predict` takes turns
with a plain loop over `net.predict` that writes the same overlays and label maps and skips what it cannot
read; both start as new processes and compile what they need. Pictures are drawn, or cut from --photos. On a
machine with other work, the processor's seconds say more than the clock's.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import cv2
import numpy as np

_FORMATS = (".jpg", ".png", ".webp", ".tif", ".bmp")
_SOUND, _BROKEN = 37, 3
_LOOP = """
import pathlib, sys
import numpy as np
import jaxseg
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
net, output = jaxseg.from_pretrained(sys.argv[1]), pathlib.Path(sys.argv[3])
output.mkdir(parents=True, exist_ok=True)
for path in sorted(pathlib.Path(sys.argv[2]).iterdir()):
  try:
    label = net.predict(path)
  except jaxseg.errors.UserError as error:
    print(error)
    continue
  ids = Image.fromarray(label.astype(np.uint8))
  ids.putpalette(np.asarray(net.palette, np.uint8).reshape(-1).tolist())
  ids.save(output / f"{path.name}.label.png")
  Image.fromarray(net.overlay(path, label)).save(output / f"{path.name}.overlay.png")
"""


def main() -> None:
  """Draws what is missing, runs, and prints a line for each process."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--source", required=True, help="weights or a workdir")
  parser.add_argument("--photos", help="a folder of photos to cut the pictures from; drawn unless given")
  parser.add_argument("--output", default="runs/predict_files", help="default: %(default)s")
  parser.add_argument("--rounds", type=int, default=2, help="of the folder; default: %(default)s")
  parser.add_argument("--parts", default="photo,video,folder,large", help="default: %(default)s")
  parser.add_argument("--exact", action="store_true", help="time predict --exact, too")
  flags = parser.parse_args()
  root = pathlib.Path(flags.output).absolute()
  draw(root, flags.photos)
  source, parts = str(pathlib.Path(flags.source).absolute()), flags.parts.split(",")
  predict = lambda name, *words: run(  # noqa: E731
    [sys.executable, "-m", "jaxseg", "predict", str(root / name), f"--source={source}", *words]
  )
  for part, name in (("photo", "photo.jpg"), ("video", "video.mp4"), ("large", "large.png")):
    if part in parts:
      found = predict(name, f"--output={root / 'out' / part}")
      print(f"{name}: {text(found)}", flush=True)
  if "folder" not in parts:
    return
  runs: dict[str, list[tuple[float, float, float, int]]] = {"predict": [], "loop": []}
  if flags.exact:
    runs["predict --exact"] = []
  outputs = {}
  for turn in range(flags.rounds):
    for how in runs:
      outputs[how] = root / "out" / f"{how.replace(' --', '_')}_{turn}"
      if how == "loop":
        words = [sys.executable, "-c", _LOOP, source, str(root / "forty"), str(outputs[how])]
        found = run(words)
      else:
        found = predict("forty", f"--output={outputs[how]}", *how.split()[1:])
      runs[how].append(found)
      print(f"folder, {how}: {text(found)}", flush=True)
  for how in [how for how in runs if how != "loop"]:
    ratios = [
      [a / b for a, b in zip(*(p[:2] for p in pair), strict=True)]
      for pair in zip(runs["loop"], runs[how], strict=True)
    ]
    same = agreement(outputs["loop"], outputs[how])
    print(
      f"the loop took {' and '.join(f'{r[0]:.2f} (clock), {r[1]:.2f} (processor)' for r in ratios)} times as"
      f" long as {how}, whose labels are the loop's in {same:.2%} of the pixels"
    )


def draw(root: pathlib.Path, photos: str | None) -> None:
  """photo.jpg, forty/, large.png (12,000 x 9,000) and video.mp4 (48 frames), unless they are there."""
  if (root / "large.png").exists():
    return
  from jaxseg.evaluation.receptive_field import drawn_images

  rng = np.random.default_rng(0)
  if photos is None:
    sources = [image[..., ::-1] for image in drawn_images(8, (480, 640))]
  else:
    sources = [cv2.imread(str(path)) for path in sorted(pathlib.Path(photos).iterdir())[:64]]
    sources = [image for image in sources if image is not None]
  (root / "forty").mkdir(parents=True, exist_ok=True)

  def picture(number: int, columns: int, rows: int) -> np.ndarray:
    return cv2.resize(sources[number % len(sources)], (columns, rows), interpolation=cv2.INTER_CUBIC)

  for i in range(_SOUND):
    columns = int(rng.integers(360, 1100))
    rows = int(columns * rng.choice([0.5, 2 / 3, 0.75, 1.0, 1.333]))
    cv2.imwrite(str(root / "forty" / f"{i:02d}{_FORMATS[i % len(_FORMATS)]}"), picture(i, columns, rows))
  whole = (root / "forty" / "00.jpg").read_bytes()
  (root / "forty" / "broken_cut.jpg").write_bytes(whole[: len(whole) // 2])
  (root / "forty" / "broken_empty.png").write_bytes(b"")
  (root / "forty" / "broken_text.webp").write_text("not an image")
  cv2.imwrite(str(root / "photo.jpg"), picture(0, 1024, 768))
  wide = picture(0, 640, 480)
  sink = cv2.VideoWriter(str(root / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 24, (480, 360))
  for i in range(48):
    sink.write(np.ascontiguousarray(wide[i : 360 + i, 2 * i : 480 + 2 * i]))
  sink.release()
  cv2.imwrite(str(root / "large.png"), picture(1, 12_000, 9_000))


def run(words: list[str]) -> tuple[float, float, float, int]:
  """(seconds, the processor's seconds, peak resident GiB, exit code) of a process, as the kernel tells."""
  began = time.perf_counter()
  process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  busy = usage.ru_utime + usage.ru_stime
  return time.perf_counter() - began, busy, usage.ru_maxrss / 2**20, process.returncode


def text(found: tuple[float, float, float, int]) -> str:
  """As a line shows it."""
  return f"{found[0]:.1f} s, {found[1]:.1f} s of processor, peak {found[2]:.2f} GiB, exit code {found[3]}"


def agreement(one: pathlib.Path, other: pathlib.Path) -> float:
  """Share of the pixels of all label maps that are equal."""
  equal = pixels = 0
  for path in sorted(one.glob("*.label.png")):
    a, b = (cv2.imread(str(folder / path.name), cv2.IMREAD_UNCHANGED) for folder in (one, other))
    equal, pixels = equal + int(np.all(a == b, axis=-1).sum()), pixels + a.shape[0] * a.shape[1]
  return equal / max(pixels, 1)


if __name__ == "__main__":
  main()
