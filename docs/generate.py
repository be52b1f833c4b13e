"""Pages of the reference that are written from the code: config keys, commands, models."""

import pathlib

from jaxseg import chips, lazy, models
from jaxseg.commands import COMMANDS
from jaxseg.commands.flags import make_parser
from jaxseg.config import schema, values

_NOTE = "<!-- Written by docs/generate.py. -->\n"


def write(folder: pathlib.Path) -> None:
  """Writes config_keys.md, commands.md, models.md and chips.md; an unchanged page keeps its time."""
  pages = {
    "config_keys": config_keys(),
    "commands": commands(),
    "models": model_names(),
    "chips": chip_rates(),
  }
  for name, text in pages.items():
    path = folder / f"{name}.md"
    text = _NOTE + text
    if not path.exists() or path.read_text() != text:
      path.write_text(text)


def config_keys() -> str:
  """A table of every key of each task."""
  lines = [
    "# Config keys",
    "",
    "`--config.KEY=VALUE` sets one. `jaxseg config --config=... --keys` lists those",
  ]
  lines += ["of one config, with the fields of its model. `...` stands for any number."]
  for task, keys in schema.TASK_KEYS.items():
    lines += ["", f"## Of {task}", "", "| key | holds | what it is |", "|---|---|---|"]
    for name, key in keys.items():
      numbers = "" if key.allowed == values.ANY else f", {key.allowed.text()}"
      holds = f"{values.describe(key.annotation)}{numbers}"
      lines.append(f"| `{name}` | {_cell(holds)} | {_cell(key.help)} |")
  return "\n".join(lines) + "\n"


def commands() -> str:
  """What `jaxseg COMMAND --help` prints, for each."""
  lines = ["# Commands", "", "| command | what it does |", "|---|---|"]
  lines += [f"| [`jaxseg {name}`](#jaxseg-{name}) | {command.help} |" for name, command in COMMANDS.items()]
  for name, command in COMMANDS.items():
    lines += ["", f"## jaxseg {name}", "", "```text", _help(name, command), "```"]
  return "\n".join(lines) + "\n"


def _help(name: str, command) -> str:
  module = lazy.load(command.module)
  parser = make_parser(f"jaxseg {name}", module.__doc__)
  module.add_flags(parser)
  return parser.format_help().rstrip()


def model_names() -> str:
  """The names that `create_model` knows."""
  rows = [f"- `{name}`" for name in models.list_models()]
  return "\n".join(["# Models by name", "", *rows]) + "\n"


def chip_rates() -> str:
  """The published rates that `jaxseg plan` and MFU use."""
  lines = [
    "# Chips",
    "",
    "Rates that the vendors publish, for one chip: dense bfloat16 (float16 where a chip has no bfloat16),",
    "memory, and what it can send over all its links in one direction. [Plan](../plan.md) and MFU use them.",
    "",
    "| chip | TFLOP/s | memory, GB | memory, GB/s | links, GB/s |",
    "|---|---|---|---|---|",
  ]
  for chip in [*chips.TPUS.values(), *(chip for _, chip in chips.GPUS)]:
    rates = (chip.flops / 1e12, chip.hbm_bytes / 1e9, chip.hbm_rate / 1e9, chip.link_rate / 1e9)
    lines.append(f"| {chip.name} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return text.replace("|", "\\|").replace("<", "&lt;")
