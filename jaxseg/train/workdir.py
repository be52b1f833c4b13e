"""A workdir: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, and `eval/` once evaluated.

`config.json` says everything that is needed to rebuild the model and to read its output:
`jaxseg.from_pretrained(workdir)`, `eval.py` and a resuming `train.py` read it.
"""

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

import jaxseg
from jaxseg import bucket
from jaxseg.checkpoint.saving import by_whom
from jaxseg.errors import UserError
from jaxseg.train import config as config_lib

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def record(
  config: ml_collections.ConfigDict, *, num_classes: int, classes: Sequence[str], palette: np.ndarray
) -> dict[str, Any]:
  """What `config.json` holds, as plain JSON values."""
  parts = config_lib.model_fields(config)
  values = {
    "jaxseg_version": jaxseg.__version__,
    "config": config_lib.resolved(config),
    "model": {
      "arch": config.model.arch,
      "num_classes": num_classes,
      "scales": tuple(config.model.get("scales", ())),  # of segmentation models
      **parts,
    },
    "classes": list(classes),
    "palette": np.asarray(palette).tolist(),
    "preprocess": config.preprocess.to_dict(),
  }
  return json.loads(json.dumps(values))


def prepare(workdir: epath.PathLike, values: dict[str, Any], *, write: bool) -> None:
  """Makes the workdir with its `config.json`, or checks that an existing one is of the same model.

  An existing one stays as it is until the run has been restored: see `update`.

  Args:
    workdir: of the run.
    values: what `record` gives.
    write: only one process of a job writes, and tries the folder of the checkpoints; all of them check.

  Raises:
    UserError: the folder cannot be reached or written, or holds another model's run.
  """
  bucket.reach(workdir)
  path = epath.Path(workdir) / CONFIG_FILE
  if path.exists():
    before = read(workdir)
    _check_same_model(workdir, before, values)
    values = before  # written again all the same, to know that it can be
  if write:
    update(workdir, values)
    with _writing(workdir):
      _try_checkpoints(epath.Path(workdir) / CHECKPOINTS)


def update(workdir: epath.PathLike, values: dict[str, Any]) -> None:
  """Writes `config.json`: what the run goes on with.

  Raises:
    UserError: the folder cannot be written.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  with _writing(workdir):
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a reader sees the old file or the new one, never half of it.
    part = path.with_name(f"{CONFIG_FILE}.{uuid.uuid4().hex}.part")
    part.write_text(json.dumps(values, indent=2) + "\n")
    part.replace(path)


def check_writable(workdir: epath.PathLike) -> None:
  """Whether this process, too, can write its part of a checkpoint in a workdir that another one has prepared.

  Raises:
    UserError: it cannot.
  """
  with _writing(workdir):
    _try_checkpoints(epath.Path(workdir) / CHECKPOINTS)


def is_workdir(path: epath.PathLike) -> bool:
  """Whether `path` is a folder that train.py wrote, rather than weights."""
  config = epath.Path(path) / CONFIG_FILE
  return (
    (epath.Path(path) / CHECKPOINTS).is_dir()
    and config.exists()
    and "config" in json.loads(config.read_text())
  )


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """The values of a workdir's `config.json`.

  Raises:
    UserError: there is none, or it is not one of ours.
  """
  bucket.reach(workdir)
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise UserError(f"{str(workdir)!r} is no workdir of train.py: it has no {CONFIG_FILE}")
  try:
    values = json.loads(path.read_text())
    values["config"], values["model"], values["classes"]
  except (ValueError, KeyError, TypeError):
    raise UserError(f"{str(path)!r} is not a {CONFIG_FILE} that train.py wrote") from None
  return values


def read_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
  """The resolved config of a workdir's run, with the class count that it settled on."""
  values = read(workdir)
  config = config_lib.from_resolved(values["config"])
  config.model.num_classes = values["model"]["num_classes"]
  return config


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
    f"{key} {before.get(key)!r} (now {now.get(key)!r})" for key in keys if before.get(key) != now.get(key)
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
