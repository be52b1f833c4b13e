r"""Random operation of one run, for as long as is asked: what a rough week does to it, in an hour or two.

  python -m tests.hostile.operate --minutes=120 [--seed=0] [--folder=DIR]

Trains a small CGNet on a drawn folder and, at random, kills it, stops it, starts a second run on its workdir,
evaluates it meanwhile, changes a value, changes the data, damages a file, or takes the disk away. After
each operation: every process ended by success, by the signal that it was sent, or with one sentence; the log
holds every step once, in order and without a gap, as strict JSON; `best/score.json` and what `jaxseg eval`
gives are the scores that training logged for the steps that they name. The end is a table of operations, of
ends, and a list of what was wrong; exit code 1 where there is any.
"""

import argparse
import collections
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds that any command may take on a busy machine
SETTINGS = (
  "--config=cgnet_m3n21_folder", "--config.data.classes=ground,box,ball", "--config.data.crop_size=(64,64)",
  "--config.model.encoder.num_blocks=(1,1)", "--config.batch_size=2", "--config.eval.every_steps=5",
  "--config.eval.batch_size=2", "--config.eval.canvases=exact", "--config.checkpoint.every_steps=5",
  "--config.log.panel_every_steps=0", "--config.log.every_steps=1",
  # Constant, so that another number of steps is no other program.
  "--config.optimizer.schedule.warmup_steps=0", "--config.optimizer.schedule.name=constant",
)  # fmt: skip
# What a resume may take, and what it must refuse, since the weights would mean something else.
TAKEN = ("batch_size=3", "optimizer.learning_rate=0.002", "data.flip=0.0", "seed=7")
REFUSED = (
  "data.classes=ground,box,ball,tree",
  "model.encoder.num_blocks=(1,2)",
  "data.classes=ground,ball,box",
)
# Ends that are not a fault of the program: done, bad input, preempted, Ctrl-C.
SENTENCE, PREEMPTED, INTERRUPTED = 2, 75, 130
NAMES = {
  0: "success", SENTENCE: "a sentence", PREEMPTED: "saved after SIGTERM", INTERRUPTED: "Ctrl-C",
  -signal.SIGKILL: "killed", -signal.SIGTERM: "SIGTERM before the program was there",
  -signal.SIGINT: "Ctrl-C before the program was there",
}  # fmt: skip


def draw_folder(folder: pathlib.Path, count: int, rng: np.random.Generator) -> None:
  """`count` pairs of a picture and its mask, of three sizes: each size is a program of its own."""
  for index in range(count):
    draw_pair(folder, f"{index:03d}", rng)


def draw_pair(folder: pathlib.Path, name: str, rng: np.random.Generator) -> None:
  (folder / "images").mkdir(parents=True, exist_ok=True)
  (folder / "masks").mkdir(exist_ok=True)
  height, width = ((64, 64), (64, 96), (96, 80))[int(rng.integers(3))]
  mask = np.zeros((height, width), np.uint8)
  x, y = (int(v) for v in rng.integers(8, 56, 2))
  cv2.rectangle(mask, (x - 8, y - 8), (x + 10, y + 10), 1, -1)
  cv2.circle(mask, (y, x), 9, 2, -1)
  colors = np.array([[90, 120, 60], [200, 60, 40], [40, 80, 220]], np.uint8)
  noise = rng.integers(0, 25, (height, width, 3), dtype=np.uint8)
  cv2.imwrite(str(folder / "images" / f"{name}.png"), colors[mask] + noise)
  cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)


class Week:
  """One run, what is done to it, and what was wrong with it afterwards."""

  def __init__(self, folder: pathlib.Path, seed: int):
    self.rng = random.Random(seed)
    self.folder, self.data, self.workdir = folder, folder / "data", folder / "run"
    self.pixels = np.random.default_rng(seed)
    draw_folder(self.data, 12, self.pixels)
    self.total, self.changes = 10, {}
    self.data_changed_at = 0  # scores of steps up to here are of other data
    self.files_damaged, self.log_damaged = False, False  # the log may lack lines
    self.done: collections.Counter[str] = collections.Counter()
    self.ends: collections.Counter[str] = collections.Counter()
    self.looked: collections.Counter[str] = collections.Counter()
    self.wrong: list[str] = []
    self.round: list = []  # operations still to come

  def command(self, *words: str, **options) -> subprocess.Popen:
    environment = {
      **os.environ,
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
      "JAX_PLATFORMS": "cpu",
    }
    out = open(self.folder / f"{words[0]}.out", "a+")
    out.truncate(0)
    process = subprocess.Popen(
      [sys.executable, "-m", "jaxseg", *words],
      cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip
    process.out = out
    return process

  def train(self, *changes: str, **options) -> subprocess.Popen:
    changes = (*(f"{k}={v}" for k, v in self.changes.items()), f"total_steps={self.total}", *changes)
    return self.command(
      "train", *SETTINGS, f"--config.data.manual_dir={self.data}", f"--workdir={self.workdir}",
      *(f"--config.{change}" for change in changes), **options,
    )  # fmt: skip

  def said(self, process: subprocess.Popen) -> str:
    process.out.flush()
    return pathlib.Path(process.out.name).read_text(errors="replace")

  def fault(self, what: str, text: str = "") -> None:
    self.wrong.append(f"operation {sum(self.done.values())}: {what}\n{text[-3000:]}")
    print(f"WRONG: {self.wrong[-1]}", flush=True)

  def check_end(self, process: subprocess.Popen, operation: str, codes: set[int]) -> int:
    """Waits; the code must be one of `codes`, or 2 with a sentence that is not Python's own."""
    try:
      code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      self.fault(f"{operation} did not end in {PATIENCE} s", self.said(process))
      return -9
    text = self.said(process)
    self.ends[NAMES.get(code, f"code {code}")] += 1
    if code not in codes:
      self.fault(f"{operation} ended with {code}, expected one of {sorted(codes)}", text)
    if "Traceback" in text:
      self.fault(f"{operation} shows a traceback", text)
    if code == SENTENCE and not re.search(r"^jaxseg( \w+)?: \S.{10,}", text, re.M):
      self.fault(f"{operation} ends with 2 and no sentence", text)
    process.out.close()
    return code

  # What is looked at after every operation.

  def check_log(self, operation: str) -> None:
    path = self.workdir / "metrics.jsonl"
    if not path.exists():
      return
    steps = []
    for line in path.read_text().splitlines():
      try:
        steps.append(json.loads(line, parse_constant=lambda word: float("bad " + word))["step"])
      except ValueError as error:
        self.fault(f"after {operation} the log holds {line[:80]!r}: {error}")
        return
    whole = list(range(1, len(steps) + 1))
    if steps != (sorted(set(steps)) if self.log_damaged else whole):
      self.fault(f"after {operation} the log holds steps {steps}")
    self.looked["log lines"] += len(steps)

  def check_best(self, operation: str) -> None:
    """The score that `best/` names is the one of its step in the log, where both name it."""
    path = self.workdir / "best" / "score.json"
    if not path.exists() or self.log_damaged or self.files_damaged:
      return
    score = json.loads(path.read_text())
    logged = self.logged_score(score["step"])
    # A run that was killed between the two writes has the score in one of them.
    if logged is not None and score["mIoU"] != logged:
      self.fault(f"after {operation} best/ holds step {score['step']} with {score['mIoU']}, the log {logged}")
    self.looked["best/ against the log"] += 1

  def logged_score(self, step: int) -> float | None:
    path = self.workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return next((line.get("mIoU") for line in lines if line["step"] == step), None)

  def wait_for(self, process: subprocess.Popen, pattern: str) -> bool:
    """Until the run says `pattern`; False where it ended before."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, self.said(process)):
      if process.poll() is not None or time.monotonic() > deadline:
        return False
      time.sleep(0.05)
    return True

  # The operations. Each ends with no process of its own alive.

  def finish_training(self) -> None:
    self.check_end(self.train(), "training", {0})

  def interrupt(self, number: int, codes: set[int]) -> None:
    process = self.train()
    if self.rng.random() < 0.7:
      self.wait_for(process, r"step \d+/")
    time.sleep(self.rng.random() * 3)
    process.send_signal(number)
    self.check_end(process, f"training, sent {signal.Signals(number).name},", {0, *codes})

  def kill(self) -> None:
    self.interrupt(signal.SIGKILL, {-signal.SIGKILL})

  def terminate(self) -> None:
    # Before Python has set its handlers, the signal itself ends the process.
    self.interrupt(signal.SIGTERM, {PREEMPTED, -signal.SIGTERM})

  def press_ctrl_c(self) -> None:
    self.interrupt(signal.SIGINT, {INTERRUPTED, -signal.SIGINT})

  def press_ctrl_c_twice(self) -> None:
    process = self.train()
    self.wait_for(process, r"step \d+/")
    for _ in range(2):
      process.send_signal(signal.SIGINT)
      time.sleep(self.rng.random())
    self.check_end(process, "training, sent Ctrl-C twice,", {0, INTERRUPTED})

  def pause(self) -> None:
    process = self.train()
    self.wait_for(process, r"step \d+/")
    process.send_signal(signal.SIGSTOP)
    time.sleep(self.rng.random() * 5)
    process.send_signal(signal.SIGCONT)
    self.check_end(process, "training after a pause", {0})

  def start_a_second_run(self) -> None:
    first = self.train()
    if self.wait_for(first, r"compiling|step \d+/"):
      second = subprocess.run(
        [sys.executable, "-m", "jaxseg", "train", *SETTINGS, f"--config.data.manual_dir={self.data}",
         f"--workdir={self.workdir}", f"--config.total_steps={self.total}"],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=2 * PATIENCE, check=False,
      )  # fmt: skip
      over = first.poll() is not None
      if not over and (second.returncode != SENTENCE or "Traceback" in second.stderr):
        self.fault(f"the second run ended with {second.returncode}", second.stdout + second.stderr)
    self.check_end(first, "training beside a second run", {0})

  def evaluate(self, codes: frozenset[int] = frozenset({0})) -> None:
    if not (self.workdir / "config.json").exists():
      return
    output = self.folder / "eval"
    shutil.rmtree(output, ignore_errors=True)
    step = self.rng.choice(["best", "latest"])
    process = self.command("eval", f"--workdir={self.workdir}", f"--step={step}", f"--output={output}")
    if self.check_end(process, f"eval of {step}", set(codes)) == 0:
      report = json.loads((output / "report.json").read_text())
      logged = self.logged_score(report["step"])
      if logged is None or report["step"] <= self.data_changed_at:
        return
      self.looked["scores of eval against the log"] += 1
      if not math.isclose(logged, report["mIoU"], abs_tol=1e-6):
        self.fault(f"eval of step {report['step']} gives {report['mIoU']}, the log says {logged}")

  def evaluate_while_training(self) -> None:
    process = self.train()
    self.wait_for(process, r"mIoU")
    self.evaluate(frozenset({0, SENTENCE}))  # the first checkpoint may not be there yet
    self.check_end(process, "training beside an evaluation", {0})

  def change_a_value(self) -> None:
    key, _, value = self.rng.choice(TAKEN).partition("=")
    self.changes[key] = value
    self.finish_training()

  def change_what_the_weights_mean(self) -> None:
    had = (self.workdir / "config.json").exists() and self.newest() is not None
    code = self.check_end(self.train(self.rng.choice(REFUSED)), "training with other classes", {SENTENCE})
    if not had and code == 0:
      shutil.rmtree(self.workdir)

  def change_the_data(self) -> None:
    name = f"{self.rng.randrange(14):03d}"
    if self.rng.random() < 0.3 and (self.data / "images" / f"{name}.png").exists():
      for part in ("images", "masks"):
        (self.data / part / f"{name}.png").unlink(missing_ok=True)
    else:
      draw_pair(self.data, name, self.pixels)
    self.data_changed_at = self.last_step()
    self.finish_training()

  def break_a_picture(self) -> None:
    victim = self.rng.choice(sorted((self.data / self.rng.choice(["images", "masks"])).iterdir()))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: self.rng.randrange(len(whole))])
    self.check_end(self.train(), "training with a broken picture", {SENTENCE, 0})
    victim.write_bytes(whole)
    self.finish_training()

  def last_step(self) -> int:
    path = self.workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0

  def newest(self) -> pathlib.Path | None:
    steps = [p for p in (self.workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, key=lambda path: int(path.name), default=None)

  def damage_a_file(self) -> None:
    """A file of the run loses its end or has bytes turned over; what can be gone on with is gone on with."""
    files = [p for p in self.workdir.rglob("*") if p.is_file() and p.stat().st_size]
    if not files:
      return
    newest = self.newest()
    inside = [p for p in files if newest in p.parents]
    victim = self.rng.choice(inside if inside and self.rng.random() < 0.5 else files)
    content = bytearray(victim.read_bytes())
    if self.rng.random() < 0.5:
      content = content[: self.rng.randrange(len(content))]
    else:
      for _ in range(8):
        content[self.rng.randrange(len(content))] ^= self.rng.randrange(1, 256)
    victim.write_bytes(content)
    name = victim.relative_to(self.workdir)
    self.files_damaged = True
    self.log_damaged |= name.name == "metrics.jsonl"
    self.evaluate(frozenset({0, SENTENCE}))
    if self.check_end(self.train(), f"training after damage to {name}", {0, SENTENCE}) == SENTENCE:
      self.start_anew()

  def start_anew(self) -> None:
    """What the sentence advises where nothing is left: another workdir."""
    shutil.rmtree(self.workdir, ignore_errors=True)
    self.total, self.changes, self.data_changed_at = 10, {}, 0
    self.files_damaged = self.log_damaged = False
    self.finish_training()

  def fill_the_disk(self) -> None:
    """No file may grow beyond a random size, as where the disk is full."""
    size = self.rng.choice([1_000, 30_000, 200_000, 1_000_000])
    # Python ignores SIGXFSZ: a write beyond the limit fails as on a full disk.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    self.check_end(self.train(preexec_fn=limit), f"training with files of {size} bytes", {SENTENCE, 0})
    self.finish_training()

  def take_the_folder_away(self) -> None:
    """The data are on a volume that is not there."""
    hidden = self.folder / "hidden"
    self.data.rename(hidden)
    self.check_end(self.train(), "training without its data", {SENTENCE})
    hidden.rename(self.data)

  def lose_the_checkpoints(self) -> None:
    folder = self.workdir / "checkpoints"
    if self.newest() is None or not (self.workdir / "metrics.jsonl").exists():
      return
    folder.rename(self.folder / "lost")
    self.check_end(self.train(), "training without its checkpoints", {SENTENCE})
    shutil.rmtree(folder, ignore_errors=True)
    (self.folder / "lost").rename(folder)

  def operate(self) -> None:
    if not self.round:  # each operation once a round, in drawn order: in two hours none is left out
      self.round = [
        self.kill, self.kill, self.terminate, self.press_ctrl_c, self.press_ctrl_c_twice, self.pause,
        self.start_a_second_run, self.evaluate, self.evaluate_while_training, self.change_a_value,
        self.change_what_the_weights_mean, self.change_the_data, self.break_a_picture, self.damage_a_file,
        self.damage_a_file, self.fill_the_disk, self.take_the_folder_away, self.lose_the_checkpoints,
      ]  # fmt: skip
      self.rng.shuffle(self.round)
    operation = self.round.pop()
    self.total += self.rng.choice([2, 5, 11])
    began = time.monotonic()
    operation()
    self.done[operation.__name__] += 1
    self.check_log(operation.__name__)
    self.check_best(operation.__name__)
    print(f"{time.strftime('%H:%M:%S')} {operation.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    if self.total > 200:
      self.start_anew()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, default=120)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path)
  flags = parser.parse_args()
  folder = flags.folder or pathlib.Path(tempfile.mkdtemp(prefix="operate"))
  week = Week(folder, flags.seed)
  week.finish_training()
  end = time.monotonic() + 60 * flags.minutes
  while time.monotonic() < end:
    week.operate()
  print(f"{sum(week.done.values())} operations, {len(week.wrong)} wrong")
  for name, count in week.done.most_common():
    print(f"  {count:4d}  {name}")
  print(f"{sum(week.ends.values())} ends of a process, besides those of second runs")
  for name, count in [*week.ends.most_common(), *week.looked.most_common()]:
    print(f"  {count:5d}  {name}")
  print("\n\n".join(week.wrong))
  sys.exit(bool(week.wrong))


if __name__ == "__main__":
  main()
