"""Ctrl-C at any moment, a closed terminal, and who is let in by the coordinator of a job."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = max(int(os.environ.get("JAXSEG_HOSTILE", "0")) // 40, 2)
WORDS = ("config", "--config=cgnet_m3n21_synthetic:smoke", "--keys")


def start(*words, **options):
  return subprocess.Popen(
    [sys.executable, *words], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
  )  # fmt: skip


@pytest.mark.parametrize("door", [("-m", "jaxseg"), ("train.py",)])
def test_ctrl_c_at_any_moment_and_twice(door):
  """Exit code 130 and no traceback, in imports too; the signal's own before and after Python is there."""
  rng = random.Random(COUNT)
  whole = time.monotonic()
  complete, _ = start(*door, *(WORDS if door[0] == "-m" else ("--help",))).communicate()
  whole = time.monotonic() - whole
  ends = set()
  for _ in range(COUNT):
    process = start(
      *door, *(WORDS if door[0] == "-m" else ("--config=cgnet_m3n21_synthetic:smoke", "--workdir=/"))
    )
    time.sleep(rng.random() * whole)
    for _ in range(rng.choice([1, 2, 2])):
      process.send_signal(signal.SIGINT)
      time.sleep(rng.random() * 0.05)
    out, error = process.communicate(timeout=300)
    ends.add(process.returncode)
    assert process.returncode in (0, 2, 130, -signal.SIGINT), error
    assert "Traceback" not in error and "Traceback" not in out, error
    if process.returncode == -signal.SIGINT:
      assert out in ("", complete) and not error  # before Python is there, or when all is said
  assert ends


@pytest.mark.parametrize("closed", [">&- 2>&-", "| head -c 1", ">/dev/full 2>/dev/full"])
def test_a_closed_terminal(closed):
  command = f"{sys.executable} -m jaxseg list {closed}"
  done = subprocess.run(
    ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
  )
  assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


JOB = """
import argparse, sys
from jaxseg import config
from jaxseg.train import distributed
chosen = config.load("cgnet_m3n21_synthetic", overrides=[])
flags = argparse.Namespace(coordinator=sys.argv[1], num_processes="2", process_id="0")
print("ready", flush=True)
distributed.initialize(flags, chosen)
"""


def test_the_coordinator_listens_on_the_given_address_alone():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  process = start("-c", JOB, f"127.0.0.1:{port}")
  try:
    assert process.stdout.readline() == "ready\n"
    deadline, found = time.monotonic() + 120, set()
    while not found and time.monotonic() < deadline and process.poll() is None:
      time.sleep(0.1)
      found = listening(port)
    # 127.0.0.1 in the kernel's order of bytes, as such or mapped into IPv6.
    assert found and found <= {"0100007F", "0000000000000000FFFF00000100007F"}, f"listens on {found}"
  finally:
    process.kill()
    process.communicate()


def listening(port):
  """The addresses on which somebody listens at a port, in hex; of IPv6 as well."""
  found = set()
  for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in pathlib.Path(table).read_text().splitlines()[1:]:
      address, state = line.split()[1], line.split()[3]
      if state == "0A" and int(address.rpartition(":")[2], 16) == port:
        found.add(address.rpartition(":")[0])
  return found


def test_no_key_of_ours_ends_a_job():
  """The store of a coordinator takes keys from whoever reaches it: nothing of ours reads one."""
  words = re.compile(r"key_value|blocking_key|wait_at_barrier|get_coordination|jaxseg/stop")
  for path in (ROOT / "jaxseg").rglob("*.py"):
    assert not words.search(path.read_text()), path
