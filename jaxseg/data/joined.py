"""Splits one after another: "train+val" is what some published recipes train on."""

import bisect
import dataclasses
import itertools
from typing import Any

from jaxseg.data.source import Source


@dataclasses.dataclass(frozen=True)
class JoinedSource:
  """Several splits as one; see `jaxseg.data.source.Source`."""

  sources: tuple[Source, ...]

  def __len__(self) -> int:
    return sum(len(source) for source in self.sources)

  @property
  def state(self) -> str:
    """Of the files of all of them, see `preparing.RecordSource.state`."""
    return "+".join(getattr(source, "state", "") for source in self.sources)

  def __getitem__(self, index: int) -> dict[str, Any]:
    source, index = self._find(index)
    return source[index]

  def size(self, index: int) -> tuple[int, int]:
    """(h, w) of an example, without decoding it."""
    source, index = self._find(index)
    return source.size(index)

  def _find(self, index: int) -> tuple[Source, int]:
    if not 0 <= index < len(self):
      raise IndexError(f"index {index} is outside the {len(self)} examples")
    starts = list(itertools.accumulate((len(source) for source in self.sources), initial=0))
    part = bisect.bisect_right(starts, index) - 1
    return self.sources[part], index - starts[part]
