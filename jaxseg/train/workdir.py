"""A workdir: `config.json`, `recipe.txt`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and then `eval/`.

What `config.json` holds is in `jaxseg.config.record`.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from jaxseg import bucket
from jaxseg.checkpoint.saving import by_whom
from jaxseg.config import record
from jaxseg.console import print_line
from jaxseg.errors import UserError, printable
from jaxseg.train import distributed
from jaxseg.train.metrics import METRICS, read_metrics

LOCK = "run.lock"
HISTORY = "config.history.jsonl"
_RENEW_SECONDS = 20.0
# Without a renewal for so long, the run that holds a lock on another host counts as gone.
_STALE_SECONDS = 90.0
# Keys that may change from one start to the next without a word: how long and where a run goes, and what it
# writes. docs/resume.md lists them.
MAY_CHANGE = (
  r"total_steps|eval\..*|log\..*|checkpoint\..*|hosts\..*|mesh\..*|early_stopping\..*|compilation_cache"
  r"|profile_steps|data\.(workers|data_dir|manual_dir)|init_from|init_keep"
)
_SHOWN_CHANGES = 8
_SHOWN_VALUE = 80  # characters


def prepare(workdir: epath.PathLike, values: dict[str, Any], *, write: bool) -> None:
  """Makes the workdir with its `config.json`, or checks that an existing one is of the same model.

  An existing one stays as it is until the run has been restored: see `update`.

  Args:
    workdir: of the run.
    values: what `record.make_record` gives.
    write: only one process of a job writes, and tries the folder of the checkpoints; all of them check.

  Raises:
    UserError: the folder cannot be reached or written, or holds another model's run.
  """
  bucket.reach(workdir)
  path = epath.Path(workdir) / record.CONFIG_FILE
  if path.exists():
    before = record.read(workdir)
    _check_same_model(workdir, before, values)
    values = before  # written again all the same, to know that it can be
  if write:
    update(workdir, values)
    with _writing(workdir):
      _try_checkpoints(epath.Path(workdir) / record.CHECKPOINTS)


def update(workdir: epath.PathLike, values: dict[str, Any]) -> None:
  """Writes `config.json`: what the run goes on with.

  Raises:
    UserError: the folder cannot be written.
  """
  with _writing(workdir):
    record.write(workdir, values)


def check_writable(workdir: epath.PathLike) -> None:
  """Whether this process, too, can write its part of a checkpoint in a workdir that another one has prepared.

  Raises:
    UserError: it cannot.
  """
  with _writing(workdir):
    _try_checkpoints(epath.Path(workdir) / record.CHECKPOINTS)


@contextlib.contextmanager
def _writing(workdir: epath.PathLike) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    reason = error.strerror or error
    raise UserError(
      f"workdir {str(workdir)!r} cannot be written{by_whom()} ({reason}); choose another --workdir"
    ) from None


def _try_checkpoints(folder: epath.Path) -> None:
  """Makes the folder and writes there: else it would be found out at the first save, after compiling."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"{uuid.uuid4().hex}.part"
    try:
      probe.write_text("probe\n")
    finally:
      probe.unlink(missing_ok=True)  # of a full disk, an empty one
  except OSError as error:
    raise OSError(error.errno, f"{folder.name}: {error.strerror or error}") from None


def _check_same_model(workdir: epath.PathLike, old: dict[str, Any], new: dict[str, Any]) -> None:
  before, now = _flat(old["model"]), _flat(new["model"])
  # The compute precision changes no array of a checkpoint.
  keys = sorted(key for key in before.keys() | now.keys() if not key.endswith("dtype"))
  changed = [
    f"{value_text(key)} {value_text(repr(before.get(key)))} (now {value_text(repr(now.get(key)))})"
    for key in keys
    if before.get(key) != now.get(key)
  ]
  if changed:
    raise UserError(
      f"workdir {str(workdir)!r} holds the run of another model: {', '.join(changed[:4])};"
      " choose another --workdir, or start from its weights with --config.init_from"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in values.items():
    flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
  return flat


@contextlib.contextmanager
def owned(workdir: epath.PathLike) -> Iterator[None]:
  """Makes this run the only one that writes in `workdir`, by a file that names host and process.

  Every process of a run enters; the first one holds the lock. A lock of a process that is gone, on this host,
  or that was not renewed for 90 s, on another one, is taken over.

  Raises:
    UserError: in every process, when another run owns the workdir.
  """
  path = epath.Path(workdir) / LOCK
  token = uuid.uuid4().hex
  together(lambda: _take(path, token))
  over = threading.Event()

  def renew() -> None:
    while not over.wait(_RENEW_SECONDS):
      with contextlib.suppress(Exception):  # a full disk or an unreachable bucket is not this thread's matter
        _write(path, token)

  thread = threading.Thread(target=renew, daemon=True, name="workdir-lock")
  if jax.process_index() == 0:
    thread.start()
  try:
    yield
  finally:
    over.set()
    if jax.process_index() == 0:
      thread.join()
      with contextlib.suppress(Exception):
        path.unlink()


def together(action: Callable[[], None]) -> None:
  """Runs `action` in the first process; what it raises for a user is raised in all of them."""
  problem = ""
  if jax.process_index() == 0:
    try:
      action()
    except UserError as error:
      problem = str(error)
  if problem := distributed.gather(problem)[0]:
    raise UserError(problem)


def _take(path: epath.Path, token: str) -> None:
  while True:
    holder = _read(path)
    if holder is None or _is_gone(holder) or _has_stopped(path, holder):
      try:
        _write(path, token)
      except OSError as error:
        raise UserError(
          f"workdir {str(path.parent)!r} cannot be written ({error.strerror or error}); choose another"
          " --workdir"
        ) from None
      time.sleep(1.0 if bucket.is_remote(path) else 0.05)
      if (_read(path) or {}).get("token") == token:  # of two that took it at once, the later has it
        return
      continue
    raise UserError(
      f"workdir {str(path.parent)!r} is in use by another run (process {holder['pid']} on host"
      f" {value_text(holder['host'])}); choose another --workdir, or end that run; if it is over, delete"
      f" {path}"
    )


def _has_stopped(path: epath.Path, holder: Mapping[str, Any]) -> bool:
  """Whether a lock of another host is not renewed any more; watches it until that is known."""
  if holder["host"] == socket.gethostname():
    return False
  print_line(
    f"the workdir belongs to process {holder['pid']} on host {holder['host']}; looking for"
    f" {_STALE_SECONDS:g} s whether that run is alive"
  )
  deadline = time.monotonic() + _STALE_SECONDS
  while time.monotonic() < deadline:
    time.sleep(min(2.0, _STALE_SECONDS / 4))
    if (now := _read(path)) is None or now["time"] != holder["time"]:
      return now is None
  return True


def _write(path: epath.Path, token: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  values = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
  part = path.with_name(f"{LOCK}.{token}.part")
  part.write_text(json.dumps({**values, "time": time.time(), "token": token}) + "\n")
  part.replace(path)


def _read(path: epath.Path) -> dict[str, Any] | None:
  """What a lock says; None where there is none, or one that no run wrote."""
  try:
    values = json.loads(path.read_text())
    known = isinstance(values["host"], str) and type(values["pid"]) is int and 0 < values["pid"] < 2**31
    return values if known and "time" in values else None
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return None


def _is_gone(holder: Mapping[str, Any]) -> bool:
  """Whether the process that wrote a lock on this host has ended."""
  if holder["host"] != socket.gethostname():
    return False
  try:
    os.kill(int(holder["pid"]), 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    return False
  return holder.get("started") != _started(int(holder["pid"]))  # its number may be another process's now


def _started(pid: int) -> str:
  """When a process began, in a form that is only compared; "" where the system does not say."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
  except (OSError, IndexError):
    return ""


def check_checkpoints(workdir: epath.PathLike, *, steps: list[int], every: int) -> None:
  """Refuses to start anew where an earlier run has logged steps and its checkpoints are not there.

  Args:
    workdir: of the run.
    steps: the finished checkpoints.
    every: steps between two saves of the earlier run; a run that was killed before its first save may begin
      again.

  Raises:
    UserError: the folder of checkpoints is empty, and was not.
  """
  path = epath.Path(workdir) / METRICS
  if steps or not path.exists():
    return
  logged = max((line["step"] for line in read_metrics(workdir)), default=0)
  # The save of one period has ended when that of the next begins.
  if logged > 2 * max(every, 1):
    raise UserError(
      f"workdir {str(workdir)!r} has a log of {logged} steps and no checkpoint; if they are on a volume"
      " that is missing, bring it back; to start from step 0, choose another --workdir or remove"
      f" {path}"
    )


def compare(workdir: epath.PathLike, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What changed since the last start of a run, as "config.seed 0 → 1"; what may change is left out.

  Args:
    workdir: for messages.
    before: what `config.json` holds (`workdir.record`).
    now: the same of this start.

  Raises:
    UserError: what the weights mean is not the same: classes or their order, preprocessing.
  """
  for key, what in (("classes", "class names"), ("preprocess", "preprocessing")):
    if before.get(key) != now.get(key):
      raise UserError(
        f"workdir {str(workdir)!r} holds a run with other {what}: {_first_difference(before[key], now[key])};"
        " its weights would mean something else; choose another --workdir, or start from its weights with"
        " --config.init_from"
      )
  old, new = (distributed.flatten(record["config"]) for record in (before, now))
  changes = _data_changes(before, now)
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) == new.get(key) or re.fullmatch(MAY_CHANGE, key):
      continue
    if key in old and key in new:  # a key of another version of jaxseg is no change of the user's
      changes.append(f"config.{value_text(key)} {value_text(old[key])} → {value_text(new[key])}")
  return changes


def _data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Which splits have other files: other examples follow each other then, and one may change its split."""
  old, new = before.get("data"), now.get("data", {})
  if not isinstance(old, Mapping):  # of an earlier version
    return []
  moved = _folder_of(before) != _folder_of(now)  # the state of other files, whatever is in them
  changes = []
  for split in new:
    was, now_is = old.get(split), new[split]
    if not isinstance(was, Mapping) or was == now_is:
      continue
    if was.get("examples") != now_is["examples"]:
      changes.append(
        f"the data of split {value_text(split)}, {value_text(was.get('examples'))} → {now_is['examples']}"
        " examples"
      )
    elif was.get("state") != now_is["state"] and not moved:
      changes.append(f"the files of the data (split {value_text(split)})")
  return changes


def _folder_of(record: Mapping[str, Any]) -> Any:
  """Where a run's original files are."""
  data = record["config"].get("data")
  return data.get("manual_dir") if isinstance(data, Mapping) else None


def save_period(record: Mapping[str, Any]) -> int:
  """Steps between two saves of the run whose `config.json` holds `record`; 0 where it does not say."""
  checkpoint = record["config"].get("checkpoint")
  every = checkpoint.get("every_steps") if isinstance(checkpoint, Mapping) else 0
  return every if type(every) is int and every > 0 else 0


def value_text(value: Any) -> str:
  """A value out of a file as it may stand in a message."""
  text = printable(value if isinstance(value, str) else repr(value))
  return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."


def _first_difference(before: Any, now: Any) -> str:
  if isinstance(before, Mapping):
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{value_text(key)} {value_text(before.get(key))} (now {value_text(now.get(key))})"
  if len(before) != len(now):
    return f"{len(before)} (now {len(now)})"
  index = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
  return f"class {index} is '{value_text(before[index])}' (now '{value_text(now[index])}')"


def say_changes(changes: list[str]) -> None:
  """Names what changed since the last start of the run."""
  if changes:
    more = len(changes) - _SHOWN_CHANGES
    shown = ", ".join(changes[:_SHOWN_CHANGES]) + (f", and {more} more" if more > 0 else "")
    print_line(f"the run goes on with other values than before: {shown}; {HISTORY} keeps the earlier ones")


def keep_history(workdir: epath.PathLike, before: Mapping[str, Any], *, step: int) -> None:
  """Adds the record of the last start to `config.history.jsonl`, as what was in force up to `step`."""
  path = epath.Path(workdir) / HISTORY
  try:
    old = path.read_bytes() if path.exists() else b""
    part = path.with_name(f"{HISTORY}.{uuid.uuid4().hex}.part")
    part.write_bytes(old + json.dumps({"until_step": step, **before}).encode() + b"\n")
    part.replace(path)
  except OSError as error:
    raise UserError(
      f"{str(path)!r} cannot be written ({error.strerror or error}); make room or choose another --workdir"
    ) from None
