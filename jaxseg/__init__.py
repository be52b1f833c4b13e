"""Semantic segmentation for JAX: `create_model`, `from_pretrained`, and the rooms behind them.

`import jaxseg` is light: names are resolved on first use, no backend is started,
and TensorFlow, TFDS, Grain and OpenCV stay unloaded until data is read.
"""

from jaxseg import lazy

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
  "checkpoint", "crf", "data", "decoders", "encoders", "evaluation", "kernels", "layers",
  "losses", "metrics", "pretrained", "sharding", "train",
)  # fmt: skip

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
  if name in _ROOMS:
    return lazy.load(f"jaxseg.{name}")
  return lazy.attribute(__name__, _LAZY, name)


def __dir__():
  return sorted([*__all__, *_ROOMS])
