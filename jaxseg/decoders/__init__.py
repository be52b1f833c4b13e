"""Decoders: Features → logits. A new one is one file and one line of `DECODERS`."""

from functools import partial

from jaxseg.decoders import fcn, light_ham, segformer

DECODERS = {
  "fcn": partial(fcn.FCN),
  "light_ham": partial(light_ham.LightHam),
  "all_mlp": partial(segformer.AllMLP),
}
