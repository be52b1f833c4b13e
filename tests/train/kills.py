"""A job of one or several real processes that is killed again and again, and what it left in its log."""

import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds; the machine may be busy


@dataclasses.dataclass(frozen=True)
class Topology:
  """Processes, and fake devices of each."""

  processes: int = 2
  devices: int = 1


def start(workdir: pathlib.Path, topology: Topology, words: tuple[str, ...]) -> list[subprocess.Popen]:
  """Starts train.py on every process of the job; each writes to a file of its own beside the workdir."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  running = []
  for index in range(topology.processes):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={topology.devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    if topology.processes > 1:
      environment |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(topology.processes),
        "JAX_PROCESS_ID": str(index),
      }
    with open(f"{workdir}.{index}.out", "w") as out:
      running.append(
        subprocess.Popen(
          [sys.executable, "train.py", f"--workdir={workdir}", *words],
          cwd=ROOT,
          env=environment,
          stdout=out,
          stderr=subprocess.STDOUT,
        )
      )
  return running


def said(workdir: pathlib.Path) -> str:
  """What the processes of the last start wrote."""
  return "".join(path.read_text() for path in sorted(workdir.parent.glob(f"{workdir.name}.*.out")))


def finish(running: list[subprocess.Popen]) -> list[int]:
  """Waits, and gives the exit codes."""
  try:
    return [process.wait(PATIENCE) for process in running]
  finally:
    for process in running:
      process.kill()
      process.wait()


def lines_of(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def logged(workdir: pathlib.Path) -> int:
  """Whole lines of the log."""
  log = workdir / "metrics.jsonl"
  return log.read_bytes().count(b"\n") if log.exists() else 0


def saved(workdir: pathlib.Path) -> int:
  """The newest finished checkpoint, 0 for none."""
  folder = workdir / "checkpoints"
  return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def wait_until(running: list[subprocess.Popen], workdir: pathlib.Path, lines: int) -> None:
  """Until the run has written its card, so has cut the log after its first step, and so many lines."""
  deadline = time.monotonic() + PATIENCE
  while logged(workdir) < lines or " an epoch" not in said(workdir):
    assert all(process.poll() is None for process in running), said(workdir)
    assert time.monotonic() < deadline, f"no {lines} lines in {PATIENCE} s\n{said(workdir)}"
    time.sleep(0.002)


def kill_once(
  workdir: pathlib.Path,
  topology: Topology,
  words: tuple[str, ...],
  *,
  how: str,
  at: int,
  delay: float,
  every: int,
) -> str:
  """Starts the run, kills it once the log has `at` lines and `delay` seconds have passed; what happened.

  Args:
    at: 0 does not wait for the run to have started.
    how: "term" (SIGTERM to the first process), "terms" (to all), "kill" (-9 to all), "kill one" (the last),
      "interrupt" (Ctrl-C to all).
    every: steps between two checkpoints.
  """
  before = saved(workdir)
  running = start(workdir, topology, words)
  try:
    if at:
      at = max(at, before + 1)
      wait_until(running, workdir, at)
    time.sleep(delay)
    number = {"term": signal.SIGTERM, "terms": signal.SIGTERM, "interrupt": signal.SIGINT}.get(
      how, signal.SIGKILL
    )
    told = {"term": running[:1], "kill one": running[-1:]}.get(how, running)
    for process in told:
      os.kill(process.pid, number)
    began = time.monotonic()
    codes = finish(running)
  finally:
    for process in running:
      process.kill()
  took = time.monotonic() - began
  text, last, steps = said(workdir), saved(workdir), logged(workdir)
  if before and at:
    assert f", from step {before}" in text, f"it went on from the last save, {before}\n{text}"
  if number == signal.SIGTERM:
    assert codes == [75] * topology.processes, f"{codes}\n{text}"
    assert last == steps, "all that was done is saved"
    assert text.count(f"preempted at step {last}; saved; the same command goes on") == topology.processes
  else:
    if number == signal.SIGINT:
      assert codes == [130] * topology.processes, f"{codes}\n{text}"
    survivors = [code for process, code in zip(running, codes, strict=True) if process not in told]
    assert all(code not in (0, 2) for code in survivors), f"{codes}\n{text}"
    # The save of a step starts once its line is in the log and the save before it has ended.
    assert last >= max(before, (at // every - 2) * every), f"{last} is saved, of {steps} steps"
  return f"{how} at line {steps} on {topology}, saved {last}, codes {codes} after {took:.1f} s"


def kill_many(
  workdir: pathlib.Path,
  words: tuple[str, ...],
  *,
  topologies: list[Topology],
  total: int,
  every: int,
  seed: int,
  damage: bool = False,
  tell=lambda text: None,
) -> None:
  """Kills a run once on each topology but the last, at random moments, and lets the last finish.

  With `damage` the newest checkpoint is damaged before that.
  """
  rng = random.Random(seed)
  moments = sorted(rng.sample(range(2, total - 2), len(topologies) - 1))
  kinds = ["term", "kill", "kill one", "terms"]
  for number, (topology, at) in enumerate(zip(topologies, moments, strict=False)):
    how = kinds[(number + seed) % len(kinds)]
    if topology.processes == 1:
      how = {"kill one": "interrupt", "terms": "term"}.get(how, how)
    delay = rng.random() * 0.3
    if number % 5 == 4:  # at any moment of its start
      how, at, delay = "kill", 0, delay * 50
    tell(kill_once(workdir, topology, words, how=how, at=at, delay=delay, every=every))
  newest = saved(workdir)
  if damage:
    files = [path for path in (workdir / "checkpoints" / str(newest)).rglob("d/*") if path.is_file()]
    for path in files:
      path.write_bytes(path.read_bytes()[:-50])
    assert files
  codes = finish(start(workdir, topologies[-1], words))
  assert codes == [0] * topologies[-1].processes, f"{codes}\n{said(workdir)}"
  went_on = re.search(r", from step (\d+)", said(workdir))
  if damage:
    assert went_on and int(went_on[1]) < newest, said(workdir)
    assert f"these checkpoints are damaged: {newest} (" in said(workdir)
    assert (workdir / "damaged_checkpoints" / str(newest)).is_dir()
  else:
    assert not newest or int(went_on[1]) == newest, said(workdir)
