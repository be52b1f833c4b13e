"""What the losses of a softmax, and a label map, need of upsampled logits: a few numbers a pixel.

`softmax_terms` are the functions for `ops.upsampled` from which cross entropy with class weights, label
smoothing, hard pixels and any average follow by arithmetic on single numbers. Their derivative reads the kept
logarithm of the normaliser, so that the second pass over the classes needs no sum.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from jaxseg.ops import resize as resize_ops
from jaxseg.ops import softmax_kernel, softmax_kernel_gpu, upsampled
from jaxseg.types import AnyArray


class Terms(NamedTuple):
  """The cross entropy of a pixel in parts: its loss is `log_normaliser - true_logit`.

  Attributes:
    log_normaliser: log Σ exp of the logits.
    true_logit: the label's; 0 where the label is no class.
    share: Σ share · log probability, for label smoothing; 0 without shares.
  """

  log_normaliser: Float[Array, "*b"]
  true_logit: Float[Array, "*b"]
  share: Float[Array, "*b"]


def upsampled_cross_entropy_reference(
  logits: Float[AnyArray, "b h w k"], labels: Integer[AnyArray, "b H W"], *, align_corners: bool = False
) -> Float[Array, "b H W"]:
  """The definition: the cross entropy of every pixel of the full-size map, in nats and float32."""
  logits = jnp.asarray(logits).astype(jnp.float32)
  logits = resize_ops.resize_reference(logits, labels.shape[1:], align_corners=align_corners)
  target = jnp.asarray(labels)[..., None] == jnp.arange(logits.shape[-1])
  return jax.nn.logsumexp(logits, -1) - jnp.sum(jnp.where(target, logits, 0.0), -1)


def upsampled_cross_entropy(
  logits: Float[AnyArray, "b h w k"],
  labels: Integer[AnyArray, "b H W"],
  *,
  align_corners: bool = False,
  rows: int | None = None,
) -> Float[Array, "b H W"]:
  """Equal to `upsampled_cross_entropy_reference`, without the full-size map.

  Args:
    logits: scores at a lower resolution.
    labels: class ids; any other id has a true logit of 0, for the caller to leave out.
    align_corners: corner rule of the resize.
    rows: of a strip; None chooses.
  """
  function, derivative = softmax_terms()
  (log_normaliser, true_logit, _), _ = upsampled.map_rows(
    function,
    logits,
    (jnp.asarray(labels).astype(jnp.int32),),
    align_corners=align_corners,
    derivative=derivative,
    kernels=softmax_kernels_for(jnp.shape(logits), jnp.shape(labels), align_corners=align_corners),
    rows=rows,
  )
  return log_normaliser - true_logit


def upsampled_argmax(
  logits: Float[AnyArray, "b h w k"],
  size: tuple[int, int],
  *,
  align_corners: bool = False,
  rows: int | None = None,
) -> Int[Array, "b H W"]:
  """The class of every pixel at `size`, int32: of equal logits the one with the smaller number."""
  logits = jnp.asarray(logits)
  marks = jnp.zeros((logits.shape[0], *size), jnp.int8)
  (labels,), _ = upsampled.map_rows(argmax, logits, (marks,), align_corners=align_corners, rows=rows)
  return labels


def argmax(logits: Float[Array, "*b k"], _: Array) -> tuple[tuple[Int[Array, "*b"]], tuple[()]]:
  """The function for `ops.upsampled` behind `upsampled_argmax`."""
  return (jnp.argmax(logits, axis=-1).astype(jnp.int32),), ()


@functools.cache
def softmax_terms(share: tuple[float, ...] | None = None) -> tuple[Callable, Callable]:
  """(function, derivative) for `ops.upsampled`: (logits, labels) → `Terms` as maps, no sums.

  Args:
    share: weight of each class in `Terms.share`; None for none.
  """
  return make_softmax_terms(None if share is None else np.asarray(share, np.float32))


def softmax_kernels_for(
  logits_shape: Sequence[int], labels_shape: Sequence[int], *, align_corners: bool
) -> dict[str, Callable]:
  """`softmax_terms()` of whole arrays as a kernel: platform → kernel, of those that take the shapes."""
  if len(labels_shape) != 3:
    return {}
  modules = {"tpu": softmax_kernel, "cuda": softmax_kernel_gpu}
  shapes = (logits_shape, labels_shape[1:])
  return {p: _KERNELS[p] for p, m in modules.items() if m.fits(*shapes, align_corners=align_corners)}


def _terms_by(kernel: Callable, logits, labels):
  log_normaliser, true_logit = kernel(logits, labels)
  return Terms(log_normaliser, true_logit, jnp.zeros_like(true_logit)), ()


# The same objects every time, so that what is compiled of them is found again.
_KERNELS = {
  "tpu": functools.partial(_terms_by, softmax_kernel.terms),
  "cuda": functools.partial(_terms_by, softmax_kernel_gpu.terms),
}


def make_softmax_terms(share: Float[AnyArray, "k"] | None) -> tuple[Callable, Callable]:
  """`softmax_terms` of an array, which may be traced where the function is called on the whole map."""

  def function(logits, labels):
    true_logit = jnp.sum(jnp.where(_target(logits, labels), logits, 0.0), axis=-1)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    shares = jnp.zeros_like(true_logit)
    if share is not None:
      shares = jnp.sum(share * (logits - log_normaliser[..., None]), axis=-1)
    return Terms(log_normaliser, true_logit, shares), ()

  def derivative(logits, labels, maps, sums, map_cotangents, sum_cotangents):
    del sums, sum_cotangents
    of_normaliser, of_true, of_share = (x[..., None] for x in map_cotangents)
    if share is not None:
      of_normaliser = of_normaliser - share.sum() * of_share
    gradient = of_normaliser * jnp.exp(logits - maps.log_normaliser[..., None])
    gradient = gradient + jnp.where(_target(logits, labels), of_true, 0.0)
    return gradient if share is None else gradient + of_share * share

  return function, derivative


def _target(logits, labels):
  # A comparison instead of a gather, whose derivative is a scatter, slow on XLA:CPU and TPU alike.
  return labels[..., None] == jnp.arange(logits.shape[-1])
