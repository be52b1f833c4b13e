"""A run's best weights as a folder of their own, `WORKDIR/best`: what `net.save_pretrained` writes.

They are read back from the best checkpoint, so that they are whole wherever the run keeps its arrays, and
the moving average's where there is one.
"""

import pathlib
import tempfile

import jax
from etils import epath

from jaxseg.checkpoint import Checkpoints

FOLDER = "best"
# The last to be copied: a folder that has it has the others.
_FILES = ("README.md", "config.json", "model.safetensors")


class BestWeights:
  """Keeps `WORKDIR/best` at the best checkpoint; every process of a job calls it, the first one writes.

  Args:
    workdir: of the run.
    checkpoints: of the run.
    active: False makes every call do nothing.
  """

  def __init__(self, workdir: epath.PathLike, checkpoints: Checkpoints, *, active: bool):
    self._workdir, self._checkpoints, self._active = workdir, checkpoints, active
    self._written = None

  def update(self) -> None:
    """Writes the best checkpoint's weights, unless they are what this run has written last."""
    if not self._active:
      return
    self._checkpoints.wait()
    best = self._checkpoints.best_step()
    if best is None or best == self._written:
      return
    self._written = best
    save(self._workdir)


def save(workdir: epath.PathLike) -> None:
  """Writes `WORKDIR/best` from the best checkpoint of a run of train.py, local or on gs://.

  Every process of a job has to call it, since they restore together; the first one writes.

  Raises:
    UserError: no workdir, or it cannot be written.
  """
  from jaxseg import hub

  net = hub.from_pretrained(workdir)
  if jax.process_index() != 0:
    return
  target = epath.Path(workdir) / FOLDER
  if "://" not in str(workdir):
    net.save_pretrained(target)
    return
  with tempfile.TemporaryDirectory() as folder:
    net.save_pretrained(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
      (target / name).write_bytes((pathlib.Path(folder) / name).read_bytes())
