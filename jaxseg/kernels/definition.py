"""A fast function beside the plain one that defines it, and a way to trace the plain one.

Work is counted on the definition: a shifted depthwise convolution has no convolution in
it, and fused algebra does less than the paper's model.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain_definitions", default=False)


def defined_by(reference: Callable) -> Callable[[Callable], Callable]:
  """Marks a function as a faster form of `reference`, which takes the same arguments."""

  def mark(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args, **kwargs):
      return (reference if _plain.get() else function)(*args, **kwargs)

    return call

  return mark


@contextlib.contextmanager
def plain_definitions() -> Iterator[None]:
  """Functions marked by `defined_by` are traced as their definitions inside."""
  token = _plain.set(True)
  try:
    yield
  finally:
    _plain.reset(token)
