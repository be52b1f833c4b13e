"""Rates of a run and the chips' published ones, the profiler's trace, compiled programs, recompilation."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import time
import types

import jax
import pytest

from jaxseg import chips
from jaxseg import config as config_lib
from jaxseg.commands import compiled
from jaxseg.errors import UserError
from jaxseg.train import loop, speed
from jaxseg.train.metrics import SPEED, read_metrics
from jaxseg.train.speed import Profile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "colour_only_synthetic.py:smoke")


def load(*changes):
  return config_lib.load(TINY, overrides=[tuple(c.split("=", 1)) for c in changes])


def test_rates_by_hand(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  watch = speed.Speed(batch_size=16, macs=2e9, peak=1e12)
  watch.finished(1)  # the clock does not run yet
  assert watch.take() == {}
  watch.begin(1)
  now[0] += 2.0
  watch.finished(5)
  watch.finished(5)
  watch.end()
  now[0] += 50.0  # an evaluation
  watch.finished(5)
  watch.begin(5)
  now[0] += 1.0
  watch.finished(7)
  # 6 steps in 3 s; 3 x 2 x 2 GFLOP an image.
  assert watch.take() == {
    "steps_per_second": 2.0, "images_per_second": 32.0, "mfu": 32 * 12e9 / 1e12,
    "data_wait": 0.0, "over_steps": 6,
  }  # fmt: skip
  assert watch.take() == {}
  unknown = speed.Speed(batch_size=1, macs=0, peak=None)
  unknown.begin(0)
  now[0] += 1.0
  unknown.finished(1)
  assert "mfu" not in unknown.take()


@pytest.mark.parametrize(
  ("kind", "tera"),
  [
    ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
    ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("Tesla V100-SXM2-16GB", 125), ("NVIDIA L4", 121),
    ("Tesla T4", 65), ("NVIDIA L40S", None), ("NVIDIA A10G", None), ("cpu", None), ("TPU v2", None),
  ],
)  # fmt: skip
def test_chips_by_their_devices_names(kind, tera):
  devices = [types.SimpleNamespace(device_kind=kind, id=i) for i in range(4)]
  assert chips.peak_flops(devices) == (None if tera is None else 4 * tera * 1e12)
  row = speed.card_row(devices)
  assert (f"no MFU, as the published rate of {kind!r} is not known" in row) == (tera is None)


def test_two_cores_of_a_chip_share_its_rate():
  devices = [
    types.SimpleNamespace(device_kind="TPU v4", id=i, coords=(i // 2, 0, 0), slice_index=s)
    for s in range(2)
    for i in range(8)
  ]
  assert chips.count_chips(devices) == 8 and chips.peak_flops(devices) == 8 * 275e12


def test_log_profile_and_resume(tmp_path, capsys):
  """One run and its continuation: rates beside the reproducible log, and the trace of the steps asked for."""
  words = (
    "eval.every_steps=4", "checkpoint.every_steps=3", "log.every_steps=2", "profile_steps=(6,7)",
    "optimizer.schedule.total_steps=10",
  )  # fmt: skip
  loop.train(load("total_steps=10", *words), tmp_path)
  said = capsys.readouterr().out
  assert "no MFU, as the published rate of 'cpu' is not known" in " ".join(said.split())
  line = next(line for line in said.splitlines() if line.startswith("step 4/10"))
  assert " steps/s, " in line and " images/s, " in line and line.endswith(" left") and "MFU" not in line
  assert f"step 7: profile in {tmp_path / 'profile'}" in said

  lines = read_metrics(tmp_path, name=SPEED)
  # A line for each line of the terminal, and one where a save or an evaluation ends the window early.
  assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10]
  for line in lines:
    assert line["images_per_second"] == pytest.approx(2 * line["steps_per_second"]) and "mfu" not in line
  # Not the first step, which compiles, and not those that are traced.
  assert sum(line["over_steps"] for line in lines) == 10 - 1 - 2
  assert not any("second" in key for line in read_metrics(tmp_path) for key in line)

  run = tmp_path / "profile" / "plugins" / "profile" / "steps-6-7"
  assert {file.name for file in run.iterdir()} == {"process-0.xplane.pb", "process-0.trace.json.gz"}
  events = json.loads(gzip.decompress((run / "process-0.trace.json.gz").read_bytes()))["traceEvents"]
  steps = {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
  assert steps == {6, 7}

  before = (run / "process-0.xplane.pb").stat().st_mtime_ns
  loop.train(load("total_steps=12", *words), tmp_path)
  assert "profile in" not in capsys.readouterr().out, "past its steps nothing is traced"
  assert (run / "process-0.xplane.pb").stat().st_mtime_ns == before
  assert [line["step"] for line in read_metrics(tmp_path, name=SPEED)][-1] == 12


def test_a_profile_that_a_resume_or_an_error_cuts(tmp_path):
  assert not any(Profile(tmp_path, (3, 5), start=5).begins(step) for step in range(9))
  assert [step for step in range(9) if Profile(tmp_path, (3, 5), start=4).begins(step)] == [5]
  with pytest.raises(RuntimeError, match="stopped"), Profile(tmp_path, (3, 5)) as profile:
    profile.start()
    raise RuntimeError("stopped")
  assert (tmp_path / "profile" / "plugins" / "profile" / "steps-3-5" / "process-0.xplane.pb").exists()
  assert not profile.tracing


_COMPILES = """
import sys
import jax
from jaxseg import config as config_lib
from jaxseg.train import loop, metrics

compiled, at = [], [0]
watched = metrics.Progress.window

def step(self, number, *args, **kwargs):
  at[0] = number
  return watched(self, number, *args, **kwargs)

def listen(event, seconds, **about):
  if event == "/jax/core/compile/backend_compile_duration":
    compiled.append(at[0])

metrics.Progress.window = step
jax.monitoring.register_event_duration_secs_listener(listen)
for name, spatial in {"one": 1, "two": 1, "split": 2}.items():
  compiled.clear(), at.clear(), at.append(0)
  words = [
    f"mesh.devices={1 if name == 'one' else 2}", f"mesh.spatial={spatial}",
    "total_steps=9", "eval.every_steps=3", "checkpoint.every_steps=2", "log.every_steps=2",
    "log.panel_every_steps=3", "data.num_val=5", "eval.batch_size=2",
  ]
  config = config_lib.load(sys.argv[1], overrides=[tuple(w.split("=")) for w in words])
  loop.train(config, sys.argv[2] + name)
  print(name, compiled)
  # The step itself, before anything is done; after step 2 the first save, after step 3 evaluation and panel.
  assert compiled.count(0) >= 1 and 3 in compiled, "the listener hears nothing"
  assert set(compiled) <= {0, 2, 3}, compiled
print("none compiled again")
"""


def test_nothing_is_compiled_again(tmp_path):
  """Steps 2 to 9, evaluations with a part-full last batch, saves, pictures: one device and meshes."""
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
  }
  done = subprocess.run(
    [sys.executable, "-c", _COMPILES, TINY, f"{tmp_path}/"],
    env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.splitlines()[-1] == "none compiled again"


_CACHE = """
import sys
import jax, jax.numpy as jnp
from jaxseg import config as config_lib
from jaxseg.commands import compiled
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
config = config_lib.load(sys.argv[1], overrides=[("compilation_cache", sys.argv[2])])
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
print(compiled.use_cache(config))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum(hits))
"""


def cached(home, asked, *, given=""):
  """(the folder that was used, hits, stderr) of a fresh process."""
  env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
  env |= {"HOME": str(home), "PYTHONPATH": str(ROOT)} | (
    {"JAX_COMPILATION_CACHE_DIR": given} if given else {}
  )
  done = subprocess.run(
    [sys.executable, "-c", _CACHE, TINY, asked],
    env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  folder, hits = done.stdout.splitlines()
  return folder, int(hits), done.stderr


def test_compiled_programs_are_kept(tmp_path):
  """In the user's cache unless told otherwise; half entries are removed; nothing is said of any of it."""
  folder, hits, said = cached(tmp_path, "")
  assert pathlib.Path(folder).parent == tmp_path / ".cache" / "jaxseg" / "compiled" and (hits, said) == (
    0,
    "",
  )
  entries = list(pathlib.Path(folder).glob("*-cache"))
  assert entries
  for entry in entries:  # as a kill in the middle of writing leaves them
    entry.write_bytes(entry.read_bytes()[:-20])
  _, hits, said = cached(tmp_path, "")
  assert (hits, said) == (0, "")
  _, hits, said = cached(tmp_path, "")
  assert (hits, said) == (len(entries), "")
  given = str(tmp_path / "given")
  assert cached(tmp_path, "", given=given)[0] == given and list(pathlib.Path(given).glob("*-cache"))


def test_cache_off_or_not_writable(tmp_path, monkeypatch):
  before = {
    name: getattr(jax.config, name) for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
  }
  try:
    assert compiled.use_cache(load("compilation_cache=off")) == ""
    assert not jax.config.jax_enable_compilation_cache
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config.compilation_cache is '.*folder', which cannot be written"):
      compiled.use_cache(load(f"compilation_cache={tmp_path / 'file' / 'folder'}"))
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert compiled.use_cache(load()) == "", "a home that cannot be written is no reason to stop"
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
