"""Starts the worker, asks it for one file after the other, and judges the answers."""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
from typing import Any

SECONDS = 10
_START = 180


class Worker:
  """The worker process; a file that ends or hangs it is reported, and another one started."""

  def __init__(self, sound: pathlib.Path):
    self._sound = sound
    self._process = None

  def read(self, path: pathlib.Path) -> dict[str, Any]:
    """{"values": digest} or {"sentence": text}, and otherwise "raised", "hung" or "died"."""
    if self._process is None:
      self._start()
    self._process.stdin.write(f"{path}\n")
    self._process.stdin.flush()
    try:
      line = self._lines.get(timeout=6 * SECONDS)
    except queue.Empty:
      self.close()
      return {"hung": True}
    if not line:
      code = self._process.wait()
      self.close()
      return {"died": code}
    return json.loads(line)

  def _start(self) -> None:
    command = [sys.executable, "-m", "tests.pretrained.hostile.worker", str(self._sound)]
    root = pathlib.Path(__file__).resolve().parents[3]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    self._process = subprocess.Popen(command, cwd=root, env=environment, **pipes)
    self._lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=self._pump, args=(self._process, self._lines), daemon=True).start()
    if self._lines.get(timeout=_START) != "ready\n":
      raise RuntimeError(
        "the worker did not start; run it by hand: python -m tests.pretrained.hostile.worker FILE"
      )

  @staticmethod
  def _pump(process, lines) -> None:
    for line in process.stdout:
      lines.put(line)
    lines.put("")

  def close(self) -> None:
    if self._process is not None:
      self._process.kill()
      with self._process:  # closes its pipes and waits
        pass
      self._process = None


def fault(result: dict[str, Any], path: pathlib.Path) -> str | None:
  """What is wrong with an answer, or None."""
  if result.get("ran"):
    return f"ran {result['ran']}"
  for kind in ("hung", "died", "raised"):
    if kind in result:
      return f"{kind} {result[kind]}"
  if result["seconds"] > SECONDS:
    return f"took {result['seconds']:.1f} s"
  sentence = result.get("sentence")
  if sentence is None:
    return None
  if "MemoryError" in sentence:
    return "took 1 GB"
  if str(path) not in sentence and str(path.parent) not in sentence:
    return f"does not name the file: {sentence[:200]}"
  rest = sentence.replace(str(path), "")
  return None if rest.isprintable() and len(rest) < 1500 else f"unreadable sentence: {sentence[:200]!r}"
