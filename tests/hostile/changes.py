"""What a text editor, a full disk or an enemy does to a file, drawn; and what a sentence looks like."""

import json
import os
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

HOSTILE = (
  None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\x1b[2J\x1b]0;owned\x07",
  [], [[]], [1] * 5000, {}, {"a": {}}, "__class__", "<script>alert(1)</script>", "| a | b |\n",
)  # fmt: skip
# Names that somebody chose to harm a terminal, a table, a page or a path.
NAMES = (
  "\x1b[31mred\x1b[0m", "\x1b]0;owned\x07", "a|b", "a\nb", "a\r\nb", "<img src=x onerror=alert(1)>",
  "`rm -rf`",
  "[x](javascript:alert(1))", "\u202eevil", "*b*_i_", "# head", "a\tb", "</script><script>", "&amp;", "\x07",
  "'\"", "\\", "x" * 300, "Straße σ", "a" + "\x00", "\x9b31m", "../../etc",
)  # fmt: skip
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=12))


def cases(count: int) -> settings:
  """Settings of a generated test: `count` cases in CI, JAXSEG_HOSTILE of them where it is set."""
  return settings(
    max_examples=int(os.environ.get("JAXSEG_HOSTILE", count)),
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),  # shrinking a case that failed takes longer than all of them
    suppress_health_check=list(HealthCheck),
  )


def paths_of(value: Any, path: tuple = ()):
  """The place of every value in a JSON tree."""
  yield path
  if isinstance(value, dict | list):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      yield from paths_of(inner, (*path, key))


def changed(value: Any, path: tuple, new: Any) -> Any:
  """A copy with `new` at `path`."""
  if not path:
    return new
  copy = dict(value) if isinstance(value, dict) else list(value)
  copy[path[0]] = changed(copy[path[0]], path[1:], new)
  return copy


def without(value: Any, path: tuple) -> Any:
  """A copy that lacks what is at `path`."""
  copy = dict(value) if isinstance(value, dict) else list(value)
  if len(path) == 1:
    del copy[path[0]]
  else:
    copy[path[0]] = without(copy[path[0]], path[1:])
  return copy


@st.composite
def damages(draw, kinds=("cut", "flip", "empty", "value", "value", "value", "gone", "deep")):
  """A function that changes the bytes of a file; of JSON and lines of JSON, also one of their values."""
  kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32 - 1))
  new = draw(st.one_of(st.sampled_from(HOSTILE), st.floats(), st.integers(), st.text(max_size=9)))

  def change(content: bytes) -> bytes:
    rng = np.random.default_rng(seed)
    if kind == "empty":
      return b""
    if kind == "cut":
      return content[: int(rng.integers(len(content)))]
    if kind == "deep":
      return b"[" * 100_000
    if kind in ("value", "gone"):
      try:
        lines = [content.decode()] if _is_json(content) else content.decode().splitlines()
        at = int(rng.integers(len(lines)))
        values = json.loads(lines[at])
      except ValueError:  # no JSON: its bytes, below
        lines = []
      if lines:
        places = list(paths_of(values))
        place = places[int(rng.integers(len(places)))]
        lines[at] = json.dumps(
          without(values, place) if kind == "gone" and place else changed(values, place, new)
        )
        return "\n".join(lines).encode() + b"\n"
    out = bytearray(content)
    for _ in range(4):
      out[int(rng.integers(len(out)))] ^= int(rng.integers(1, 256))
    return bytes(out)

  return change


def _is_json(content: bytes) -> bool:
  try:
    json.loads(content)
    return True
  except ValueError:
    return False


def assert_sentence(error: Exception, *, lines: int = 1) -> None:
  """One printable sentence of a length that somebody reads."""
  text = str(error)
  assert text and text.count("\n") < lines and len(text) < 2000, repr(text[:300])
  assert all(c.isprintable() or c == "\n" for c in text), repr(text[:300])
