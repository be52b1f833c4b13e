"""What a CRF search has counted so far, kept line by line so that it can stop at any moment."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from jaxseg.crf.search import Setting
from jaxseg.errors import UserError

_MAX_CLASSES = 1000  # of a line that is believed: a matrix of 8 MB


class SearchLog:
  """`search.jsonl`: what the search is of, then a line for each image and setting that was counted.

  A setting is None for the network alone. Counts are the [flat index, pixels] pairs of a confusion
  matrix that are not 0.
  """

  def __init__(self, directory: epath.PathLike, facts: dict[str, Any]):
    """Opens the log of an earlier search of the same, or begins one.

    Raises:
      UserError: `directory` holds another search, or cannot be written.
    """
    self._path = epath.Path(directory) / "search.jsonl"
    self._counts: dict[tuple[int, Setting | None], Integer[np.ndarray, "k k"]] = {}
    facts = json.loads(json.dumps(facts))
    try:
      epath.Path(directory).mkdir(parents=True, exist_ok=True)
      lines = self._path.read_bytes().decode(errors="replace").splitlines() if self._path.exists() else []
      # A kill in mid-write leaves half a line at the end; what a line does not tell is counted again.
      head, *counted = lines or [json.dumps(facts)]
      entries = [
        (line, entry) for line in counted if (entry := _entry_of(line, facts.get("classes"))) is not None
      ]
      self._check(_object_of(head), facts)
      self._lines = [head, *(line for line, _ in entries)]
      self._path.write_text("".join(line + "\n" for line in self._lines))
    except OSError as error:
      raise UserError(
        f"{str(directory)!r} cannot be written ({error.strerror or error}); choose another --output"
      ) from None
    for _, (image, setting, matrix) in entries:
      self._counts[image, setting] = matrix

  def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [
      f"{key} {repr(old.get(key))[:80]} (now {new[key]!r})" for key in new if old.get(key) != new[key]
    ]
    if changed:
      raise UserError(
        f"{str(self._path)!r} is another search: {', '.join(changed)}; choose another --output, or delete it"
      )

  def __contains__(self, key: tuple[int, Setting | None]) -> bool:
    return key in self._counts

  def add(self, image: int, setting: Setting | None, matrix: Integer[np.ndarray, "k k"]) -> None:
    """Counts one result; it is in the file when this returns."""
    self._counts[image, setting] = matrix
    flat = matrix.reshape(-1)
    counts = [[int(at), int(flat[at])] for at in np.flatnonzero(flat)]
    line = json.dumps({"image": image, "setting": setting, "classes": len(matrix), "counts": counts})
    self._lines.append(line)
    if "://" in str(self._path):  # gs:// cannot append
      self._path.write_text("".join(line + "\n" for line in self._lines))
    else:
      with open(self._path, "a") as file:
        file.write(line + "\n")

  def total(self, images: Sequence[int], setting: Setting | None) -> Integer[np.ndarray, "k k"]:
    """The sum over `images`, each of which was counted."""
    return sum(self._counts[image, setting] for image in images)


def _object_of(line: str) -> dict[str, Any]:
  """The object that a line holds; {} for any other."""
  try:
    values = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  return values if isinstance(values, dict) else {}


def _entry_of(line: str, wanted: int | None) -> tuple[int, Setting | None, Integer[np.ndarray, "k k"]] | None:
  """(image, setting, counts) of a line that `add` wrote, of `wanted` classes; None for any other."""
  values = _object_of(line)
  image, setting, classes, counts = (values.get(key) for key in ("image", "setting", "classes", "counts"))
  if type(image) is not int or type(classes) is not int or not 0 < classes <= _MAX_CLASSES:
    return None
  if wanted is not None and classes != wanted:
    return None
  numbers = isinstance(setting, list) and len(setting) == 3 and all(type(v) in (int, float) for v in setting)
  if not (setting is None or (numbers and all(abs(v) < 1e300 for v in setting))) or not isinstance(
    counts, list
  ):
    return None
  matrix = np.zeros(classes**2, np.int64)
  for pair in counts:
    if not (isinstance(pair, list) and len(pair) == 2 and all(type(v) is int for v in pair)):
      return None
    at, pixels = pair
    if not (0 <= at < len(matrix) and 0 < pixels < 2**53):
      return None
    matrix[at] = pixels
  return image, None if setting is None else tuple(map(float, setting)), matrix.reshape(classes, classes)
