"""Cross entropy with soft labels, for images that were mixed with one another (mixup, cutmix).

The loss that timm calls SoftTargetCrossEntropy, with which DeiT (https://arxiv.org/abs/2012.12877)
was trained. Its targets are no class ids, so it is not among the `LOSSES` of segmentation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.types import AnyArray


def soft_cross_entropy(logits: Float[AnyArray, "*b k"], target: Float[AnyArray, "*b k"]) -> Float[Array, ""]:
  """Mean over `*b` of −Σ target·log softmax(logits), in nats and float32.

  Args:
    logits: unnormalised scores, any leading axes.
    target: share of each class; rows that sum to 1 are a distribution, a row of zeros counts as 0.
  """
  logits = jnp.asarray(logits).astype(jnp.float32)
  target = jnp.asarray(target).astype(jnp.float32)
  return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))
