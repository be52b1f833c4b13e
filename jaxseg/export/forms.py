"""Forms of operations for programs that leave JAX: no loops, no choice by platform, sizes may be open."""

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.layers import concat_conv, conv, pool, pyramid
from jaxseg.ops import atrous, attention, msca, patch_conv, stem_conv
from jaxseg.ops import resize as resize_ops
from jaxseg.ops.definition import traced_for
from jaxseg.types import Dim

_strips: contextvars.ContextVar[bool] = contextvars.ContextVar("by_strips", default=True)


@contextlib.contextmanager
def exported(platform: str | None = None, more: Mapping[Callable, Callable] | None = None) -> Iterator[None]:
  """Inside, models are traced in these forms.

  Args:
    platform: whose forms are taken where operations have several; None leaves the choice in the program.
    more: forms beside `FORMS`, of one format.
  """
  token = _strips.set(False)
  try:
    with traced_for(platform=platform, replacements={**FORMS, **(more or {})}):
      yield
  finally:
    _strips.reset(token)


def without_kernels() -> contextlib.AbstractContextManager[None]:
  """Inside, models are traced without kernels of one platform, which a program for several cannot hold."""
  plain = (msca.msca_reference, attention.attention_reference)
  return traced_for(replacements={definition: definition for definition in plain})


def by_strips() -> bool:
  """Whether logits are brought to the image's size by strips of rows: a loop, of a known size."""
  return _strips.get()


def resize(
  x: Float[Array, "*b h w c"], size: tuple[Dim, Dim], *, align_corners: bool = False
) -> Float[Array, "*b ho wo c"]:
  """`ops.resize.resize` by weighted pairs of neighbours, the definition, of sizes that may be open."""
  for axis in (-3, -2):
    if x.shape[axis] != size[axis + 3]:
      x = _interpolate(x, axis, size[axis + 3], align_corners=align_corners)
  return x


def _interpolate(x, axis: int, out_size: Dim, *, align_corners: bool):
  n = x.shape[axis]
  index = jnp.arange(out_size).astype(jnp.float32)
  if align_corners:
    source = index * (jnp.float32(n - 1) / jnp.maximum(jnp.float32(out_size - 1), 1))
  else:
    source = jnp.maximum((index + 0.5) * (jnp.float32(n) / jnp.float32(out_size)) - 0.5, 0)
  low = jnp.minimum(jnp.floor(source), jnp.float32(n - 1))
  high = jnp.minimum(low + 1, jnp.float32(n - 1)).astype(jnp.int32)
  weight = (source - low).reshape(-1, *[1] * (-1 - axis)).astype(x.dtype)
  low = low.astype(jnp.int32)
  return jnp.take(x, low, axis=axis) * (1 - weight) + jnp.take(x, high, axis=axis) * weight


def resize_sum(maps, size: tuple[Dim, Dim], *, align_corners: bool = False):
  """The sum of resized maps."""
  return functools.reduce(operator.add, (resize(x, size, align_corners=align_corners) for x in maps))


def join(levels, kernel, size: tuple[Dim, Dim], *, projections=None, align_corners: bool = False):
  """`layers.concat_conv.concat_conv`, each level at its own resolution whichever that is."""
  parts, first = [], 0
  for i, x in enumerate(levels):
    width = x.shape[-1] if projections is None else projections[i][0].shape[-1]
    part = kernel[0, 0, first : first + width]
    first += width
    if projections is None:
      parts.append(x @ part)
    else:
      w, b = projections[i]
      parts.append(x @ (w @ part) + b @ part)
  return resize_sum(parts, size, align_corners=align_corners)


def join_pooled(pooled, branches, pooled_kernel, kernel):
  """`layers.pyramid.join_conv`, the image-level vector repeated where the kernel is larger than 1×1."""
  if kernel.shape[0] > 1:
    return pyramid.join_conv_reference(pooled, branches, pooled_kernel, kernel)
  y = conv.pointwise_conv(jnp.concatenate(branches, -1), kernel, (1, 1))
  return y if pooled is None else y + conv.pointwise_conv(pooled, pooled_kernel, (1, 1))


def attend(query, key, value):
  """`ops.attention.attention_reference` by products and one softmax."""
  scores = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
  return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores, axis=-1), value)


def window_max(x, *, size: int, stride: int, padding):
  """`layers.pool.window_max_reference` by gathers, since jax2onnx makes an unusual MaxPool of its window."""
  for axis, (before, after) in zip((1, 2), padding, strict=True):
    n = x.shape[axis]
    first = jnp.arange((n + before + after - size) // stride + 1) * stride - before
    # A window that reaches over the edge sees the edge twice.
    parts = (jnp.take(x, jnp.clip(first + i, 0, n - 1), axis=axis) for i in range(size))
    x = functools.reduce(jnp.maximum, parts)
  return x


# The definition that `defined_by` names → the form.
FORMS = {
  resize_ops.resize_reference: resize,
  resize_ops.resize_sum_reference: resize_sum,
  concat_conv.concat_conv_reference: join,
  pyramid.join_conv_reference: join_pooled,
  attention.attention_reference: attend,
  atrous.atrous_conv_reference: atrous.atrous_conv_reference,
  patch_conv.patch_conv_reference: patch_conv.patch_conv_reference,
  stem_conv.stem_conv_reference: stem_conv.stem_conv_reference,
}
ONNX = {pool.window_max_reference: window_max}
# LiteRT's converter gives a product of four axes another rank than its own checks expect.
LITERT = {conv.pointwise_conv_reference: conv.pointwise_conv_reference}
