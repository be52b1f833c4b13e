"""What an install brings: configs and types in a wheel; an editable one that the clone does not hide."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = (
  "pyproject.toml",
  "setup.py",
  "MANIFEST.in",
  "README.md",
  "LICENSE",
  "CHANGELOG.md",
  "train.py",
  "eval.py",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
  """The project in a folder called jaxseg, as `git clone` leaves it."""
  pytest.importorskip("setuptools")
  folder = tmp_path_factory.mktemp("parent") / "jaxseg"
  folder.mkdir()
  for name in FILES:
    shutil.copy(ROOT / name, folder)
  for name in ("jaxseg", "configs"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  return folder


def build(clone, kind, target):
  target.mkdir()
  code = f"import sys, setuptools.build_meta as b; b.build_{kind}(sys.argv[1])"
  done = subprocess.run([sys.executable, "-c", code, target], cwd=clone, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  site = target / "site"
  with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
    wheel.extractall(site)
  return site


def said(code, *, cwd):
  done = subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


def test_a_wheel_has_configs_and_types(clone, tmp_path):
  site = build(clone, "wheel", tmp_path / "wheel")
  assert (site / "jaxseg" / "py.typed").exists()
  templates = "jaxseg/evaluation/page/templates"
  assert {p.name for p in (site / templates).iterdir()} == {p.name for p in (ROOT / templates).iterdir()}
  assert {p.name for p in (site / "jaxseg" / "configs").iterdir()} == {
    p.name for p in (ROOT / "configs").glob("*.py")
  }
  assert not (site / "configs").exists() and not (site / "tests").exists()
  code = (
    f"import sys; sys.path.insert(0, {str(site)!r})\n"
    "from jaxseg import config\n"
    "print(config.load('segnext_ade20k:tiny', overrides=[('batch_size', '32')]).batch_size)"
  )
  assert said(code, cwd=tmp_path) == ["32"]


def test_an_editable_install_is_found_from_the_folder_around_the_clone(clone, tmp_path):
  site = build(clone, "editable", tmp_path / "editable")
  code = (
    # The current folder comes first, as for a notebook: it holds ./jaxseg, which is the clone.
    # What this environment itself has of jaxseg is left out.
    "import os, site, sys\n"
    "own = lambda path: not os.path.exists(os.path.join(path, 'jaxseg', '__init__.py'))\n"
    "sys.path[:] = [''] + list(filter(own, sys.path))\n"
    f"site.addsitedir({str(site)!r})\n"
    "import jaxseg; from jaxseg.config import files\n"
    "print(jaxseg.__file__, files.installed())"
  )
  assert said(code, cwd=clone.parent) == [str(clone / "jaxseg" / "__init__.py"), str(clone / "configs")]
