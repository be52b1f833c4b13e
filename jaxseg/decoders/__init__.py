"""Decoders: Features → logits. A new one is one file and one line of `DECODERS`."""

from functools import partial

from jaxseg.decoders import fcn

DECODERS = {
  "fcn": partial(fcn.FCN),
}
