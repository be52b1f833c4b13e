"""What reading and refusing leave behind in the process of an importer: nothing."""

import logging
import sys

import pytest

from jaxseg.checkpoint import Checkpoints, restore_variables
from tests.test_checkpoint import halve, make_state


def test_importers_get_their_hooks_back(tmp_path, capsys):
  hook, filters = sys.unraisablehook, list(logging.getLogger("absl").filters)
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError):
    Checkpoints(tmp_path / "file" / "run")
  with Checkpoints(tmp_path / "run") as checkpoints:
    for step in (2, 3):
      checkpoints.save(step, make_state(seed=step, width=32))
  for part in (tmp_path / "run" / "3" / "variables").rglob("d/*"):
    halve(part)
  restore_variables(tmp_path / "run")
  assert "these checkpoints are damaged: 3 (" in capsys.readouterr().err
  with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(ValueError, match="is damaged"):
    checkpoints.restore(make_state(width=32), 3)
  assert sys.unraisablehook is hook and logging.getLogger("absl").filters == filters
