"""Sources that change another: some of its examples, corrupted images, other labels."""

import dataclasses
import zlib
from typing import Any

import numpy as np

from jaxseg.data.source import Source
from jaxseg.evaluation.corruptions import corrupt


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Some examples of a source."""

  source: Source
  indices: list[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.source[self.indices[index]]

  def size(self, index: int) -> tuple[int, int]:
    """(rows, columns), without decoding."""
    return self.source.size(self.indices[index])


@dataclasses.dataclass(frozen=True)
class Corrupted:
  """A source whose images have a corruption; an example's pixels hang on its number, and on nothing else.

  Attributes:
    source: of the clean examples.
    name, severity: as `corrupt` takes them.
    seed: of what is drawn.
    frost: photographs of ice, or ().
  """

  source: Source
  name: str
  severity: int
  seed: int = 0
  frost: tuple[np.ndarray, ...] = ()

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    example = self.source[index]
    rng = np.random.default_rng((self.seed, zlib.crc32(self.name.encode()), self.severity, index))
    image = corrupt(np.asarray(example["image"]), self.name, self.severity, rng=rng, frost=self.frost)
    return {**example, "image": image}

  def size(self, index: int) -> tuple[int, int]:
    """(rows, columns), without decoding."""
    return self.source.size(index)


@dataclasses.dataclass(frozen=True)
class Relabelled:
  """A source with other labels."""

  source: Source
  labels: list[np.ndarray]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {**self.source[index], "label": self.labels[index]}

  def size(self, index: int) -> tuple[int, int]:
    """(rows, columns), without decoding."""
    return self.source.size(index)
