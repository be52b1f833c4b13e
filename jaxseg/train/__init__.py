"""Training: the builders that `train.py` itself uses, resolved on first use (PEP 562)."""

from jaxseg import lazy

# Public name → the module that defines it.
_LAZY = {
  "TrainState": "jaxseg.train.step",
  "create_state": "jaxseg.train.step",
  "jit_step": "jaxseg.train.step",
  "make_eval_step": "jaxseg.evaluation.evaluate",
  "make_loss": "jaxseg.train.loss",
  "make_optimizer": "jaxseg.train.optimizer",
  "make_schedule": "jaxseg.train.optimizer",
  "make_step": "jaxseg.train.step",
  "parameter_groups": "jaxseg.train.optimizer",
}

__all__ = list(_LAZY)


def __getattr__(name: str):
  return lazy.attribute(__name__, _LAZY, name)


def __dir__():
  return sorted(__all__)
