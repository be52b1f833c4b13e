"""Which files of a folder belong together: images, masks, splits, and what is left over, with the reason."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxseg.data import files
from jaxseg.data.reading import IMAGE_SUFFIXES, MASK_SUFFIXES
from jaxseg.data.source import DataError

_SHOWN = 5
# Folders of these names below images/ are splits; others are part of the names.
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


@dataclasses.dataclass
class Survey:
  """What a folder holds.

  Attributes:
    pairs: split → (id, image, mask, extra), paths as text; extra is None, or of masks of one class each
      (number of the class, path).
    problems: sentences about files that are missing or stand for two things.
    skipped: "PATH (why)" of every file and folder that is not used.
    absent: class → how many images have masks of other classes and none of it.
  """

  pairs: dict[str, list[tuple[str, str, str, Any]]] = dataclasses.field(default_factory=dict)
  problems: list[str] = dataclasses.field(default_factory=list)
  skipped: list[str] = dataclasses.field(default_factory=list)
  absent: dict[str, int] = dataclasses.field(default_factory=dict)

  def raise_problems(self) -> None:
    """Raises DataError with the first of them, and how many there are."""
    if self.problems:
      more = len(self.problems) - 1
      rest = f" ({more} more problem{'s' * (more > 1)}; jaxseg check-dataset lists all)" if more else ""
      raise DataError(self.problems[0] + rest)

  def notice(self) -> str:
    """One sentence about what is skipped, or taken for granted; "" for nothing."""
    parts = []
    if self.absent:
      lacking = (f"{count} without a mask of {name}" for name, count in self.absent.items())
      parts.append(f"images that are taken to show no such class: {', '.join(lacking)}")
    if self.skipped:
      shown = ", ".join(self.skipped[:_SHOWN])
      parts.append(f"skipped {len(self.skipped)}: {shown}{', ...' if len(self.skipped) > _SHOWN else ''}")
    return "; ".join(parts)


def survey(
  root: str, *, mask_suffix: str = "", splits: Sequence[str] = (), classes: Sequence[str] = ()
) -> Survey:
  """Looks through root/images and root/masks; `splits` are further names of splits.

  With `classes` an image NAME without a mask NAME may have a mask NAME_CLASS for each of them.

  Raises:
    DataError: one of the two folders is missing.
  """
  found = Survey()
  images = _by_name(found, f"{root}/images", IMAGE_SUFFIXES, "no image: expected " + _words(IMAGE_SUFFIXES))
  masks = list(_walk(f"{root}/masks", found))
  pool = _Masks(masks, mask_suffix, classes, found)
  names = {*_SPLITS, *splits}
  folders = {name.split("/")[0] for name in images if "/" in name} | _folders(f"{root}/images")
  lists = [s for s in dict.fromkeys((*splits, *_SPLITS)) if epath.Path(f"{root}/{s}.txt").exists()]
  if folders & names:
    for split in sorted(folders):
      if not epath.Path(f"{root}/masks/{split}").exists():
        raise DataError(f"folder: {root}/masks/{split} does not exist beside {root}/images/{split}")
    for name in sorted(images):
      split, _, rest = name.partition("/")
      if not rest:
        found.skipped.append(f"{images[name]} (beside the folders of splits)")
        continue
      _pair(found, split, rest, images[name], pool, name)
    for split in sorted(folders):
      found.pairs.setdefault(split, [])
  elif lists:
    _listed(found, root, lists, images, pool)
  else:
    for name in sorted(images):
      _pair(found, "", name, images[name], pool, name)
  found.skipped += pool.left_over()
  return found


def _words(suffixes: Sequence[str]) -> str:
  return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


def _is_hidden(name: str) -> bool:
  return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _walk(folder: str, found: Survey) -> Iterator[str]:
  """Paths of the regular files in a folder and below, sorted; what is hidden or no file is skipped."""
  if files.is_remote(folder):
    for name in files.names(folder):
      if _is_hidden(name):
        found.skipped.append(f"{folder}/{name} (hidden)")
      elif os.path.splitext(name)[1]:
        yield f"{folder}/{name}"
      else:
        yield from _walk(f"{folder}/{name}", found)
    return
  seen = set()
  for where, below, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(where)
    if real in seen:  # a link to a folder around it
      below.clear()
      continue
    seen.add(real)
    below.sort()
    for name in [name for name in below if _is_hidden(name)]:
      below.remove(name)
      found.skipped.append(f"{where}/{name} (hidden)")
    for name in sorted(names):
      path = f"{where}/{name}"
      if _is_hidden(name):
        found.skipped.append(f"{path} (hidden)")
      elif not os.path.isfile(path):
        found.skipped.append(f"{path} ({'a link to nothing' if os.path.islink(path) else 'no regular file'})")
      else:
        yield path


def _by_name(found: Survey, folder: str, suffixes: Sequence[str], why: str) -> dict[str, str]:
  """Name below the folder without suffix → path."""
  by_name: dict[str, str] = {}
  for path in _walk(folder, found):
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in suffixes:
      found.skipped.append(f"{path} ({why})")
      continue
    name = stem[len(folder) + 1 :]
    if name in by_name:
      found.problems.append(f"{by_name[name]} and {path} share a name; one picture a name, remove one")
      continue
    by_name[name] = path
  return by_name


def _folders(folder: str) -> set[str]:
  if files.is_remote(folder) or not os.path.isdir(folder):
    return set()
  return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name)}


class _Masks:
  """Masks by the names of their images."""

  def __init__(self, paths: Sequence[str], suffix: str, classes: Sequence[str], found: Survey):
    self.classes = classes
    stem, end = os.path.splitext(suffix)
    self._suffix = stem if end.lower() in MASK_SUFFIXES else suffix
    self._paths: dict[str, str] = {}
    self._used: set[str] = set()
    self._other = [
      p for p in paths if os.path.splitext(p)[1].lower() not in (*MASK_SUFFIXES, ".jpg", ".jpeg")
    ]
    for path in paths:
      if path in self._other:
        continue
      key = os.path.splitext(path)[0]
      if key in self._paths:
        found.problems.append(f"{self._paths[key]} and {path} share a name; one mask a name, remove one")
        continue
      self._paths[key] = path
    # Names that differ from another's in the case of letters only stand for themselves alone.
    self._any_case: dict[str, list[str]] = {}
    for key, path in self._paths.items():
      self._any_case.setdefault(key.lower(), []).append(path)

  def find(self, folder: str, name: str, image: str) -> str | None:
    """The mask of an image called `name` (without suffix)."""
    whole = name + os.path.splitext(image)[1]  # NAME.jpg.png
    return self._first(folder, (name + self._suffix, whole + self._suffix))

  def find_by_class(self, folder: str, name: str) -> list[tuple[int, str]]:
    """(number of a class, its mask) of those of an image's masks that are called NAME_CLASS."""
    found = []
    for number, class_name in enumerate(self.classes):
      words = (class_name, class_name.replace(" ", "_"))
      path = self._first(folder, [f"{name}_{word}{self._suffix}" for word in words])
      if path is not None:
        found.append((number, path))
    return found

  def _first(self, folder: str, stems: Sequence[str]) -> str | None:
    for stem in stems:
      key = f"{folder}/{stem}"
      same = self._any_case.get(key.lower(), [])
      path = self._paths.get(key) or (same[0] if len(same) == 1 else None)
      if path is not None:
        self._used.add(path)
        return path
    return None

  def like(self, folder: str, name: str) -> str:
    """The rest of the one mask's name that begins with `name`; "" where there is none."""
    start = f"{folder}/{name}"
    ends = [key[len(start) :] for key in self._paths if key.startswith(start) and key != start]
    return ends[0] if len(ends) == 1 and "/" not in ends[0] else ""

  def left_over(self) -> list[str]:
    """Masks without an image, and files that are no masks."""
    alone = [f"{path} (a mask without its image)" for path in self._paths.values() if path not in self._used]
    expected = _words(MASK_SUFFIXES)
    return [*alone, *(f"{path} (no mask: expected {expected})" for path in self._other)]


def _pair(found: Survey, split: str, id_: str, image: str, masks: _Masks, name: str) -> None:
  root = image[: image.index("/images/" + name)] if "/images/" + name in image else ""
  folder = f"{root}/masks"
  mask = masks.find(folder, name, image)
  members = found.pairs.setdefault(split, [])
  if mask is None and (by_class := masks.find_by_class(folder, name)):
    has = {number for number, _ in by_class}
    for number, class_name in enumerate(masks.classes):
      if number not in has:
        found.absent[class_name] = found.absent.get(class_name, 0) + 1
    members.append((id_, image, by_class[0][1], tuple(by_class)))
    return
  if mask is None:
    like = masks.like(folder, name)
    hint = f"; the masks seem to end in {like!r}: set data.mask_suffix={like}" if like else ""
    found.problems.append(f"mask {folder}/{name}.png of image {image} is missing{hint}")
    return
  members.append((id_, image, mask, None))


def _listed(found: Survey, root: str, lists: Sequence[str], images: dict[str, str], masks: _Masks) -> None:
  where: dict[str, str] = {}
  base: dict[str, list[str]] = {}
  for name in images:
    base.setdefault(os.path.basename(name), []).append(name)
  for split in lists:
    found.pairs[split] = []
    path = f"{root}/{split}.txt"
    lines = [
      line.strip() for line in epath.Path(path).read_bytes().decode("utf-8-sig", "replace").splitlines()
    ]
    for line in filter(None, lines):
      name = _name_in(line, images, base)
      if name is None:
        found.problems.append(f"image {line!r} is listed in {path} but missing in {root}/images")
        continue
      if name in where:
        also = "twice in it" if where[name] == path else f"in {where[name]}, too"
        found.problems.append(
          f"image {line!r} is listed in {path} and {also}; an image belongs to one split, once"
        )
        continue
      where[name] = path
      _pair(found, split, name, images[name], masks, name)
  found.skipped += [f"{images[name]} (in no list)" for name in sorted(images) if name not in where]


def _name_in(line: str, images: dict[str, str], base: dict[str, list[str]]) -> str | None:
  """The image that a line of a list names: its path below images/, or its file's name alone."""
  line = line.replace("\\", "/").removeprefix("./").removeprefix("images/")
  # "a.b" is a name with a dot in it, "a.png" one with its suffix.
  stem, suffix = os.path.splitext(line)
  if stem in images and os.path.basename(images[stem]) == os.path.basename(line):
    return stem  # the file of just this name, also where another one is called "a.png.png"
  for name in (line, stem) if suffix.lower() in IMAGE_SUFFIXES else (line,):
    if name in images:
      return name
    same = base.get(os.path.basename(name), [])
    if len(same) == 1:
      return same[0]
  return None
