"""Top-k hits of an image classifier, as integers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from jaxseg.errors import UserError
from jaxseg.types import AnyArray


def topk_hits(
  logits: Float[AnyArray, "b k"], labels: Integer[AnyArray, "b"], *, top: Sequence[int] = (1, 5)
) -> Int[Array, "_"]:
  """How many images count, then how many of them have their label among the `top` largest logits.

  int32, `1 + len(top)`; add batches in int64 on the host. An image counts when its label is a
  class: fill up a batch with -1. Of equal logits the class with the smaller number comes first,
  as in `argmax`; an image whose own logit is not finite is never a hit.

  Raises:
    UserError: a `top` that is less than 1.
  """
  if not top or min(top) < 1:
    raise UserError(f"top is {tuple(top)}; expected numbers of classes, each at least 1, such as (1, 5)")
  logits, labels = jnp.asarray(logits), jnp.asarray(labels).astype(jnp.int32)
  counted = (labels >= 0) & (labels < logits.shape[-1])
  index = jnp.where(counted, labels, 0)[:, None]
  own = jnp.take_along_axis(logits, index, axis=-1)
  earlier = jnp.arange(logits.shape[-1]) < index
  rank = jnp.sum((logits > own) | ((logits == own) & earlier), axis=-1)
  found = counted & jnp.isfinite(own[:, 0])
  hits = [jnp.sum(found & (rank < k)) for k in top]
  return jnp.stack([jnp.sum(counted), *hits]).astype(jnp.int32)
