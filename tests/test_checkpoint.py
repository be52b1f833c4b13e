"""Saved states come back bit for bit; what is kept, refused, and left by a killed run."""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.checkpoint import Checkpoints, restore_variables, sums_of


class State(flax.struct.PyTreeNode):
  """Only what a checkpoint holds."""

  step: Any
  params: Any
  model_state: Any
  opt_state: Any


def make_state(*, seed=0, width=4, tx=None, extra=False):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  params = {"encoder": {"conv": {"kernel": draw(3, 3, 2, width)}}, "decoder": {"bias": draw(5)}}
  # Denormals, infinities and NaN patterns survive too.
  params["decoder"]["odd"] = jnp.asarray([1e-42, -0.0, np.inf, np.nan], jnp.float32)
  if extra:
    params["decoder"]["extra"] = draw(2)
  model_state = {"batch_stats": {"mean": draw(width)}, "buffers": {"bases": draw(2, 3).astype(jnp.bfloat16)}}
  tx = tx or optax.chain(optax.clip(1.0), optax.adam(1e-3))
  return State(jnp.asarray(seed, jnp.int32), params, model_state, tx.init(params))


def same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_bit_equal_although_the_state_is_donated_while_it_is_written(tmp_path):
  state = make_state(seed=3)
  expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
  donate = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state)
    for _ in range(20):
      state = donate(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored = checkpoints.restore(state)
  same_bits(restored, expected)
  assert restored.params["decoder"]["bias"].sharding == state.params["decoder"]["bias"].sharding


def test_restores_from_shapes_alone(tmp_path):
  state = make_state(seed=1)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.wait()
    same_bits(checkpoints.restore(like), state)


def test_keeps_the_last_few(tmp_path):
  with Checkpoints(tmp_path, keep_last=2) as checkpoints:
    for step in range(6):
      checkpoints.save(step, make_state(seed=step))
    assert not checkpoints.save(5, make_state(seed=0)), "a step is saved once"
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5] and checkpoints.latest_step() == 5
  # A new process reads the same from the disk.
  with Checkpoints(tmp_path, keep_last=2) as checkpoints:
    assert checkpoints.steps() == [4, 5]
    for step, expected in ((None, 5), ("latest", 5), (4, 4)):
      same_bits(checkpoints.restore(make_state(), step), make_state(seed=expected))


def test_variables_without_the_optimizer_as_numpy(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(seed=1))
    checkpoints.save(2, make_state(seed=2))
    checkpoints.wait()
    for step, seed in ((1, 1), ("latest", 2), (2, 2)):
      variables = restore_variables(tmp_path, step=step)
      expected = make_state(seed=seed)
      assert all(type(x) is np.ndarray for x in jax.tree.leaves(variables))
      same_bits(variables, {"params": expected.params, **expected.model_state})


@pytest.mark.parametrize(
  ("other", "sentence"),
  [
    (
      {"width": 8},
      r"params/encoder/conv/kernel: checkpoint float32\(3, 3, 2, 4\), model float32\(3, 3, 2, 8\)",
    ),
    ({"extra": True}, "params/decoder/extra is missing in the checkpoint"),
    ({"tx": optax.sgd(1.0)}, "opt_state/1.0.count is only in the checkpoint"),
  ],
)
def test_a_checkpoint_of_another_model(tmp_path, other, sentence):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state())
    checkpoints.wait()
    with pytest.raises(ValueError, match=sentence) as error:
      checkpoints.restore(make_state(**other))
  assert f"checkpoint 1 in {tmp_path} is of another model" in str(error.value)
  assert "use a new workdir" in str(error.value)


def test_what_is_not_there(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None
    with pytest.raises(ValueError, match="there is no finished checkpoint in"):
      checkpoints.restore(make_state())
    checkpoints.save(1, make_state())
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"there is no checkpoint 5 in .*; it has steps \[1\]"):
      checkpoints.restore(make_state(), 5)
  with pytest.raises(ValueError, match="there is no directory"):
    restore_variables(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="keep_last is 0, expected at least 1"):
    Checkpoints(tmp_path, keep_last=0)


def test_a_relative_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Checkpoints("checkpoints") as checkpoints:
    checkpoints.save(1, make_state())
  assert (tmp_path / "checkpoints" / "1").is_dir()


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def flip_a_byte(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x55
  path.write_bytes(content)


def emptied(step):
  shutil.rmtree(step)
  step.mkdir()


def _record(folder, **changes):
  (file,) = [path for path in (folder / "record").iterdir() if path.suffix != ".txt"]
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


DAMAGES = {
  "variables": lambda step: shutil.rmtree(step / "variables"),
  "": emptied,
  "its record cannot be read": lambda step: shutil.rmtree(step / "record"),
  "its record cannot be read: TypeError": lambda step: _record(step, step=None),
  "it is the checkpoint of step 1, under another name": lambda step: (
    shutil.rmtree(step),
    shutil.copytree(step.parent / "1", step),
  ),
}


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
  directory = tmp_path_factory.mktemp("three")
  with Checkpoints(directory) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(seed=step, width=32))
  return directory


def test_a_damaged_checkpoint_is_passed_over_and_moved_aside(three_checkpoints, tmp_path, capsys):
  like = make_state(width=32)
  for number, (reason, damage) in enumerate(DAMAGES.items()):
    directory = tmp_path / str(number)
    shutil.copytree(three_checkpoints, directory)
    damage(directory / "3")
    variables = restore_variables(directory, step="latest")
    same_bits(variables["params"], make_state(seed=2, width=32).params)
    said = capsys.readouterr().err
    assert f"in {directory} these checkpoints are damaged: 3 (" in said and "; 2 is taken instead" in said
    assert reason in said
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: 3 .*nothing was changed"):
      restore_variables(directory, step=3)
    assert (directory / "3").exists(), "a reader moves nothing"
    capsys.readouterr()
    with Checkpoints(directory) as checkpoints:
      with pytest.raises(
        ValueError, match=r"checkpoint 3 in .* is damaged \(.*; take another of \[1, 2, 3\]"
      ):
        checkpoints.restore(like, 3)
      state, step = checkpoints.restore_latest(like)
      same_bits(state, make_state(seed=2, width=32))
      aside = tmp_path / f"damaged_{number}" / "3"
      said = capsys.readouterr().err
      assert step == 2 and reason in said and f"the damaged checkpoint 3 was moved to {aside}" in said
      assert aside.exists() and checkpoints.steps() == [1, 2]
      assert checkpoints.save(3, make_state(seed=3, width=32))
    with Checkpoints(directory) as checkpoints:
      assert checkpoints.restore_latest(like)[1] == 3


def test_a_run_needs_the_optimizer_and_a_reader_does_not(three_checkpoints, tmp_path, capsys):
  shutil.copytree(three_checkpoints, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "3" / "optimizer")
  same_bits(restore_variables(tmp_path / "run")["params"], make_state(seed=3, width=32).params)
  assert not capsys.readouterr().err
  with Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.restore_latest(make_state(width=32))[1] == 2
  assert "these checkpoints are damaged: 3 (" in capsys.readouterr().err


def test_whatever_happens_to_a_file_no_other_values_come_back(three_checkpoints, tmp_path, capsys):
  like, passed_over = make_state(width=32), 0
  files = sorted(path.relative_to(three_checkpoints) for path in (three_checkpoints / "3").rglob("*"))
  files = [path for path in files if (three_checkpoints / path).is_file()]
  assert len(files) > 10
  for number, path in enumerate(files):
    directory = tmp_path / str(number)
    shutil.copytree(three_checkpoints, directory)
    [halve, zero, flip_a_byte, pathlib.Path.unlink][number % 4](directory / path)
    with Checkpoints(directory) as checkpoints:
      state, step = checkpoints.restore_latest(like)
    passed_over += step == 2
    same_bits(state, make_state(seed=step, width=32))
  assert passed_over >= 5  # how many depends on which damage meets which file: their names are random
  capsys.readouterr()


def test_values_that_changed_without_a_reader_noticing(three_checkpoints, tmp_path, capsys):
  """The sums: each item is whole by itself, and of another step."""
  shutil.copytree(three_checkpoints, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "3" / "variables")
  shutil.copytree(three_checkpoints / "1" / "variables", tmp_path / "run" / "3" / "variables")
  same_bits(restore_variables(tmp_path / "run")["params"], make_state(seed=2, width=32).params)
  assert "does not match" in capsys.readouterr().err


def test_sums_tell_the_order_of_elements():
  x = jnp.asarray([1.0, 2.0] * 64, jnp.float32)
  swapped = x.at[0].set(2.0).at[33].set(1.0)
  for a, b in (
    (x, swapped),
    (x, -x),
    (x.astype(jnp.bfloat16), swapped.astype(jnp.bfloat16)),
    (x > 1, swapped > 1),
  ):
    assert sums_of({"x": a}) != sums_of({"x": b})
  assert sums_of({"x": x}) == sums_of({"x": np.asarray(x)})


def test_all_damaged(three_checkpoints, tmp_path):
  directory = tmp_path / "run"
  shutil.copytree(three_checkpoints, directory)
  for step in "123":
    shutil.rmtree(directory / step / "variables" / "d")
    shutil.rmtree(directory / step / "variables" / "ocdbt.process_0")
  before = sorted(directory.rglob("*"))
  with Checkpoints(directory) as checkpoints:
    with pytest.raises(
      ValueError, match=r"every checkpoint in .* is damaged: 3 \(.*2 \(.*1 \(.*start anew in another"
    ):
      checkpoints.restore_latest(make_state(width=32))
    assert checkpoints.steps() == [1, 2, 3]
  with pytest.raises(ValueError, match="every checkpoint"):
    restore_variables(directory)
  assert sorted(directory.rglob("*")) == before


def test_a_disk_that_is_full(tmp_path, capfd):
  """As little as one file may hold here: what was saved before stays, and the reason is one sentence."""
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(seed=1))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path) as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
      with pytest.raises(
        ValueError, match=r"a checkpoint cannot be written to .* \(File too large.*; make room"
      ):
        checkpoints.save(2, make_state(seed=2, width=2000))
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.steps() == [1]
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(make_state())[1] == 1
  assert "Traceback" not in capfd.readouterr().err


# Saves the state of step i, all of whose arrays are i, again and again until it is killed.
_SAVER = """
import sys
import jax.numpy as jnp
from jaxseg.checkpoint import Checkpoints
from tests.test_checkpoint import filled

checkpoints = Checkpoints(sys.argv[1], keep_last=2)
step = (checkpoints.latest_step() or 0) + 1
print("ready", flush=True)
while True:
  checkpoints.save(step, filled(step))
  step += 1
"""


def filled(step, layers=8):
  value = lambda: jnp.full((64, 64), step, jnp.float32)  # noqa: E731
  params = {f"layer{i}": value() for i in range(layers)}
  return State(jnp.asarray(step, jnp.int32), params, {"batch_stats": {"mean": value()}}, {"trace": value()})


def test_kill_at_any_moment_leaves_only_whole_checkpoints(tmp_path):
  root = pathlib.Path(__file__).parent.parent
  environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  rng = random.Random(0)
  kills, leftovers, last = 0, 0, 0
  # Three times, and on until a kill has hit a save in progress: most do.
  while kills < 3 or not leftovers:
    kills += 1
    assert kills < 12, "no save was ever interrupted, so this test shows nothing"
    saver = subprocess.Popen(
      [sys.executable, "-c", _SAVER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, cwd=root
    )
    with saver:
      assert saver.stdout.readline() == b"ready\n"
      # Not before it has saved something in this round, then at any moment.
      _wait_until(lambda step=last + 2: max(finished(tmp_path), default=0) >= step)
      time.sleep(rng.uniform(0, 0.3))
      saver.send_signal(signal.SIGKILL)
    leftovers += len(unfinished(tmp_path))
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
      assert checkpoints.latest_step() > last
      last = checkpoints.latest_step()
      for step in checkpoints.steps():
        same_bits(checkpoints.restore(filled(0), step), filled(step))
      _wait_until(lambda: not unfinished(tmp_path))  # Orbax removes them in the background
    variables = restore_variables(tmp_path, step=last)
    same_bits(variables["params"], filled(last).params)


def finished(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def unfinished(directory):
  """Saves that were not completed, and checkpoints that were not completely deleted."""
  names = {p.name for p in directory.iterdir() if not p.name.isdigit()} - {"deleted"}
  return names | {p.name for p in directory.glob("deleted/*")}


def _wait_until(done):
  deadline = time.monotonic() + 60
  while not done():
    assert time.monotonic() < deadline, "waited for a minute in vain"
    time.sleep(0.01)
