"""A workdir: `config.json`, `recipe.txt`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and then `eval/`.

What `config.json` holds is in `jaxseg.config.record`.
"""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxseg import bucket
from jaxseg.checkpoint.saving import by_whom
from jaxseg.config import record
from jaxseg.errors import UserError
from jaxseg.train.resume import value_text


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
