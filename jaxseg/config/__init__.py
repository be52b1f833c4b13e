"""Configs: the model's fields, config files, overrides, validation, the recipe card.

A config is a `ml_collections.ConfigDict` made by the `get_config(arg)` of one file;
`configs/common.py` holds the presets that the files share.
"""

from typing import TYPE_CHECKING

from jaxseg import lazy

if TYPE_CHECKING:  # what a type checker sees
  from jaxseg.config.card import recipe_card
  from jaxseg.config.fields import (
    build_model,
    check_fields,
    follow,
    make_preprocess,
    model_config,
    model_fields,
  )
  from jaxseg.config.files import change, from_resolved, load, resolved
  from jaxseg.config.keys import DTYPES, leaves, name_of
  from jaxseg.config.parts import parts_of
  from jaxseg.config.rule import make_inference_rule
  from jaxseg.config.smoke import shrink

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

__all__ = [
  "DTYPES",
  "build_model",
  "change",
  "check_fields",
  "follow",
  "from_resolved",
  "leaves",
  "load",
  "make_inference_rule",
  "make_preprocess",
  "model_config",
  "model_fields",
  "name_of",
  "parts_of",
  "recipe_card",
  "resolved",
  "shrink",
]


def __getattr__(name: str):
  return lazy.attribute(__name__, _LAZY, name)


def __dir__():
  return sorted(__all__)
