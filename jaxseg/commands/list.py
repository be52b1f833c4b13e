"""The models by name, with their parts."""

import argparse
from collections.abc import Sequence

from jaxseg import models
from jaxseg.encoders import ENCODERS


def add_flags(parser: argparse.ArgumentParser) -> None:
  """None."""
  del parser


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """One line a model: name, and parts."""
  del flags, changes
  lines = [f"{name:<24} {s.encoder} + {s.decoder}" for name, s in sorted(models.SYSTEMS.items())]
  return lines + [f"{name:<24} encoder alone" for name in sorted(ENCODERS)]
