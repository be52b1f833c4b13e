"""Decoders: Features → logits. A new one is one file and one line of `DECODERS`."""

from functools import partial

from jaxseg.decoders import aspp, deeplabv3plus, fcn, large_fov, light_ham, segformer

DECODERS = {
  "fcn": partial(fcn.FCN),
  "light_ham": partial(light_ham.LightHam),
  "all_mlp": partial(segformer.AllMLP),
  "large_fov": partial(large_fov.LargeFOV),
  "summed_aspp": partial(aspp.SummedASPP),
  "deeplabv3": partial(aspp.DeepLabV3),
  "deeplabv3plus": partial(deeplabv3plus.DeepLabV3Plus),
}
