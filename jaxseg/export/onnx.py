"""ONNX through jax2onnx."""

import pathlib

import jax
from jax.extend.core import jaxpr_as_fun

from jaxseg import lazy
from jaxseg.errors import UserError
from jaxseg.export import forms
from jaxseg.export.program import Program

RUNNER = "run_onnx.py"
# Of ONNX Runtime on the web and on phones, too.
OPSET = 21


def write(program: Program, path: pathlib.Path) -> pathlib.Path:
  """Writes one .onnx file with its weights; its input is "image", its output "labels" or "probabilities".

  Raises:
    UserError: jax2onnx does not know the installed JAX.
  """
  jax2onnx = lazy.load("jax2onnx")
  spec = program.spec()
  # jax2onnx replaces functions of JAX and Flax while it traces, with fewer arguments and no open sizes in
  # places; of a traced program it sees primitives alone.
  with forms.exported("cuda", forms.ONNX):  # library convolutions, as runtimes have them
    traced = jax.make_jaxpr(program.call)(spec)
  try:
    jax2onnx.to_onnx(
      lambda image: jaxpr_as_fun(traced)(image)[0],
      [spec],
      model_name=program.net.arch,
      opset=OPSET,
      input_names=["image"],
      output_names=[program.output],
      return_mode="file",
      output_path=str(path),
      export_mode="web",  # one file
    )
  except AttributeError as error:
    if "module 'jax" not in str(error):
      raise
    raise UserError(
      f"jax2onnx does not know JAX {jax.__version__} ({error}), so nothing is written; export where JAX is"
      " older: pip install 'jax<0.11'"
    ) from error
  return path
