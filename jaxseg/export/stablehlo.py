"""StableHLO through `jax.export`: versioned, for every platform, loaded by JAX alone."""

import pathlib

import jax
from jax import export

from jaxseg import lazy
from jaxseg.export import forms
from jaxseg.export.program import Program

RUNNER = "run_stablehlo.py"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(program: Program, path: pathlib.Path) -> pathlib.Path:
  """Writes the serialised program; `jax.export.deserialize(bytes).call(image)` runs it."""
  lazy.load("flatbuffers")  # of which JAX's own sentence names no extra of jaxseg
  with forms.exported() if program.symbolic else forms.without_kernels():
    exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(program.spec())
  path.write_bytes(exported.serialize())
  return path
