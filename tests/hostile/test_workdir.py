"""What a damaged or hostile workdir does to those who read it: the right values, or one sentence.

One tiny run; each case changes one of its files, as a text editor, a full disk or an enemy would, and every
reader looks at it. JAXSEG_HOSTILE=1000 for more cases than CI has.
"""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxseg
from jaxseg import cli
from jaxseg.checkpoint import restore_variables
from jaxseg.config import record
from jaxseg.errors import UserError
from jaxseg.train import best
from jaxseg.train.metrics import MetricsLog, read_metrics

COUNT = int(os.environ.get("JAXSEG_HOSTILE", "60"))
FILES = ("config.json", "best/config.json", "best/score.json", "metrics.jsonl", "best/model.safetensors")
HOSTILE = (
  None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\x1b[2J\x1b]0;owned\x07",
  [], [[]], [1] * 5000, {}, {"a": {}}, "__class__", "<script>alert(1)</script>", "| a | b |\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir of two steps."""
  folder = tmp_path_factory.mktemp("hostile") / "run"
  words = ["--config.compilation_cache=off", "--config.log.panel_every_steps=0"]
  cli.main(["train", "--config=colour_only_synthetic:smoke", f"--workdir={folder}", *words])
  return folder


def paths_of(value, path=()):
  """The place of every value in a JSON tree."""
  yield path
  if isinstance(value, dict | list):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      yield from paths_of(inner, (*path, key))


def changed(value, path, new):
  """A copy with `new` at `path`."""
  if not path:
    return new
  copy = dict(value) if isinstance(value, dict) else list(value)
  copy[path[0]] = changed(copy[path[0]], path[1:], new)
  return copy


@st.composite
def damages(draw):
  """(file, what happens to its bytes)."""
  name = draw(st.sampled_from(FILES))
  kind = draw(st.sampled_from(["cut", "flip", "empty", "value", "value", "value", "deep"]))
  seed = draw(st.integers(0, 2**32 - 1))
  new = draw(st.sampled_from(HOSTILE))

  def damage(content: bytes) -> bytes:
    rng = np.random.default_rng(seed)
    if kind == "empty":
      return b""
    if kind == "cut":
      return content[: int(rng.integers(len(content)))]
    if kind == "deep" and name.endswith("json"):
      return b"[" * 100_000
    if kind == "value" and name.endswith(("json", "jsonl")):
      lines = content.decode().splitlines() if name.endswith("jsonl") else [content.decode()]
      at = int(rng.integers(len(lines)))
      values = json.loads(lines[at])
      places = list(paths_of(values))
      lines[at] = json.dumps(changed(values, places[int(rng.integers(len(places)))], new))
      return "\n".join(lines).encode() + b"\n"
    out = bytearray(content)
    for _ in range(4):
      out[int(rng.integers(len(out)))] ^= int(rng.integers(1, 256))
    return bytes(out)

  return name, damage


def printable_sentence(error: UserError) -> None:
  text = str(error)
  assert text and "\n" not in text and "\x1b" not in text and len(text) < 2000, repr(text[:300])


def readers(workdir: pathlib.Path):
  """Everything that reads a workdir before a device is asked for anything."""
  yield lambda: record.read_config(workdir)
  yield lambda: record.is_workdir(workdir)
  yield lambda: best.step_of(workdir)
  yield lambda: best.read(workdir)
  yield lambda: restore_variables(workdir)
  yield lambda: jaxseg.from_pretrained(workdir)
  yield lambda: jaxseg.from_pretrained(workdir / "best")
  yield lambda: cli.main(["config", f"--config={workdir / 'config.json'}"])


def test_every_reader_gives_right_values_or_a_sentence(run, tmp_path, capsys):
  sound = jaxseg.from_pretrained(run)

  @settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), database=None)
  @given(damages())
  def case(damage):
    name, change = damage
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    for read in readers(folder):
      try:
        value = read()
      except UserError as error:
        printable_sentence(error)
        continue
      except SystemExit as stopped:  # of the command, which has printed its sentence
        assert stopped.code == 2
        continue
      if isinstance(value, jaxseg.Net) and name not in ("best/model.safetensors",):
        assert np.isfinite(value.preprocess.mean).all() and np.isfinite(value.preprocess.std).all()
        assert len(value.classes) == len(sound.classes)
    out = capsys.readouterr()
    assert "\x1b" not in out.out + out.err and "Traceback" not in out.err

  case()


def test_a_log_that_cannot_be_read_is_kept_aside(run, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  whole = (folder / "metrics.jsonl").read_text().splitlines()
  broken = ['{"step": 2, "loss": ', "[1]", '{"step": NaN}', '{"step": 2, "loss": "<b>"}', "9" * 5000]
  killed = '{"step": 2, "lo'  # the last line may be one of a kill, and is no loss
  (folder / "metrics.jsonl").write_text("\n".join([whole[0], *broken, killed]) + "\n")
  assert read_metrics(folder) == [json.loads(whole[0])]
  MetricsLog(folder, resume_step=2)
  assert (folder / "metrics.jsonl").read_text().splitlines() == [whole[0]]
  assert (folder / "metrics.jsonl.unreadable").read_text().splitlines() == broken
