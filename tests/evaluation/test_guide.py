"""The Python of docs/evaluate.md runs."""

import pathlib
import re


def test_evaluate_guide():
  page = pathlib.Path(__file__).parents[2] / "docs" / "evaluate.md"
  (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
  assert code.count("assert") == 2
  exec(compile(code, "docs/evaluate.md", "exec"), {"__name__": "page"})
