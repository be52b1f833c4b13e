"""Encoders: image → Features.

A new one is one file and one line of `ENCODERS`, a `functools.partial` of its class. Tests and docs want a
few lines more (CONTRIBUTING.md).
"""

from functools import partial

from jaxseg.encoders import cgnet, mit, mobilenet, mscan, pixelwise, resnet, vgg, xception

ENCODERS = {
  "cgnet_m3n21_encoder": cgnet.cgnet_m3n21,
  "pixelwise": partial(pixelwise.Pixelwise),
  "mscan_tiny": mscan.mscan_tiny,
  "mscan_small": mscan.mscan_small,
  "mscan_base": mscan.mscan_base,
  "mscan_large": mscan.mscan_large,
  "mit_b0": mit.mit_b0,
  "mit_b1": mit.mit_b1,
  "mit_b2": mit.mit_b2,
  "mit_b3": mit.mit_b3,
  "mit_b4": mit.mit_b4,
  "mit_b5": mit.mit_b5,
  "vgg16": vgg.vgg16,
  "resnet50": resnet.resnet50,
  "resnet101": resnet.resnet101,
  "xception65": xception.xception65,
  "mobilenetv2": mobilenet.mobilenetv2,
}
