"""The watchdog on fake hangs: what it ends, what it leaves alone, and what it says."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from jaxseg import config as config_lib
from jaxseg.errors import UserError
from jaxseg.train import loop, watching
from jaxseg.train.runtime import RESTART
from jaxseg.train.watchdog import Watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")


class Result:
  """A step's result that is ready when it is told so."""

  def __init__(self, *, ready: bool):
    self.ready = ready

  def is_ready(self) -> bool:
    return self.ready


def test_steps_that_finish_and_what_is_no_step_are_left_alone(tmp_path):
  ended = threading.Event()
  with Watchdog(tmp_path, seconds=0.4, end=lambda code: ended.set()) as dog:
    dog.dispatched(1, Result(ready=False))  # compiling
    time.sleep(0.8)
    assert not ended.is_set(), "the first step may take as long as it likes"
    dog.started(1)
    for step in range(2, 8):
      dog.dispatched(step, Result(ready=True))
      time.sleep(0.15)
    with dog.aside():
      time.sleep(0.8)
    time.sleep(0.1)
    assert not ended.is_set()
  time.sleep(0.6)
  assert not ended.is_set() and not (tmp_path / "hung").exists(), "nor is anything after the run"


def test_a_hang_ends_the_run(tmp_path, capfd):
  codes = []
  with Watchdog(tmp_path, seconds=0.3, end=codes.append) as dog:
    dog.started(6)
    dog.dispatched(7, Result(ready=True))
    dog.dispatched(8, Result(ready=False))
    dog.dispatched(9, Result(ready=True))  # what comes after a step that hangs has not finished
    a_function_that_hangs(codes)
  assert codes == [RESTART]
  said = capfd.readouterr().err
  file = tmp_path / "hung" / "step-8-process-0.txt"
  assert "step 8 hangs: no step has finished for 0.3 s (process 0)" in said and str(file) in said
  assert "Exit code 75: the same command goes on from the last checkpoint" in said
  assert "a_function_that_hangs" in file.read_text(), "the stack of the thread that hangs"


def a_function_that_hangs(codes):
  deadline = time.monotonic() + 20
  while not codes and time.monotonic() < deadline:
    time.sleep(0.02)


def test_a_workdir_that_cannot_be_written(tmp_path, capfd):
  codes = []
  (tmp_path / "hung").write_text("a file where the folder should be")
  with Watchdog(tmp_path, seconds=0.2, end=codes.append) as dog:
    dog.started(1)
    a_function_that_hangs(codes)
  said = capfd.readouterr().err
  assert codes == [RESTART] and "the stacks of all threads follow, as they cannot be written to" in said
  assert "a_function_that_hangs" in said


_HANG = """
import sys, threading
from jaxseg.train import config as config_lib, loop, step
whole = step.jit_step

def jit_step(*args):
  run, calls = whole(*args), []
  def hangs(*args):
    calls.append(0)
    if len(calls) == 4:
      threading.Event().wait()  # in the main thread, as a device that does not answer
    return run(*args)
  return hangs

loop.jit_step = jit_step
changes = [("total_steps", "9"), ("eval.every_steps", "2"), ("hosts.step_timeout_seconds", "3")]
loop.train(config_lib.load(sys.argv[1], overrides=changes), sys.argv[2])
"""


def test_a_run_that_hangs(tmp_path):
  """The real loop, in a process of its own: exit code, sentence, stacks, and the same command goes on."""
  done = subprocess.run(
    [sys.executable, "-c", _HANG, TINY, str(tmp_path)],
    cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    check=False,
  )  # fmt: skip
  assert done.returncode == RESTART, done.stdout + done.stderr
  assert "step 4 hangs: no step has finished for 3 s" in done.stderr and "Traceback" not in done.stderr
  assert "in hangs" in (tmp_path / "hung" / "step-4-process-0.txt").read_text()
  changes = [("total_steps", "9"), ("eval.every_steps", "0")]
  assert loop.train(config_lib.load(TINY, overrides=changes), tmp_path) is not None


@pytest.mark.parametrize(
  ("key", "value", "sentence"),
  [
    (
      "profile_steps",
      "10",
      r"config.profile_steps is \(10,\); expected the first and the last step to trace",
    ),
    ("profile_steps", "(5,3)", r"between 1 and config.total_steps 2, such as \(10, 15\), or \(\) for none"),
    ("profile_steps", "(1,3)", r"config.profile_steps is \(1, 3\)"),
    ("profile_steps", "(0,1)", r"config.profile_steps is \(0, 1\)"),
    ("profile_steps", "a,b", r"config.profile_steps is \('a', 'b'\)"),
    ("hosts.step_timeout_seconds", "-1", r"config.hosts.step_timeout_seconds is -1.0; expected the seconds"),
    ("hosts.step_timeout_seconds", "nan", r"config.hosts.step_timeout_seconds is nan"),
  ],
)
def test_wrong_values_are_a_sentence(key, value, sentence):
  with pytest.raises(UserError, match=sentence):
    watching.check(config_lib.load(TINY, overrides=[(key, value)]))
