"""Which encoder and decoders a model is made of; needs the core only."""

from collections.abc import Mapping
from typing import Any

from jaxseg import models
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS

PARTS = ("encoder", "decoder", "aux_decoder")


def parts_of(arch: str) -> list[tuple[str, Any, Mapping[str, Any]]]:
  """(key in the config, catalog entry, the system's own fields) of a system's parts, offered ones too."""
  if arch in ENCODERS:
    return [("encoder", ENCODERS[arch], {})]
  system = models.SYSTEMS[arch]
  parts = [
    ("encoder", ENCODERS[system.encoder], system.encoder_fields),
    ("decoder", DECODERS[system.decoder], system.decoder_fields),
  ]
  aux = system.aux_offered
  if aux is not None:
    parts.append(("aux_decoder", DECODERS[aux], system.aux_decoder_fields))
  return parts
