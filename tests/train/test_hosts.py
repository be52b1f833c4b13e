"""Jobs of several processes: each place is found, each lack is a sentence, and whoever is left leaves."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxseg.errors import UserError
from jaxseg.train import launch, runtime
from jaxseg.train.exits import RESTART, Restart
from jaxseg.train.logging import Progress

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The processes of a job without a model: what holds for them holds wherever train.py and eval.py are.
_WORKER = """
import argparse, sys, time
import jax, numpy as np
from jaxseg.train import hosts, job, runtime
from jaxseg.errors import UserError

parser = argparse.ArgumentParser()
runtime.add_job_flags(parser)
parser.add_argument("--mode")
parser.add_argument("--folder")
with runtime.sentences("worker"):
  runtime.expect_processes("worker", sys.argv[1:])
  flags = runtime.parse_flags(parser, sys.argv[1:])
  job.join(initialization_timeout_seconds=30, heartbeat_timeout_seconds=5)
  index = int(flags.process_id)
  if flags.mode == "good":
    assert hosts.gather("names", f"p{index}") == ["p0", "p1"]
    hosts.check_same({"config.seed": 1})
    hosts.check_shared(flags.folder)
    print("good")
  if flags.mode == "differ":
    hosts.check_same({"config.seed": index, "config.total_steps": 3} | ({"config.new": "x"} if index else {}))
  if flags.mode == "alone":
    if index == 1:
      raise UserError("only this one has no data")
    hosts.gather("what will not come")
  if flags.mode == "bug":
    if index == 0:
      raise TypeError("a bug of this one")
    hosts.gather("what will not come")
  if flags.mode in ("collective", "evaluation"):
    if flags.mode == "evaluation":
      runtime.end_at_sigterm()
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ("x", ""))
    x = jax.make_array_from_process_local_data(split, np.ones(1, np.float32))
    add = jax.jit(lambda x: x.sum(), out_shardings=whole)
    while True:
      add(x).block_until_ready()
      print("step", flush=True)
      time.sleep(0.05)
"""


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def start(words, count=2, given=2):
  """Starts `given` processes of a job of `count`."""
  address = f"127.0.0.1:{free_port()}"
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return [
    subprocess.Popen(
      [sys.executable, *words, f"--coordinator={address}", f"--num_processes={count}", f"--process_id={i}"],
      cwd=ROOT,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(given)
  ]


def ends(processes):
  """(exit code, stdout, the program's own lines on stderr) of each."""
  done = []
  for process in processes:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err or "a bug of this one" in err, err
    said = [line for line in err.splitlines() if line.startswith(("worker: ", "train.py: "))]
    done.append((process.returncode, out, said))
  return done


def run(mode, folder="."):
  return ends(start(["-c", _WORKER, f"--mode={mode}", f"--folder={folder}"]))


def test_a_good_job_ends_with_0(tmp_path):
  for code, out, said in run("good", tmp_path):
    assert (code, said) == (0, []) and out.splitlines()[-1] == "good"
  assert not list(tmp_path.iterdir()), "the probe is removed"


def test_disagreement_is_said_on_every_host():
  sentence = (
    "worker: the processes of the job do not agree: config.new is missing on process 0 and 'x' on process 1,"
    " config.seed is 0 on process 0 and 1 on process 1; give the same command, files and version on every"
    " host"
  )
  assert [(code, said) for code, _, said in run("differ")] == [(2, [sentence])] * 2


def test_one_that_fails_alone_takes_the_others_along():
  (first, _, heard), (second, _, said) = run("alone")
  assert (first, second) == (2, 2)
  assert said == ["worker: only this one has no data"]
  assert heard == ["worker: process 1 stopped the job: only this one has no data"]


@pytest.mark.parametrize(
  ("wrong", "sentence"),
  [
    ("--fodler=x", "there is no flag --fodler; did you mean '--folder'?"),
    ("--folder", "its flags cannot be read"),
  ],
)
def test_flags_that_are_wrong_on_one_process_end_the_others(wrong, sentence):
  words = ["-c", f"import sys\nif '--process_id=1' in sys.argv: sys.argv.append({wrong!r})\n{_WORKER}"]
  (first, _, heard), (second, _, _) = ends(start([*words, "--mode=alone"]))
  assert (first, second) == (2, 2)
  assert heard == [f"worker: process 1 stopped the job: {sentence}"]


def test_a_bug_of_the_coordinator_takes_the_others_along():
  (first, _, _), (second, _, heard) = run("bug")
  assert (first, second) == (1, 1)
  assert heard == ["worker: process 0 stopped the job: TypeError: a bug of this one"]


@pytest.mark.parametrize(
  ("victim", "how"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP), (1, signal.SIGTERM)]
)
def test_survivors_of_a_lost_process_leave(victim, how):
  mode = "evaluation" if how == signal.SIGTERM else "collective"
  processes = start(["-c", _WORKER, f"--mode={mode}"])
  try:
    while processes[1 - victim].stdout.readline() != "step\n":
      assert processes[1 - victim].poll() is None, processes[1 - victim].stderr.read()
    processes[victim].send_signal(how)
    since = time.monotonic()
    ((code, _, said),) = ends([processes[1 - victim]])
    assert time.monotonic() - since < 30
    assert code == 75
    assert len(said) == 1 and said[0].startswith(f"worker: process {victim} of 2 is gone"), said
    assert said[0].endswith("the same command on every host goes on from the last checkpoint")
  finally:
    for process in processes:
      process.kill()
      process.communicate()


def test_train_py_says_what_a_mesh_lacks_on_every_host_and_writes_nothing(tmp_path):
  words = ["train.py", "--config=configs/colour_only_synthetic.py:smoke", f"--workdir={tmp_path / 'run'}"]
  for code, _, said in ends(start([*words, "--config.mesh.devices=0", "--config.mesh.fsdp=3"])):
    assert code == 2 and len(said) == 1
    assert "config.mesh: fsdp=3 times spatial=1 is 3, which does not divide the 2 devices" in said[0]
  assert not (tmp_path / "run").exists()


def test_one_that_comes_alone_does_not_wait_for_ever(tmp_path):
  words = ["train.py", "--config=configs/colour_only_synthetic.py:smoke", f"--workdir={tmp_path / 'run'}"]
  ((code, _, said),) = ends(start([*words, "--config.hosts.initialization_timeout_seconds=2"], given=1))
  assert code == 2 and "not all 2 processes of the job came within 2 s (this is process 0" in said[0]


FLAGS = {"coordinator": None, "num_processes": None, "process_id": None}


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_who_left_ends_nothing_and_the_exit_code_stays(monkeypatch, name):
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, "w") as stream:  # closing it, as the interpreter does at its end, must not fail either
    monkeypatch.setattr(sys, name, stream)
    progress = Progress(start=0, total=2, log_every=1)
    for step in (1, 2):
      progress.step(step, {"loss": 1.0}, rates={})
    with pytest.raises(SystemExit) as left, runtime.sentences("worker"):
      raise Restart("nobody reads this")
    assert left.value.code == RESTART


@pytest.fixture
def alone(monkeypatch):
  """No launcher, and no network: what is not there may not be asked."""
  for name in list(os.environ):
    if name.startswith(("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM", "OMPI", "TPU")):
      monkeypatch.delenv(name)
  for name in ("create_connection", "gethostbyname", "getaddrinfo"):
    monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("the network was asked"))
  return monkeypatch


def test_a_single_host_without_a_launcher_asks_nobody(alone):
  assert launch.find(FLAGS, timeout=1.0) is None
  alone.setenv("JAX_NUM_PROCESSES", "1")
  alone.setenv("SLURM_NTASKS", "4")  # of an allocation, in whose shell no task was started
  assert launch.find(FLAGS, timeout=1.0) is None


def test_places_that_launchers_give(alone):
  slurm = dict(JOB_ID="4097", STEP_NODELIST="node[007-009],x", NTASKS="3", PROCID="2", LOCALID="0")
  for name, value in slurm.items():
    alone.setenv(f"SLURM_{name}", value)
  assert launch.find(FLAGS, timeout=1.0) == launch.Place("node007:61441", 3, 2, "Slurm")
  alone.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:80")
  assert launch.find(FLAGS, timeout=1.0).coordinator == "10.0.0.1:80"
  flags = {"coordinator": "h:1", "num_processes": "2", "process_id": "1"}
  assert launch.find(flags, timeout=1.0) == launch.Place("h:1", 2, 1, "--coordinator", explicit=True)


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    ({"process_id": "0"}, "--coordinator and --num_processes are missing"),
    ({"coordinator": "h:1", "num_processes": "2"}, "--process_id is missing"),
    ({"coordinator": "h", "num_processes": "2", "process_id": "0"}, "expected HOST:PORT"),
    ({"coordinator": "h:1", "num_processes": "2", "process_id": "2"}, "expected 0 to 1"),
    ({"coordinator": "h:1", "num_processes": "two", "process_id": "0"}, "expected a whole number"),
  ],
)
def test_wrong_flags_are_a_sentence(alone, flags, sentence):
  with pytest.raises(UserError, match=sentence):
    launch.find(FLAGS | flags, timeout=1.0)


def test_partial_variables_are_a_sentence(alone):
  alone.setenv("JAX_COORDINATOR_ADDRESS", "h:1")
  with pytest.raises(UserError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID are missing"):
    launch.find(FLAGS, timeout=1.0)
  alone.setenv("OMPI_COMM_WORLD_SIZE", "2")
  alone.setenv("OMPI_COMM_WORLD_RANK", "1")
  assert launch.find(FLAGS, timeout=1.0) == launch.Place("h:1", 2, 1, "Open MPI")


def test_a_coordinator_that_is_not_there():
  place = launch.Place(f"127.0.0.1:{free_port()}", 2, 1, "--coordinator")
  with pytest.raises(UserError, match=r"cannot reach the coordinator 127.0.0.1:.*refused.*tried for 0.2 s"):
    launch.reach(place, timeout=0.2)


def test_a_port_that_is_taken():
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    place = launch.Place(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, "--coordinator")
    with pytest.raises(UserError, match="cannot listen on port"):
      launch.reach(place, timeout=0.2)
