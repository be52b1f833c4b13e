"""The benchmark for a lent accelerator: its processes, what it keeps from call to call, and its report."""

import json
import pathlib
import sys
import time

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  import accelerator

  return accelerator


def script(*lines: str) -> list[str]:
  return [sys.executable, "-c", "\n".join(("import sys, time, json", *lines))]


def measures(*results: dict) -> tuple[str, ...]:
  """Lines of a process that is ready, waits to have the device, and notes when it had it."""
  told = [
    f"print('RESULT ' + json.dumps({result!r} | dict(at=time.time())), flush=True)" for result in results
  ]
  return ("print('READY', flush=True)", "sys.stdin.readline()", *told, "time.sleep(0.3)")


def test_of_a_wave_each_has_the_device_in_turn_and_the_slow_and_the_broken_have_a_reason(accelerator):
  commands = [
    script("time.sleep(1)", *measures({"ms": 1.0})),
    script("raise ValueError('no such device')"),
    script("time.sleep(60)"),
    script(*measures({"ms": 2.0}, {"ms": 3.0})),
    script(*measures({"ms": 4.0}), "sys.exit('lost')"),
  ]
  began = time.monotonic()
  slow, broken, late, two, half = accelerator.run_wave(commands, began + 16)
  assert time.monotonic() - began < 16
  assert broken == [{"failed": "ValueError: no such device"}] and late == [{"failed": "time"}]
  assert [r["ms"] for r in (*slow, *two)] == [1.0, 2.0, 3.0]
  assert half[0]["ms"] == 4.0 and half[1] == {"failed": "lost"}
  assert slow[0]["at"] + 0.3 <= two[0]["at"] <= two[1]["at"] + 0.3 <= half[0]["at"] + 0.3


def test_a_second_call_measures_what_is_missing(accelerator, monkeypatch, tmp_path, capsys):
  calls = []

  def ours(cases):
    if cases[0]["kind"] == "device":
      return script("print('READY', flush=True)", 'print(\'RESULT {"device": "Some GPU"}\')')
    calls.append(cases[0]["model"])
    if cases[0]["model"] == "cgnet_m3n21" and len(calls) == 2:
      return script("sys.exit('out of memory')")
    rate = {"ms": 2.0, "images_per_second": 500.0, "spread": 1.0, "compile_seconds": 3.0}
    return script(*measures(rate))

  monkeypatch.setattr(accelerator, "ours", ours)

  def call(*flags: str) -> str:
    arguments = ["--tiny", "--what=models", "--modes=train", f"--output={tmp_path}", "--minutes=1", *flags]
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *arguments])
    accelerator.main()
    return capsys.readouterr().out

  assert "0 of 2 are measured already" in call("--models=segformer_b0,cgnet_m3n21", "--jobs=2")
  assert calls == ["segformer_b0", "cgnet_m3n21"]
  call("--models=segformer_b0,cgnet_m3n21")
  assert len(calls) == 2, "what failed is not tried again unless one asks"
  assert "failed: out of memory" in (tmp_path / "Some_GPU.md").read_text()
  call("--models=segformer_b0,cgnet_m3n21", "--retry")
  assert calls[2:] == ["cgnet_m3n21"]
  report = (tmp_path / "Some_GPU.md").read_text()
  assert report.count("| jaxseg | 500.0 | 2.00 |") == 2 and "failed" not in report
  assert (tmp_path / "Some_GPU.png").stat().st_size > 1000
  lines = [json.loads(line) for line in (tmp_path / "accelerator_Some_GPU.jsonl").read_text().splitlines()]
  assert [line["model"] for line in lines] == ["segformer_b0", "cgnet_m3n21", "cgnet_m3n21"]


def test_numbers_of_a_device_are_compared_with_those_kept_of_a_cpu(accelerator, tmp_path):
  import accelerator_numbers

  case = dict(model="cgnet_m3n21", rows=32, columns=32, batch=1, references=str(tmp_path))
  same = accelerator_numbers.prepare(case)()["differences"]
  assert all(value < 1e-5 for mode in same.values() for value in mode.values()), same
  (path,) = tmp_path.glob("*.npz")
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **arrays | {"arr_0": arrays["arr_0"] * 1.01})
  other = accelerator_numbers.prepare(case)()["differences"]
  assert all(0.009 < mode["logits"] < 0.011 and mode["gradients"] < 1e-5 for mode in other.values()), other
  line = accelerator_numbers.table([case | {"differences": other}])[-1]
  assert line.startswith("| cgnet_m3n21 | 9.9e-03")
