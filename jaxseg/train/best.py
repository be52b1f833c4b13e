"""The best weights of a run as a folder of their own, `WORKDIR/best`: what `net.save_pretrained` writes."""

import json
import math
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from jaxseg.config.record import load_json
from jaxseg.errors import UserError
from jaxseg.models import create_model
from jaxseg.types import Preprocess

FOLDER = "best"
SCORE = "score.json"
HEADLINES = ("mIoU", "top1")  # of segmentation and of classification: what the best step has most of
# The last to be copied to a bucket: a folder that has it has the others.
_LAST = "model.safetensors"


def on_host(variables: Any, _: Any = None) -> Any:
  """`variables` as NumPy arrays, also where they are split over processes; every process calls it."""
  if jax.process_count() == 1:
    return jax.device_get(variables)
  return multihost_utils.process_allgather(variables, tiled=True)


def write(
  workdir: epath.PathLike, record: Mapping[str, Any], variables: Any, score: Mapping[str, Any]
) -> None:
  """Writes `WORKDIR/best`, which is the old folder or the new one at every moment, or for an instant none.

  Args:
    workdir: of the run.
    record: what its `config.json` holds.
    variables: on the host.
    score: "step" and the score, kept in `best/score.json`.

  Raises:
    UserError: it cannot be written.
  """
  target = epath.Path(workdir) / FOLDER
  try:
    if "://" in str(workdir):
      with tempfile.TemporaryDirectory() as folder:
        _save(pathlib.Path(folder), record, variables, score)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(pathlib.Path(folder).iterdir(), key=lambda file: file.name == _LAST):
          (target / file.name).write_bytes(file.read_bytes())
      return
    place = pathlib.Path(workdir)
    for left in place.glob(f".{FOLDER}-*"):  # of a run that was killed here
      shutil.rmtree(left, ignore_errors=True)
    part, old = (place / f".{FOLDER}-{uuid.uuid4().hex}" for _ in range(2))
    _save(part, record, variables, score)
    if pathlib.Path(target).exists():
      pathlib.Path(target).rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)
  except OSError as error:
    raise UserError(
      f"{str(target)!r} cannot be written ({error.strerror or error}); make room or choose another --workdir,"
      " and the same command goes on from the last checkpoint"
    ) from error


def read(workdir: epath.PathLike) -> dict[str, Any]:
  """The variables of `WORKDIR/best`; of the latest checkpoint, where the run has no such folder.

  Raises:
    UserError: there is neither, or it cannot be read.
  """
  from jaxseg.hub.loading import open_weights

  return traverse_util.unflatten_dict(dict(open_weights(workdir).tensors), sep="/")


def step_of(workdir: epath.PathLike) -> int | None:
  """The step whose weights `WORKDIR/best` holds; None where there is no such folder.

  Raises:
    UserError: its `score.json` is damaged.
  """
  path = epath.Path(workdir) / FOLDER / SCORE
  if not path.exists():
    return None
  return load_json(path, {"step": int}, what="the score of the best weights")["step"]


def score_of(workdir: epath.PathLike) -> float:
  """The score of the weights in `WORKDIR/best`; -inf where there are none, or nobody can say."""
  try:
    values = load_json(epath.Path(workdir) / FOLDER / SCORE)
  except UserError:
    return -math.inf
  score = next((values[name] for name in HEADLINES if name in values), None)
  return score if isinstance(score, float) else -math.inf


def _save(folder: pathlib.Path, record: Mapping[str, Any], variables: Any, score: Mapping[str, Any]) -> None:
  from jaxseg.hub import Net

  fields = {key: _tuples(value) for key, value in record["model"].items() if value not in (None, {}, [])}
  arch = fields.pop("arch")
  preprocess = record["preprocess"]
  net = Net(
    model=create_model(arch, **fields),
    variables=variables,
    preprocess=Preprocess(tuple(preprocess["mean"]), tuple(preprocess["std"]), preprocess["channel_order"]),
    classes=tuple(record["classes"]),
    palette=np.asarray(record["palette"], np.uint8),
    arch=arch,
    fields=fields,
    licence=record.get("licence"),
    lineage=record.get("lineage", {}),
  )
  net.save_pretrained(folder)
  (folder / SCORE).write_text(json.dumps(dict(score)) + "\n")


def _tuples(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
