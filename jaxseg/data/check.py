"""What a data set holds, before anything is trained on it: classes, sizes, bad files, and a picture.

Reads the original files where there are some, so that nothing has to be prepared first
and one bad file does not hide the next.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath

from jaxseg.classes import members
from jaxseg.data import dataset_info, dataset_module, images, open_split, overlay, preparing
from jaxseg.data.progress import Progress
from jaxseg.data.source import DataError, DatasetInfo, Source
from jaxseg.types import IGNORE_LABEL

_SHOWN = 8


@dataclasses.dataclass
class Findings:
  """What was read of a split.

  `pixels[i]` counts the pixels of class i (pictures, where a label is one number),
  `images[i]` the pictures that show it, `labelled` those that are not ignored; `sizes` are (h, w).
  """

  info: DatasetInfo
  split: str
  total: int
  pixels: np.ndarray
  images: np.ndarray
  labelled: int = 0
  ignored: int = 0
  read: int = 0
  sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  problems: list[str] = dataclasses.field(default_factory=list)
  shown: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  unit: str = "pixels"
  skipped: list[str] = dataclasses.field(default_factory=list)

  def warnings(self) -> list[str]:
    """Sentences about labels with which training would go wrong without a word."""
    counts = self.pixels, self.images, self.labelled, self.ignored
    return label_warnings(self.info, *counts, is_all=self.read == self.total, unit=self.unit)

  def lines(self) -> list[str]:
    """The report."""
    labelled = self.labelled
    everything = max(labelled + self.ignored, 1)
    lines = [f"{self.info.name}, split {self.split}: {self.read:,} of {self.total:,} examples read"]
    if self.sizes:
      lines.append(_sizes(self.sizes))
    lines.append(f"without a label: {self.ignored / everything:.2%} of the {self.unit}")
    width = max(len(name) for name in self.info.classes)
    lines.append(f"{'id':>4}  {'class'.ljust(width)}  share of labelled {self.unit}  images")
    for i, name in enumerate(self.info.classes):
      if not self.images[i]:
        continue
      share = self.pixels[i] / max(labelled, 1)
      lines.append(f"{i:>4}  {name.ljust(width)}  {share:>{18 + len(self.unit)}.4%}  {self.images[i]:>6,}")
    missing = [name for name, count in zip(self.info.classes, self.images, strict=True) if not count]
    if missing:
      lines.append(f"in none of them, {len(missing)}: {', '.join(missing)}")
    lines += [f"warning: {sentence}" for sentence in self.warnings()]
    lines.append(f"skipped: {len(self.skipped)}")
    lines += [f"  {name}" for name in self.skipped]
    lines.append(f"bad examples: {len(self.problems)}")
    return lines + [f"  {problem}" for problem in self.problems]


def check_dataset(config_data: Any, split: str, *, samples: int = 200) -> Findings:
  """Reads `samples` examples, evenly spread over the split (0: all).

  A damaged file, a mask of another size or an id outside the table is noted with its
  file, and the next is read.

  Raises:
    DataError: no such data set or split, another layout, or a missing file.
  """
  if samples < 0:
    raise DataError(f"samples is {samples}; expected 0 for all, or a positive number")
  info = dataset_info(config_data)
  zeros = np.zeros(info.num_classes, np.int64)
  source = _originals(config_data, split) or _Prepared(open_split(config_data, split))
  findings = Findings(info, split, len(source), zeros, zeros.copy())
  findings.problems += source.problems
  findings.skipped += source.skipped
  count = min(samples or len(source), len(source))
  with Progress(count) as progress:
    for i in range(count):
      # Spread over the samples; where one is bad the next takes its place.
      due = len(findings.shown) < _SHOWN and len(findings.shown) * count <= i * _SHOWN
      try:
        for number, example in enumerate(source.examples(i * len(source) // count)):
          _count(findings, example)
          if due and number == 0:
            findings.shown.append(example)
      except DataError as error:
        findings.problems.append(str(error))
      # One file must not hide the next, whatever is wrong with it.
      except Exception as error:
        where = source.where(i * len(source) // count)
        findings.problems.append(f"{where} cannot be read ({type(error).__name__}: {images.one_line(error)})")
      progress.advance()
  return findings


def report(config_data: Any, split: str, *, samples: int, output: str) -> list[str]:
  """`check_dataset` as lines, after writing the picture `output`/NAME-SPLIT.png.

  Raises:
    DataError: see `check_dataset`; and, after the lines went to stdout, when an example is bad.
  """
  findings = check_dataset(config_data, split, samples=samples)
  lines = findings.lines()
  if findings.shown:
    folder = epath.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{findings.info.name}-{split.replace('+', '_')}.png"
    sheet = overlay.sheet(findings.shown, findings.info)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
    lines.append(f"picture of {len(findings.shown)} examples: {os.fspath(path)}")
  if findings.problems:
    print("\n".join(lines), file=sys.stdout, flush=True)
    bad, tried = len(findings.problems), findings.read + len(findings.problems)
    raise DataError(f"{bad} of {tried} examples are bad, see above; correct or remove their files")
  return lines


class _Originals:
  """Items of the original files, read and checked when asked for."""

  def __init__(self, original: Any, items: Sequence[Any], problems: Sequence[str], skipped: Sequence[str]):
    self._original, self._items = original, items
    self.problems, self.skipped = list(problems), list(skipped)

  def where(self, index: int) -> str:
    """The files of an item."""
    return " and ".join(map(str, self._items[index].paths))

  def __len__(self) -> int:
    return len(self._items)

  def examples(self, index: int) -> Iterator[dict[str, Any]]:
    """One, or the tiles of a large picture."""
    for record in self._original.load(self._items[index]):
      yield self._original.decode(record | {"id": record["id"].encode()})


class _Prepared:
  """A source, whose files were checked when they were stored."""

  problems, skipped = (), ()

  def __init__(self, source: Source):
    self._source = source

  def where(self, index: int) -> str:
    """The number of an example."""
    return f"example {index}"

  def __len__(self) -> int:
    return len(self._source)

  def examples(self, index: int) -> Iterator[dict[str, Any]]:
    """One."""
    yield self._source[index]


def _originals(config_data: Any, split: str) -> _Originals | None:
  """None where there are no original files to read."""
  module = dataset_module(config_data.name)
  original = module.original(config_data) if hasattr(module, "original") else None
  if original is None or not original.root:
    return None
  wanted = split.split("+")
  if original.survey is None:
    found, problems, skipped = preparing.find(original, wanted), (), ()
  else:
    found, survey, _ = original.survey()
    problems, skipped = survey.problems, survey.skipped
    preparing.check_splits(original, wanted, found)
  return _Originals(original, [item for part in wanted for item in found[part]], problems, skipped)


def label_warnings(
  info: DatasetInfo,
  pixels: np.ndarray,
  images: np.ndarray,
  labelled: int,
  ignored: int,
  *,
  is_all: bool = True,
  unit: str = "pixels",
) -> list[str]:
  """Sentences about classes that never occur, one that is nearly everything, and labels that are ignored.

  Args:
    info: names the classes.
    pixels: of each class.
    images: that show each class.
    labelled: pixels with a label.
    ignored: pixels without a label.
    is_all: whether the whole split was counted; else nothing is said about classes that did not occur.
    unit: what was counted.
  """
  if not labelled:
    return (
      [f"no {unit.rstrip('s')} has a label: all are {IGNORE_LABEL}, which is ignored; {_MAP}"]
      if ignored
      else []
    )
  sentences = []
  if len(info.classes) == 1:
    sentences.append(
      f"there is one class, so that all labelled {unit} are right and nothing is learned; an object"
      " and its surroundings are two"
    )
  if ignored > labelled:
    sentences.append(
      f"{ignored / (ignored + labelled):.1%} of the {unit} have no label (the mask's value, or what it is"
      f" mapped to, is {IGNORE_LABEL}); {_MAP}"
    )
  missing = [name for name, count in zip(info.classes, images, strict=True) if not count]
  if missing and is_all:
    sentences.append(f"{len(missing)} of {len(info.classes)} classes never occur: {', '.join(missing[:8])}")
  largest = int(np.argmax(pixels))
  if pixels[largest] > 0.99 * labelled and (len(info.classes) > 1 or info.multi_label):
    sentences.append(
      f"class {info.classes[largest]!r} has {pixels[largest] / labelled:.2%} of the labelled {unit}"
    )
  return sentences


_MAP = f"where {IGNORE_LABEL} is an object, set data.label_map, such as ((0,0),({IGNORE_LABEL},1))"


def check_labels(source: Source, info: DatasetInfo, *, samples: int = 200) -> list[str]:
  """`label_warnings` of examples evenly spread over an opened split: cheap enough for the start of a run.

  Raises:
    DataError: none of them has a labelled pixel.
  """
  zeros = np.zeros(info.num_classes, np.int64)
  findings = Findings(info, "", len(source), zeros, zeros.copy())
  count = min(samples, len(source))
  for i in range(count):
    _count(findings, source[i * len(source) // count])
  sentences = findings.warnings()
  if findings.ignored and not findings.labelled:
    raise DataError(f"{info.name}: {sentences[0]}")
  return sentences


def _count(findings: Findings, example: dict[str, Any]) -> None:
  findings.read += 1
  findings.sizes.append(example["image"].shape[:2])
  label = example["label"]
  if not np.ndim(label):
    findings.unit = "images"
    findings.pixels[label] += 1
    findings.images[label] += 1
    findings.labelled += 1
    return
  counts = np.bincount(label.reshape(-1), minlength=IGNORE_LABEL + 1)
  ignored, num_classes = int(counts[IGNORE_LABEL]), findings.info.num_classes
  findings.ignored += ignored
  findings.labelled += label.size - ignored
  if findings.info.multi_label:
    counts[IGNORE_LABEL] = 0
    counts = counts @ members(np.arange(len(counts)), num_classes)
  else:
    counts = counts[:num_classes]
  findings.pixels += counts
  findings.images += counts > 0


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
  h, w = np.array(sizes).T
  rules = (("min", np.min), ("median", np.median), ("max", np.max))
  parts = (f"{name} {rule(h):.0f}x{rule(w):.0f}" for name, rule in rules)
  return f"height x width, each by itself: {', '.join(parts)}; {len(set(sizes))} different sizes"
