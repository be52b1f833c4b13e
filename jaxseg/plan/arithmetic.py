"""FLOPs of one instruction, from its shapes: dot products and convolutions, two for a multiply-add.

Taps that fall on padding or between the elements of a dilated input are not counted: compilers
write dot products, gradients and transposes as convolutions over mostly padding, and the count
must not depend on that. Elementwise arithmetic is not counted either.
"""

import functools
import math
import re

import numpy as np

from jaxseg.plan.hlo import Instruction, Shape

# Passes of a TPU's matrix unit for float32 operands at a precision; bfloat16 always takes one.
_PASSES = {"high": 3, "highest": 6}


def flops(instruction: Instruction, operands: list[tuple[Shape, ...]]) -> float:
  """FLOPs of a dot product, a convolution, or a library call that is one of them; 0 for everything else.

  Args:
    instruction: of a computation.
    operands: leaves of each operand.
  """
  match instruction.opcode:
    case "dot":
      return _dot(instruction, operands[0][0], instruction.attribute("lhs_contracting_dims"))
    case "convolution":
      return _convolution(instruction, operands[0][0], operands[1][0], instruction.shapes[0])
    case "custom-call":
      return _library_call(instruction, operands)
  return 0.0


def passes(instruction: Instruction, operands: list[tuple[Shape, ...]]) -> int:
  """How often a TPU's matrix unit goes over the operands: more than once for float32 in full precision."""
  if not operands or any(leaves and leaves[0].kind != "f32" for leaves in operands[:2]):
    return 1
  asked = re.findall(r"\w+", instruction.attribute("operand_precision"))
  return max((_PASSES.get(word, 1) for word in asked), default=1)


def _dot(instruction: Instruction, left: Shape, contracting: str) -> float:
  axes = [int(axis) for axis in re.findall(r"\d+", contracting)]
  return 2.0 * instruction.shapes[0].elements * math.prod(left.dims[axis] for axis in axes)


def _convolution(instruction: Instruction, left: Shape, right: Shape, out: Shape) -> float:
  lhs, rhs, result = re.split(r"_|->", instruction.attribute("dim_labels"))
  window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window").strip("{}")))
  rank = sum(label.isdigit() for label in result)

  def numbers(key: str, default: int) -> list[int]:
    return [int(n) for n in window[key].split("x")] if key in window else [default] * rank

  pads = [tuple(map(int, pair.split("_"))) for pair in window["pad"].split("x")] if "pad" in window else []
  pads = pads or [(0, 0)] * rank
  taps = 1
  for axis in range(rank):
    taps *= _taps(
      out.dims[result.index(str(axis))],
      left.dims[lhs.index(str(axis))],
      numbers("size", 1)[axis],
      numbers("stride", 1)[axis],
      pads[axis][0],
      numbers("lhs_dilate", 1)[axis],
      numbers("rhs_dilate", 1)[axis],
    )
  others = math.prod(out.dims[i] for i, label in enumerate(result) if not label.isdigit())
  # The kernel's input features are those of one group already.
  return 2.0 * taps * others * right.dims[rhs.index("i")]


@functools.lru_cache(maxsize=10_000)
def _taps(out: int, size: int, window: int, stride: int, pad: int, base: int, dilation: int) -> int:
  """Pairs of an output and a tap, along one axis, that meet an element of the input."""
  at = np.arange(out)[:, None] * stride + np.arange(window) * dilation - pad
  return int(np.sum((at >= 0) & (at < (size - 1) * base + 1) & (at % base == 0)))


def _library_call(instruction: Instruction, operands: list[tuple[Shape, ...]]) -> float:
  """A GPU's matrix products and convolutions are calls into cuBLAS and cuDNN; their shapes say the same."""
  target = instruction.attribute("custom_call_target").strip('"')
  if target.startswith("__cublas$"):
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    return _dot(instruction, operands[0][0], axes.group(1)) if axes else 0.0
  if target.startswith("__cudnn$conv"):
    _, rhs, _ = re.split(r"_|->", instruction.attribute("dim_labels"))
    # The labels and the window are the forward convolution's, whichever of its three arrays is computed.
    arrays = {
      "__cudnn$convBackwardInput": (operands[1][0], operands[0][0]),
      "__cudnn$convBackwardFilter": (instruction.shapes[0], operands[1][0]),
    }
    kernel, out = arrays.get(target, (operands[1][0], instruction.shapes[0]))
    return 2.0 * out.elements * kernel.elements / kernel.dims[rhs.index("o")]
  return 0.0
