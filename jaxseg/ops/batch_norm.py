"""Training-mode BatchNorm with its activation, as one operation with a derivative of its own.

Automatic differentiation of the plain form keeps several arrays as large as the
input for each layer (centred input, normalised input, sign mask) and walks memory
once for each. Here only the input is kept and the rest is computed again: one pass
of reductions and one elementwise pass, each reading the input and the gradient once.

The mean and the variance are two passes on a CPU. On accelerators, where reading the input again is the
cost, both come from one pass over the input minus the running mean: near the batch's mean, so that the
square of what is left loses nothing that float32 has.

Of a narrow map a TPU can take neighbouring columns side by side in the lanes (`ops.packed_conv`): the sums
are then of every such column's channels, and folded.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxseg.ops.definition import PLATFORMS, by_platform, defined_by
from jaxseg.ops.lanes import columns_side_by_side, side_by_side
from jaxseg.types import AnyArray

Form = Literal["two_pass", "one_pass", "packed"]
Result = tuple[Float[Array, "*b c"], Float[Array, " c"], Float[Array, " c"]]


def batch_norm_act_reference(
  x: Float[Array, "*b c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  slope: Float[Array, " c"] | None,
  *,
  epsilon: float,
  shift: Float[Array, " c"] | None = None,
  packed: bool = False,
) -> Result:
  """The definition: (activated output, batch mean, biased batch variance).

  `slope` multiplies negative values (PReLU; zeros are ReLU); None is no activation.
  Statistics are float32 and two-pass. `shift` and `packed` have no effect here.
  """
  del shift, packed
  axes = tuple(range(x.ndim - 1))
  wide = x.astype(jnp.float32)
  mean = wide.mean(axes)
  var = jnp.square(wide - mean).mean(axes)
  z = (wide - mean) * (scale * lax.rsqrt(var + epsilon)) + bias
  y = z if slope is None else jnp.where(z > 0, z, slope * z)
  return y.astype(x.dtype), lax.stop_gradient(mean), lax.stop_gradient(var)


@defined_by(batch_norm_act_reference)
def batch_norm_act(
  x: Float[Array, "*b c"],
  scale: Float[Array, " c"],
  bias: Float[Array, " c"],
  slope: Float[Array, " c"] | None,
  *,
  epsilon: float,
  shift: Float[Array, " c"] | None = None,
  packed: bool = False,
) -> Result:
  """Equal to `batch_norm_act_reference`; mean and variance carry no gradient (running statistics).

  Args:
    x: the input.
    scale: of the normalised input.
    bias: see `scale`.
    slope: of negative results; None is no activation.
    epsilon: added to the variance.
    shift: an estimate of the mean, for the one-pass form: the running mean. None takes zeros. It has no
      effect on the result but its rounding, and no gradient.
    packed: on TPU with columns of a narrow map side by side, as its neighbours take and give it.
  """
  return _operation(x, scale, bias, slope, _shift(x, shift), epsilon, None, packed)


def batch_norm_stored(
  x: Float[Array, "*b c"],
  scale: Float[AnyArray, " c"],
  bias: Float[AnyArray, " c"],
  slope: Float[AnyArray, " c"] | None,
  mean: Float[AnyArray, " c"],
  var: Float[AnyArray, " c"],
  *,
  epsilon: float,
  packed: bool = False,
) -> Float[Array, "*b c"]:
  """By stored statistics, as in evaluation; the arguments are those of `batch_norm_act`."""

  def run(x, scale, bias, slope, mean, var):
    weight = scale * lax.rsqrt(var + epsilon)
    y = x * _spread(weight, x) + _spread(bias - mean * weight, x)
    return ((y if slope is None else jnp.where(y > 0, y, _spread(slope, x) * y)).astype(x.dtype),)

  return (_packed_on_tpu(run, run) if packed else run)(x, scale, bias, slope, mean, var)[0]


def batch_norm_act_as(form: Form, x, scale, bias, slope, *, epsilon: float, shift=None) -> Result:
  """One form on any platform, with its own derivative."""
  return _operation(x, scale, bias, slope, _shift(x, shift), epsilon, form, False)


def _shift(x, shift):
  return lax.stop_gradient(jnp.zeros(x.shape[-1], jnp.float32) if shift is None else shift)


def _sum(x, c: int):
  """Of each channel, over everything else; of packed columns, over these too."""
  total = x.sum(tuple(range(x.ndim - 1)))
  return total if x.shape[-1] == c else total.reshape(-1, c).sum(0)


def _spread(per_channel, x):
  """Numbers of the channels, for each of the columns that lie side by side."""
  n = x.shape[-1] // per_channel.shape[-1]
  return per_channel if n == 1 else jnp.tile(per_channel, n)


def _two_pass(x, shift):
  """(mean, biased variance), each a pass over x."""
  c, wide = shift.shape[-1], x.astype(jnp.float32)
  mean = _sum(wide, c) / (x.size // c)
  return mean, _sum(jnp.square(wide - _spread(mean, x)), c) / (x.size // c)


def _one_pass(x, shift):
  """(mean, biased variance) by one pass over x − shift."""
  c, count = shift.shape[-1], x.size // shift.shape[-1]
  rest = x.astype(jnp.float32) - _spread(shift, x)
  first, second = _sum(rest, c) / count, _sum(jnp.square(rest), c) / count
  return first + shift, jnp.maximum(second - jnp.square(first), 0)


def _packed(function):
  """`function` of maps whose columns lie side by side where they fill the lanes; the others as they are."""

  def run(x, *rest):
    n = columns_side_by_side(*x.shape[2:]) if x.ndim == 4 else 1
    pack = lambda y: side_by_side(y, n) if y is not None and y.shape == x.shape else y  # noqa: E731
    first, *others = function(pack(x), *map(pack, rest))
    return first.reshape(x.shape), *others

  return run


def _packed_on_tpu(plain, function):
  """`function` so on TPU, `plain` elsewhere."""
  choice = {platform: "packed" if platform == "tpu" else "plain" for platform in PLATFORMS}
  return by_platform(choice, {"packed": _packed(function), "plain": plain})


def _forward(statistics, epsilon, x, scale, bias, slope, shift):
  mean, var = statistics(x, shift)
  weight = scale * lax.rsqrt(var + epsilon)
  z = (x.astype(jnp.float32) - _spread(mean, x)) * _spread(weight, x) + _spread(bias, x)
  y = z if slope is None else jnp.where(z > 0, z, _spread(slope, x) * z)
  return y.astype(x.dtype), mean, var


def _backward(statistics, epsilon, x, dy, mean, var, scale, bias, slope):
  del statistics
  c, count, rstd = scale.shape[-1], x.size // scale.shape[-1], lax.rsqrt(var + epsilon)
  dy = dy.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - _spread(mean, x)) * _spread(rstd, x)
  if slope is None:
    dz, dslope = dy, None
  else:
    z = normal * _spread(scale, x) + _spread(bias, x)
    dz = jnp.where(z > 0, dy, _spread(slope, x) * dy)
    dslope = _sum(dy * jnp.minimum(z, 0), c)
  dbias, dscale = _sum(dz, c), _sum(dz * normal, c)
  rest = dz - _spread(dbias / count, x) - normal * _spread(dscale / count, x)
  return (_spread(scale * rstd, x) * rest).astype(x.dtype), dscale, dbias, dslope


# The statistics of each form.
FORMS: dict[Form, Callable] = {"two_pass": _two_pass, "one_pass": _one_pass, "packed": _one_pass}
# The table: platform → form, whatever the shape; a TPU takes "packed" where it is asked for. The v5e
# compiler's cycles for three in a row at 64²×128: 1.76 M in two passes, 1.40 M in one.
CHOICE: dict[str, Form] = {"cpu": "two_pass", "tpu": "one_pass", "cuda": "one_pass", "rocm": "one_pass"}


def _run(which: int, epsilon, form: Form | None, packed: bool) -> Callable:
  """The value of one form, 0, or its gradients, 1; of the platform's if `form` is None."""
  function = (_forward, _backward)[which]
  if form is not None:
    found = partial(function, FORMS[form], epsilon)
    return _packed(found) if form == "packed" else found
  # By platform the statistics alone differ, so that the rest is traced once.
  plain = partial(function, by_platform(CHOICE, FORMS), epsilon)
  return _packed_on_tpu(plain, partial(function, _one_pass, epsilon)) if packed else plain


def _fwd(x, scale, bias, slope, shift, epsilon, form, packed):
  y, mean, var = _run(0, epsilon, form, packed)(x, scale, bias, slope, shift)
  return (y, mean, var), (x, mean, var, scale, bias, slope)


def _bwd(epsilon, form, packed, kept, gradients):
  x, *rest = kept
  found = _run(1, epsilon, form, packed)(x, gradients[0], *rest)
  return *found, jnp.zeros_like(rest[0])


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _operation(x, scale, bias, slope, shift, epsilon, form, packed):
  return _fwd(x, scale, bias, slope, shift, epsilon, form, packed)[0]


_operation.defvjp(_fwd, _bwd)
