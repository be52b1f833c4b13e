"""The Python of the guides runs, top to bottom, a page at a time; the README's first example too."""

import math
import pathlib
import re

import pytest

from jaxseg import losses

ROOT = pathlib.Path(__file__).resolve().parent.parent


def blocks(page: str) -> str:
  return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S))


def test_import_a_module():
  code = blocks("docs/import_a_module.md")
  assert code.count("assert") >= 6
  exec(compile(code, "docs/import_a_module.md", "exec"), {"__name__": "page"})


def test_deeplab():
  code = blocks("docs/deeplab.md")
  assert code.count("assert") == 3
  exec(compile(code, "docs/deeplab.md", "exec"), {"__name__": "page"})


def test_training():
  code = blocks("docs/training.md")
  assert code.count("assert") == 2
  exec(compile(code, "docs/training.md", "exec"), {"__name__": "page"})


def test_extend():
  """Each kind of addition works from a page's code alone."""
  before = dict(losses.LOSSES)
  code = blocks("docs/extend.md")
  assert code.count("assert") == 8
  try:
    exec(compile(code, "docs/extend.md", "exec"), {"__name__": "page"})
  finally:
    losses.LOSSES.pop("tversky", None)
  assert losses.LOSSES == before


def test_the_examples_of_the_api():
  code = blocks("docs/reference/api.md")
  assert code.count("assert") == 16
  exec(compile(code, "docs/reference/api.md", "exec"), {"__name__": "page"})


def test_the_messages_of_troubleshooting_are_messages_of_the_code():
  code = "\n".join(path.read_text() for path in (ROOT / "jaxseg").rglob("*.py"))
  page = (ROOT / "docs" / "troubleshooting.md").read_text()
  terms = re.findall(r"^(`.*)\n: ", page, flags=re.M)
  known = [span for term in terms if "(Python's)" not in term for span in re.findall(r"`([^`]+)`", term)]
  assert len(known) >= 20
  assert [part for part in known if part not in code and part != "jaxseg.__file__"] == []


def test_readme_model():
  code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)[0]
  # A narrower network of the same name: what is tested is the page's code.
  small = "num_classes=19, encoder=dict(widths=(8, 16, 32), num_blocks=(1, 1), reductions=(4, 8)))"
  assert code.count("num_classes=19)") == 1
  scope = {"__name__": "page"}
  exec(compile(code.replace("num_classes=19)", small), "README.md", "exec"), scope)
  assert scope["logits"].shape == (1, 65, 97, 19)


def test_readme_counts_parameters_as_the_models_do():
  rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) M \|", (ROOT / "README.md").read_text(), flags=re.M)
  assert len(rows) >= 15
  for name, millions in rows:
    leaves = (line.split() for line in (ROOT / "tests" / "golden" / f"{name}.txt").read_text().splitlines())
    shapes = [shape.split("x") for path, shape, _ in leaves if path.startswith("params/")]
    count = sum(math.prod(int(n) for n in shape if n != "scalar") for shape in shapes)
    assert f"{count / 1e6:.2f}" == millions, name


# Written when the site is built.
_GENERATED = {"commands.md", "config_keys.md", "models.md", "chips.md"}


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("**/*.md")])
def test_links_and_files_exist(page):
  page = ROOT / page
  for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
    assert (page.parent / target).exists() or pathlib.Path(target).name in _GENERATED, target


def test_commands_name_files_that_exist():
  for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
    for path in re.findall(r"\b(?:configs|benchmarks)/\w+\.py", page.read_text()):
      assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_predict():
  code = blocks("docs/predict.md")
  assert code.count("assert") == 2
  exec(compile(code, "docs/predict.md", "exec"), {"__name__": "page"})
