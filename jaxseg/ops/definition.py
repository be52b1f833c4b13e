"""A fast function beside the plain one that defines it, and a way to trace the plain one.

Work is counted on the definition: a shifted depthwise convolution has no convolution in
it, and fused algebra does less than the paper's model.

The definitions are also what forward-mode differentiation sees. A form with a derivative of its
own (`jax.custom_vjp`) has a reverse rule alone, and JAX refuses `jax.jvp`, `jax.jacfwd` and `jax.hessian` of
it; `with plain_definitions(): jax.jvp(...)` traces plain JAX, which has every derivative.
"""

import contextlib
import contextvars
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from jaxseg.errors import UserError

# What a table of forms has an entry for.
PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
_KERNELS = {"tpu": "JAXSEG_TPU_KERNELS", "cuda": "JAXSEG_GPU_KERNELS"}

_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain_definitions", default=False)
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_memory: contextvars.ContextVar[int | None] = contextvars.ContextVar("vector_memory", default=None)
_replacements: contextvars.ContextVar[Mapping[Callable, Callable]] = contextvars.ContextVar(
  "replacements",
  default={},  # noqa: B039, read only
)


def defined_by(reference: Callable) -> Callable[[Callable], Callable]:
  """Marks a function as a faster form of `reference`, which takes the same arguments."""

  def mark(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args, **kwargs):
      form = reference if _plain.get() else _replacements.get().get(reference, function)
      return form(*args, **kwargs)

    return call

  return mark


@contextlib.contextmanager
def plain_definitions() -> Iterator[None]:
  """Traces functions marked by `defined_by` as their definitions inside, for counting and for `jax.jvp`.

  A function that was jitted and called outside keeps its compiled form: jit it inside.
  """
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)


@contextlib.contextmanager
def traced_for(
  *, platform: str | None = None, replacements: Mapping[Callable, Callable] | None = None
) -> Iterator[None]:
  """Traces what `by_platform` chooses for one platform alone, and given forms of marked functions.

  For programs that leave JAX, whose formats have no choice by platform.

  Args:
    platform: of `PLATFORMS`; None leaves the choice in the program.
    replacements: the definition that `defined_by` names → what to call in place of its fast form.
  """
  tokens = _platform.set(platform), _replacements.set(dict(replacements or {}))
  try:
    yield
  finally:
    _platform.reset(tokens[0])
    _replacements.reset(tokens[1])


@contextlib.contextmanager
def for_chip(*, vector_memory: int | None) -> Iterator[None]:
  """Traces kernels for a TPU that is not there, of whose vector memory a core has so many bytes."""
  token = _memory.set(vector_memory)
  try:
    yield
  finally:
    _memory.reset(token)


def vector_memory() -> int:
  """Bytes of a TPU core's vector memory: by `for_chip`, else of the TPU at hand, else a v5e's."""
  if _memory.get() is not None:
    return _memory.get()
  return pltpu.get_tpu_info().vmem_capacity_bytes if jax.default_backend() == "tpu" else 128 << 20


def takes_kernels(platform: str) -> bool:
  """Whether a program of `platform` may hold TPUs' kernels: a TPU's, unless JAXSEG_TPU_KERNELS is "off".

  Read while a model is traced: set it before the program starts.

  Raises:
    UserError: it is neither "on" nor "off".
  """
  return _are_on("tpu") and platform == "tpu"


def takes_gpu_kernels(platform: str) -> bool:
  """The same of GPUs' kernels and JAXSEG_GPU_KERNELS: CUDA, where a GPU is at hand, as Triton asks for."""
  return _are_on("cuda") and platform == "cuda" and jax.default_backend() == "gpu"


def _are_on(platform: str) -> bool:
  value = os.environ.get(_KERNELS[platform], "on")
  if value not in ("on", "off"):
    raise UserError(f"the environment's {_KERNELS[platform]} is {value!r}; expected 'on' or 'off'")
  return value == "on"


def interpreted_on_cpu(kernel: Callable) -> Callable:
  """A kernel (*arrays, interpret=False) that is interpreted where its program runs on a CPU, slowly."""
  interpreted = functools.partial(kernel, interpret=True)
  if jax.default_backend() == "cpu":
    return interpreted
  return lambda *arrays: lax.platform_dependent(*arrays, cpu=interpreted, default=kernel)


def repeat(count: int, step: Callable[[Any, Any], Any], state: Any) -> Any:
  """`lax.fori_loop(0, count, step, state)`; written out under `traced_for`, for formats without loops."""
  if _platform.get() is None:
    return lax.fori_loop(0, count, step, state)
  for i in range(count):
    state = step(i, state)
  return state


def by_platform(choice: Mapping[str, str], forms: Mapping[str, Callable]) -> Callable:
  """A function whose form is the one of the platform that its program is lowered for.

  Args:
    choice: platform, of `PLATFORMS`, → name of the form.
    forms: name → function. Platforms that share a form share its trace.
  """
  if _platform.get() is not None:
    return forms[choice[_platform.get()]]
  default = choice["cuda"]
  others = {platform: forms[form] for platform, form in choice.items() if form != default}
  if not others:
    return forms[default]
  return lambda *args: lax.platform_dependent(*args, **others, default=forms[default])


def formed(forms: Mapping[str, tuple[Callable, Callable]], choose: Callable[..., str]) -> Callable:
  """An operation (x, kernel, window, form=None) → y of several forms, each with gradients of its own.

  `form` names one; None takes the one that is chosen for the platform.

  Args:
    forms: name → (value, gradients): (x, kernel, window=) → y, and (x, kernel, dy, window=) → (dx, dkernel).
    choose: (platform, x, kernel, window) → name of the form.
  """
  # Jitted, so that equal layers of a network are traced once, each of them in every platform's form.
  traced = {name: tuple(jax.jit(f, static_argnames="window") for f in pair) for name, pair in forms.items()}

  def run(which: int, x, kernel, window: Any, form: str | None) -> Callable:
    pairs = forms if _platform.get() is not None else traced
    if form is not None:
      return functools.partial(pairs[form][which], window=window)
    chosen = {platform: choose(platform, x, kernel, window) for platform in PLATFORMS}
    functions = {f: functools.partial(pairs[f][which], window=window) for f in chosen.values()}
    return by_platform(chosen, functions)

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
  def operation(x, kernel, window, form=None):
    return run(0, x, kernel, window, form)(x, kernel)

  operation.defvjp(
    lambda x, kernel, window, form: (operation(x, kernel, window, form), (x, kernel)),
    lambda window, form, kept, dy: run(1, *kept, window, form)(*kept, dy),
  )
  return operation
