"""The test-time rule that a config's `eval` part describes."""

import dataclasses

import ml_collections

from jaxseg.errors import UserError
from jaxseg.evaluation.rule import InferenceRule


def make_inference_rule(config_eval: ml_collections.ConfigDict) -> InferenceRule:
  """From the keys mode, crop_size, stride, resize, multiple, multiple_rule, scales and flip.

  A key that the config of an older run lacks has its default. With mode "whole" the windows' keys
  are not looked at, so that changing the mode alone is enough.

  Raises:
    UserError: a value, or a combination, that makes no sense.
  """
  names = [field.name for field in dataclasses.fields(InferenceRule)]
  values = {name: config_eval[name] for name in names if name in config_eval}
  if values.get("mode") == "whole":
    values.pop("crop_size", None)
    values.pop("stride", None)
  try:
    return InferenceRule(**values)
  except ValueError as error:
    raise UserError(f"config.eval: {error}") from None
