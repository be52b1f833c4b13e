"""Losses: `(logits, labels, *, ignore_label, ...) -> scalar`, one function a file, float32.

Those of `LOSSES` take class weights, leave ignored pixels out of every sum, and are 0 with a zero
gradient when no pixel is labelled; `soft_cross_entropy` is for image classifiers and takes soft labels.
"""

from jaxseg.losses.binary_cross_entropy import binary_cross_entropy
from jaxseg.losses.cross_entropy import cross_entropy
from jaxseg.losses.dice import dice
from jaxseg.losses.focal import focal
from jaxseg.losses.lovasz import lovasz
from jaxseg.losses.ohem import ohem_cross_entropy
from jaxseg.losses.soft_cross_entropy import soft_cross_entropy

# Name in a config → function.
LOSSES = {
  "binary_cross_entropy": binary_cross_entropy,
  "cross_entropy": cross_entropy,
  "dice": dice,
  "focal": focal,
  "lovasz": lovasz,
  "ohem_cross_entropy": ohem_cross_entropy,
}

__all__ = [
  "LOSSES",
  "binary_cross_entropy",
  "cross_entropy",
  "dice",
  "focal",
  "lovasz",
  "ohem_cross_entropy",
  "soft_cross_entropy",
]
