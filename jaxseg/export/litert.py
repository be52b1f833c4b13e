"""LiteRT (.tflite): the StableHLO of `jax.export` through LiteRT's own converter."""

import pathlib

import jax
from jax import export

from jaxseg import lazy
from jaxseg.errors import UserError, printable
from jaxseg.export import forms
from jaxseg.export.program import Program

RUNNER = "run_litert.py"


def write(program: Program, path: pathlib.Path) -> pathlib.Path:
  """Writes one .tflite file; its signature takes "image" and gives "labels" or "probabilities".

  Raises:
    UserError: the converter does not know an operation of the model.
  """
  converter = lazy.load("litert_converter.converter_api_ext")
  ir, passes = lazy.load("litert_converter.mlir.ir"), lazy.load("litert_converter.mlir.passmanager")
  with forms.exported("cuda", forms.LITERT):  # library convolutions, as the runtime has them
    text = export.export(jax.jit(program.call), platforms=("cpu",))(program.spec()).mlir_module()
  context = ir.Context()
  converter.prepare_mlir_context(context)
  with context:
    module = ir.Module.parse(text)
    names = dict(input_names=["image"], output_names=[program.output])
    converter.set_signature(module.operation, signature_name="serving_default", **names)
    module = converter.merge_modules([module])
    try:
      converter.run_convert_to_tfl_passes(module, passes.PassManager(), converter.ConvertToTFLConfig())
    except ValueError as error:
      reason = printable(str(error).split("\n", 1)[0][:300])
      raise UserError(
        f"LiteRT's converter does not take {program.net.arch} ({reason}), so nothing is kept; choose another"
        " format"
      ) from error
    path.write_bytes(converter.export_flatbuffer_to_bytes(module.operation))
  return path
