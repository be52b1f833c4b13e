"""Every command of the pages is one that runs: config, overrides, flags, a batch that its devices share."""

import functools
import math
import pathlib
import re
import shlex

import pytest
from jax.sharding import AbstractMesh, AxisType

from jaxseg import config as config_lib
from jaxseg import data, lazy
from jaxseg.commands import COMMANDS
from jaxseg.commands.flags import make_parser
from jaxseg.config import card, validate
from jaxseg.errors import UserError
from jaxseg.plan.topology import slice_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("**/*.md")))]
# On how many devices the commands of a page run, in the page's order; the last holds for the rest.
DEVICES = {
  "docs/cloud_tpu.md": [8, 32],
  "docs/launch.md": [16],
  "docs/launch_gke.md": [16],
  "docs/launch_gpu.md": [8],
  "docs/launch_slurm.md": [32],
  "docs/scaling.md": [16],
  "docs/tutorials/several_gpus.md": [8],
  "docs/tutorials/tpu.md": [8, 32],
}


@functools.cache
def flags_of(name):
  """What the command's own parser takes, without the dashes."""
  parser = make_parser(name, None)
  lazy.load(COMMANDS[name].module).add_flags(parser)
  return {word.removeprefix("--") for word in parser._option_string_actions}


class Typed(Exception):
  """Carries the config as it was typed, before a file's `finish` looks for folders and weights."""


def commands(page):
  """(command, words) of each command in the page's code blocks."""
  found = []
  for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", (ROOT / page).read_text(), flags=re.S):
    block = block.replace("\\\n", " ").replace("\\$", "$")
    as_list = re.search(r"command:\n((?:\s+- \S+\n)+)", block)  # of a Kubernetes manifest
    if as_list:
      block = " ".join(re.findall(r"- (\S+)", as_list[1]))
    for line in block.splitlines():
      call = re.search(r"(?:^|\s)(?:python (train|eval)\.py|jaxseg ([a-z-]+))(?=\s|$)(.*)", line)
      if call is None or re.match(r"\s*(jaxseg|train\.py|eval\.py):", line):
        continue
      name = call[1] or call[2]
      if name not in COMMANDS:
        continue
      text = re.split(r"; do |\s+#\s| && | > ", call[3])[0].replace("[", "").replace("]", "")
      text = text[:-1] if text.count('"') % 2 else text
      found.append((name, shlex.split(re.sub(r"\$\w+", "X", text))))
  return found


def typed(spec, changes):
  def stop(config):
    raise Typed(config)

  with pytest.raises(Typed) as caught:
    config_lib.load(spec, overrides=changes, ready=stop)
  return caught.value.args[0]


def mesh_of(config, devices):
  inner = config.mesh.fsdp * config.mesh.spatial
  count = devices if config.mesh.data == -1 else config.mesh.data * inner
  shape = (count // inner, config.mesh.fsdp, config.mesh.spatial)
  assert count == devices and devices % inner == 0, (shape, devices)
  return AbstractMesh(shape, ("data", "fsdp", "spatial"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  trained = 0
  for name, words in commands(page):
    changes = [
      tuple(word.removeprefix("--config.").split("=", 1)) if "=" in word else (word[9:], "true")
      for word in words
      if word.startswith("--config.")
    ]
    flags = dict(
      (word[2:].split("=", 1) + [""])[:2]
      for word in words
      if word.startswith("--") and not word.startswith("--config.")
    )
    assert set(flags) <= flags_of(name), (page, name, flags)
    spec = flags.get("config", "")
    if spec in ("...", "FILE") or any(text == "..." for _, text in changes):
      continue  # "as above"
    if not spec:
      if name in ("eval", "crf-search"):  # on a workdir, of some model
        known = [c for c in changes if not c[0].startswith("model.")]
        validate.validate(typed("segnext_ade20k", known))
      continue
    config = typed(spec, changes)
    validate.validate(config)
    if config.data.name not in ("folder", "imagenet"):  # whose classes are in the user's folder
      validate.validate_classes(config, data.dataset_info(config.data).classes)
    if name == "train":
      sizes = DEVICES.get(page, [1])
      validate.validate_batches(config, mesh_of(config, sizes[min(trained, len(sizes) - 1)]))
      assert "WARNING" not in card.weights_row(config), f"{page}: {spec} starts from random weights"
      trained += 1
    if name == "plan" and flags["topology"] not in ("cpu", "gpu"):
      kind, _, text = flags["topology"].partition(":")
      chips = [text] if kind == "cpu" else slice_of(flags["topology"]).split(":")[1].split("x")
      validate.validate_batches(config, mesh_of(config, math.prod(map(int, chips))))


def test_the_check_sees_the_commands():
  """The pages that are all about a command have some, and a wrong one is noticed."""
  for page, least in (("docs/cloud_tpu.md", 2), ("docs/launch_gke.md", 1), ("docs/launch_slurm.md", 1)):
    assert sum(name == "train" for name, _ in commands(page)) >= least, page
  config = typed("segnext_ade20k:tiny", [])
  with pytest.raises(UserError, match="32 device groups"):
    validate.validate_batches(config, mesh_of(config, 32))
  assert "WARNING" in card.weights_row(config)
