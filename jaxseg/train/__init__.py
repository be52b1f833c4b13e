"""Training: the builders that `train.py` itself uses, resolved on first use (PEP 562)."""

import importlib

# Public name → the module that defines it.
_LAZY = {
  "TrainState": "jaxseg.train.state",
  "create_state": "jaxseg.train.state",
  "jit_step": "jaxseg.train.step",
  "make_eval_step": "jaxseg.evaluation.evaluate",
  "make_loss": "jaxseg.train.loss",
  "make_optimizer": "jaxseg.train.optimizer",
  "make_schedule": "jaxseg.train.schedule",
  "make_step": "jaxseg.train.step",
  "parameter_groups": "jaxseg.train.optimizer",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
  if name in _LAZY:
    return getattr(importlib.import_module(_LAZY[name]), name)
  raise AttributeError(f"module 'jaxseg.train' has no attribute {name!r}")


def __dir__():
  return sorted(__all__)
