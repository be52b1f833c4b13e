"""Configs: the model's fields, config files, overrides, validation, the recipe card.

A config is a `ml_collections.ConfigDict` made by the `get_config(arg)` of one file;
`configs/common.py` holds the presets that the files share.
"""

from jaxseg import lazy

# Public name → the module that defines it (PEP 562).
_LAZY = {
  "DTYPES": "jaxseg.config.keys",
  "build_model": "jaxseg.config.fields",
  "change": "jaxseg.config.files",
  "check_fields": "jaxseg.config.fields",
  "follow": "jaxseg.config.fields",
  "from_resolved": "jaxseg.config.files",
  "leaves": "jaxseg.config.keys",
  "load": "jaxseg.config.files",
  "make_inference_rule": "jaxseg.config.rule",
  "make_preprocess": "jaxseg.config.fields",
  "model_config": "jaxseg.config.fields",
  "model_fields": "jaxseg.config.fields",
  "name_of": "jaxseg.config.keys",
  "parts_of": "jaxseg.config.parts",
  "recipe_card": "jaxseg.config.card",
  "resolved": "jaxseg.config.files",
  "shrink": "jaxseg.config.smoke",
}

__all__ = sorted(_LAZY)


def __getattr__(name: str):
  return lazy.attribute(__name__, _LAZY, name)


def __dir__():
  return sorted(__all__)
