"""What a CRF search has counted so far, kept line by line so that it can stop at any moment."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer

from jaxseg.crf.search import Setting
from jaxseg.errors import UserError


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
      lines = self._path.read_text().splitlines() if self._path.exists() else []
      # A kill in mid-write leaves half a line at the end.
      lines = [line for line in lines if _is_whole(line)]
      self._lines = lines or [json.dumps(facts)]
      self._check(json.loads(self._lines[0]), facts)
      self._path.write_text("".join(line + "\n" for line in self._lines))
    except OSError as error:
      raise UserError(
        f"{str(directory)!r} cannot be written ({error.strerror or error}); choose another --output"
      ) from None
    for line in self._lines[1:]:
      entry = json.loads(line)
      setting = None if entry["setting"] is None else tuple(entry["setting"])
      matrix = np.zeros(entry["classes"] ** 2, np.int64)
      for at, pixels in entry["counts"]:
        matrix[at] = pixels
      self._counts[entry["image"], setting] = matrix.reshape(entry["classes"], -1)

  def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = [f"{key} {old.get(key)!r} (now {new[key]!r})" for key in new if old.get(key) != new[key]]
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


def _is_whole(line: str) -> bool:
  try:
    return isinstance(json.loads(line), dict)
  except ValueError:
    return False
