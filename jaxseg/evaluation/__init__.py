"""Evaluation: inference, exact scores over a split, pictures. Names are resolved on first use (PEP 562)."""

import importlib

# Public name → the module that defines it.
_LAZY = {
  "Report": "jaxseg.evaluation.report",
  "evaluate": "jaxseg.evaluation.evaluate",
  "label_map": "jaxseg.evaluation.inference",
  "make_eval_step": "jaxseg.evaluation.evaluate",
  "make_predict": "jaxseg.evaluation.inference",
  "panel": "jaxseg.evaluation.panel",
  "save_panel": "jaxseg.evaluation.panel",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module 'jaxseg.evaluation' has no attribute {name!r}")


def __dir__():
  return sorted(__all__)
