"""The benchmark that sets the choice tables on a lent accelerator, at tiny shapes."""

import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "accelerator_forms.py"
SPEC = importlib.util.spec_from_file_location("accelerator_forms", PATH)
forms = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(forms)
CASES = forms.cases(tiny=True, runs=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['operation']} {case['shape']}")
def test_every_form_is_timed(case):
  result = forms.prepare(case)()
  assert result["chosen"] in result["forms"] and len(result["forms"]) > 1
  assert all(set(timed) == {"forward", "both", "difference"} for timed in result["forms"].values()), result
  assert all(timed["difference"] < 0.02 for timed in result["forms"].values()), result
  (line,) = forms.table([case | result])[2:]
  assert line.count("**") >= 4 and line.endswith(f"| {result['chosen']} |")


def test_every_operation_has_tiny_and_real_shapes():
  assert set(forms.TINY) == set(forms.SHAPES)
  assert {case["operation"] for case in forms.cases(tiny=False, runs=20)} == set(forms.SHAPES)


def test_what_a_device_refuses_is_a_line(monkeypatch):
  def refuse(*arrays):
    raise RuntimeError("no such kernel\nand more")

  monkeypatch.setattr(
    forms, "_resize", lambda *shape, platform: ((forms._normal(1, 2, 2, 1),), {"a": refuse}, "a")
  )
  case = dict(operation="resize", shape=[1, 2, 3], batch=1, runs=1)
  assert "a failed: no such kernel |" in forms.table([case | forms.prepare(case)()])[-1]
