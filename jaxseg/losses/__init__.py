"""Losses: `(logits, labels, *, ignore_label, ...) -> scalar`, one function a file, float32."""

from jaxseg.losses.cross_entropy import cross_entropy

# Name in a config → function.
LOSSES = {
  "cross_entropy": cross_entropy,
}

__all__ = ["LOSSES", "cross_entropy"]
