"""What is exported: uint8 images → labels or probabilities, and its arguments' shapes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, UInt8

from jaxseg.evaluation import decision
from jaxseg.evaluation.inference import label_map
from jaxseg.export import eight_bits, folding, forms
from jaxseg.hub import Net
from jaxseg.hub.segmenter import published_size
from jaxseg.layers.resize import resize_logits
from jaxseg.layers.stage import never_scan
from jaxseg.models import align_corners_of
from jaxseg.types import AnyArray

Output = Literal["labels", "probabilities"]
Weights = Literal["float32", "int8"]


@dataclasses.dataclass(frozen=True)
class Program:
  """A function of images, ready to be traced.

  Attributes:
    net: the model with its own weights.
    call: uint8 b h w c → labels int32 b h w, or probabilities float32 b h w k.
    reference: the same of the model as it is, compiled for each size.
    shape: (batch, rows, columns, channels); a name stands for an open size.
    output: what it gives.
  """

  net: Net
  call: Callable[[UInt8[AnyArray, "b h w c"]], Array]
  reference: Callable[[UInt8[AnyArray, "b h w c"]], Array]
  shape: tuple[int | str, ...]
  output: Output

  @property
  def symbolic(self) -> bool:
    """Whether a size is open."""
    return any(isinstance(n, str) for n in self.shape)

  def spec(self) -> jax.ShapeDtypeStruct:
    """The image as tracing wants it."""
    text = ", ".join(map(str, self.shape))
    bounds = {"batch": 1, "height": 32, "width": 32}
    constraints = [f"{name} >= {least}" for name, least in bounds.items() if name in self.shape]
    return jax.ShapeDtypeStruct(export.symbolic_shape(text, constraints=constraints), np.uint8)


def make(
  net: Net,
  *,
  size: tuple[int, int] | None,
  batch: int | None,
  output: Output,
  weights: Weights = "float32",
) -> Program:
  """The program of a model, its BatchNorms folded.

  Args:
    net: a segmentation model.
    size: rows and columns; None leaves them open.
    batch: None leaves it open.
    output: what it gives.
    weights: how the program holds kernels; of "int8", `net` is `eight_bits.with_int8_weights`.
  """
  variables, shifts = folding.fold(net.model, net.variables)
  held = eight_bits.rounded(variables) if weights == "int8" else variables

  def call(image):
    with never_scan(), folding.folded(shifts):
      return _run(net, eight_bits.restored(held), jnp.asarray(image), output)

  # Weights as arguments: as constants, XLA would fold them for minutes.
  compiled = jax.jit(lambda variables, image: _run(net, variables, image, output))

  def reference(image):
    return compiled(net.variables, image)

  rows, columns = ("height", "width") if size is None else size
  shape = ("batch" if batch is None else batch, rows, columns, net.preprocess.channels)
  return Program(net, call, reference, shape, output)


def _run(net: Net, variables: Mapping[str, Any], image: Array, output: Output) -> Array:
  size, corners = image.shape[1:3], align_corners_of(net.model)
  threshold = decision.threshold_of(net.model, 0.5)
  pixels = net.preprocess(published_size(image, net.preprocess))
  outputs = net.model.apply(variables, pixels, train=False)
  if output == "labels" and forms.by_strips():
    return label_map(outputs, size, align_corners=corners, threshold=threshold)
  logits = resize_logits(outputs["logits"], size, align_corners=corners)
  if output == "labels":
    return decision.labels_of_logits(logits, threshold)
  return decision.probabilities(logits, threshold)
