"""Names that are imported on first use (PEP 562), and a sentence where an extra is not installed."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxseg.errors import UserError


class MissingExtraError(UserError, ModuleNotFoundError):
  """A library that an extra of jaxseg brings is not installed; the message has the command."""


# Import name → the extra of pyproject.toml that brings it; any other is of [train].
_EXTRAS = {
  "cv2": "vision",
  "PIL": "vision",
  "tqdm": "vision",
  "av": "video",
  "wandb": "wandb",
  "trackio": "trackio",
  "huggingface_hub": "hub",
  "gcsfs": "tpu",
  "apache_beam": "beam",
} | dict.fromkeys(
  ("flatbuffers", "jax2onnx", "onnx", "onnxruntime", "litert_converter", "ai_edge_litert"), "export"
)


def load(module: str) -> ModuleType:
  """The module of that name.

  Raises:
    MissingExtraError: it needs a library that is not installed; the message has the command to install it.
  """
  try:
    return importlib.import_module(module)
  except MissingExtraError:
    raise
  except ModuleNotFoundError as error:
    missing = (error.name or "").split(".")[0]
    if missing in ("", "jaxseg"):
      raise
    extra = _EXTRAS.get(missing, "train")
    raise MissingExtraError(
      f"{module} needs {missing}, which is not installed; pip install 'jaxseg[{extra}]' brings it"
    ) from None


def attribute(package: str, table: Mapping[str, str], name: str) -> Any:
  """What `package.name` stands for, by the table of public name → defining module."""
  if name not in table:
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
  return getattr(load(table[name]), name)
