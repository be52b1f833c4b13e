"""The directory that `save_pretrained` writes: model.safetensors, config.json, README.md."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.pretrained.readers import safetensors
from jaxseg.pretrained.schema import meta_of_ours

_CARD = """\
---
library_name: jaxseg
pipeline_tag: image-segmentation
tags: [jax, flax, semantic-segmentation]
---

# {arch}

{parameters:,} parameters, {num_classes} classes.

```python
import jaxseg

net = jaxseg.from_pretrained("path/to/this/directory")
labels = net.predict(image)  # uint8 RGB h w 3 → int32 h w
```

- Input: {order} in 0..255, minus {mean}, divided by {std}.
{value_range}- Licence of the weights: {licence}.
{lineage}- Read from the layout: {layout}.
- Only assumed: {assumed}.

| id | class | colour |
|---|---|---|
{rows}
"""


def write(directory: pathlib.Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
  """Writes the three files; each is whole or absent.

  Args:
    directory: made when it does not exist.
    tensors: "params/encoder/..." → array.
    config: plain JSON values, as config.json holds them.

  Raises:
    UserError: the directory cannot be written.
  """
  meta_of_ours(config, directory / "config.json")  # what could not be read again is not written
  count = sum(value.size for path, value in tensors.items() if path.startswith("params/"))
  try:
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.write(directory / "model.safetensors", tensors, config=config)
    _replace(directory / "config.json", json.dumps(config, indent=2) + "\n")
    _replace(directory / "README.md", card(config, parameters=count))
  except OSError as error:
    raise UserError(f"{directory} cannot be written ({error.strerror or error}); choose another") from None


def card(config: Mapping[str, Any], *, parameters: int) -> str:
  """The model card: how to load it, what it wants, what it may be used for."""
  preprocess = config["preprocess"]
  names, colours = config["classes"], config["palette"]
  rows = "\n".join(
    f"| {i} | {escape(name)} | #{bytes(colour).hex()} |"
    for i, (name, colour) in enumerate(zip(names, colours, strict=True))
  )
  return _CARD.format(
    arch=escape(config["model"]["arch"]),
    parameters=parameters,
    num_classes=len(names),
    order=preprocess["channel_order"].upper(),
    mean=tuple(preprocess["mean"]),
    std=tuple(preprocess["std"]),
    value_range="- Of images with more than 8 bits {:g} to {:g} become 0 to 255.\n".format(*value_range)
    if (value_range := preprocess.get("value_range"))
    else "",
    licence=escape(config["licence"] or "not known"),
    lineage="".join(f"- {escape(key)}: {escape(text)}.\n" for key, text in config["lineage"].items()),
    layout=escape(config["layout"]),
    assumed=escape("; ".join(f"{key} ({text})" for key, text in config["assumed"].items()) or "nothing"),
    rows=rows,
  )


def escape(text: str) -> str:
  """Text of somebody else's as Markdown shows it: no markup, no table cells, one line."""
  text = "".join(letter if letter.isprintable() else " " for letter in text)
  return re.sub(r"([\\`*\[\]|<>#!])", r"\\\1", text)


def _replace(path: pathlib.Path, text: str) -> None:
  part = path.with_name(path.name + ".part")
  part.write_text(text)
  part.replace(path)
