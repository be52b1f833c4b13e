"""Puts the folder configs/ into the wheel as jaxseg/configs, where `jaxseg.config.files.installed` looks."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
  """`build_py`, and the configs; an editable install finds them in the checkout."""

  def run(self):
    super().run()
    if not self.editable_mode:
      target = pathlib.Path(self.build_lib) / "jaxseg" / "configs"
      target.mkdir(parents=True, exist_ok=True)
      for path in sorted(pathlib.Path(__file__).parent.glob("configs/*.py")):
        shutil.copyfile(path, target / path.name)


setup(cmdclass={"build_py": BuildPy})
