"""What the shapes of a state dict tell, asked so that one tensor of another shape does not decide.

A majority answers each question: the odd tensor is then reported as of another shape, and
the file not taken for another model.
"""

import re
from collections import Counter

from jaxseg.errors import UserError
from jaxseg.pretrained.keymap import Shapes
from jaxseg.pretrained.untrusted import MAX_BLOCKS


def sizes(shapes: Shapes, pattern: str, axis: int = 0) -> list[int]:
  """Lengths along `axis` of the tensors whose names fullmatch."""
  return [s[axis] for name, s in shapes.items() if len(s) > axis and re.fullmatch(pattern, name)]


def first(shapes: Shapes, pattern: str) -> int | None:
  """Rows of the first tensor whose name fullmatches, or None."""
  return next(iter(sizes(shapes, pattern)), None)


def vote(shapes: Shapes, pattern: str, default: int, axis: int = 0) -> int:
  """The most common length along `axis`, or `default` where no name matches."""
  counted = Counter(sizes(shapes, pattern, axis)).most_common(1)
  return counted[0][0] if counted else default


def count(shapes: Shapes, pattern: str) -> int:
  """How many different numbers the pattern's first group finds at the start of a name: the blocks of a stage.

  One odd name then claims one block, whatever its number.

  Raises:
    UserError: more than any network has.
  """
  numbers = {m[1] for name in shapes if (m := re.match(pattern, name))}
  if len(numbers) > MAX_BLOCKS:
    raise UserError(f"the names claim {len(numbers)} blocks in one stage, expected up to {MAX_BLOCKS}")
  return len(numbers)
