"""Semantic segmentation for JAX: `create_model`, `from_pretrained`, and the rooms behind them.

`import jaxseg` is light: names are resolved on first use, no backend is started,
and TensorFlow, TFDS, Grain and OpenCV stay unloaded until data is read.
"""

from typing import TYPE_CHECKING

from jaxseg import lazy

if TYPE_CHECKING:  # what a type checker sees; at run time the table below resolves the same names
  from jaxseg import (
    checkpoint as checkpoint,
  )
  from jaxseg import (
    config as config,
  )
  from jaxseg import (
    crf as crf,
  )
  from jaxseg import (
    data as data,
  )
  from jaxseg import (
    decoders as decoders,
  )
  from jaxseg import (
    encoders as encoders,
  )
  from jaxseg import (
    evaluation as evaluation,
  )
  from jaxseg import (
    export as export,
  )
  from jaxseg import (
    layers as layers,
  )
  from jaxseg import (
    losses as losses,
  )
  from jaxseg import (
    metrics as metrics,
  )
  from jaxseg import (
    ops as ops,
  )
  from jaxseg import (
    pretrained as pretrained,
  )
  from jaxseg import (
    sharding as sharding,
  )
  from jaxseg import (
    train as train,
  )
  from jaxseg.hub import Net, from_pretrained, load_pretrained, to_torch
  from jaxseg.layers.resize import resize_logits
  from jaxseg.models import SegmentationModel, create_model, list_models
  from jaxseg.types import IGNORE_LABEL

__version__ = "0.1.0"

# Public name → the module that defines it (PEP 562).
_LAZY = {
  "IGNORE_LABEL": "jaxseg.types",
  "SegmentationModel": "jaxseg.models",
  "create_model": "jaxseg.models",
  "list_models": "jaxseg.models",
  "resize_logits": "jaxseg.layers.resize",
  "Net": "jaxseg.hub",
  "from_pretrained": "jaxseg.hub",
  "load_pretrained": "jaxseg.hub",
  "to_torch": "jaxseg.hub",
}
_ROOMS = (
  "checkpoint", "config", "crf", "data", "decoders", "encoders", "evaluation", "export", "layers",
  "losses", "metrics", "ops", "pretrained", "sharding", "train",
)  # fmt: skip

# Written out: a type checker reads no `*_LAZY`; tests/test_public_api.py compares the two.
__all__ = [
  "IGNORE_LABEL",
  "Net",
  "SegmentationModel",
  "__version__",
  "create_model",
  "from_pretrained",
  "list_models",
  "load_pretrained",
  "resize_logits",
  "to_torch",
]


def __getattr__(name: str):
  if name in _ROOMS:
    return lazy.load(f"jaxseg.{name}")
  return lazy.attribute(__name__, _LAZY, name)


def __dir__():
  return sorted([*__all__, *_ROOMS])
