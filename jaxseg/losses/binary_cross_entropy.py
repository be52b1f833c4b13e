"""Sigmoid cross entropy: every class is a yes-or-no question at every pixel, all answers weigh the same."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Array, Float, Integer

from jaxseg.losses.focal import focal
from jaxseg.types import IGNORE_LABEL, AnyArray


def binary_cross_entropy(
  logits: Float[AnyArray, "*_ k"],
  labels: Integer[AnyArray, "*b"],
  *,
  ignore_label: int = IGNORE_LABEL,
  class_weights: Float[AnyArray, "k"] | Sequence[float] | None = None,
  normalize_by: Literal["valid", "all", "weights"] = "valid",
  multi_label: bool = False,
  align_corners: bool = False,
) -> Float[Array, ""]:
  """Mean over pixels and classes of `torch.nn.BCEWithLogitsLoss`, in nats; 0 when no pixel is labelled.

  Args:
    logits: unnormalised scores, any leading axes; or b h w k at another resolution than labels b H W, to
      which they are brought a strip of rows at a time.
    labels: class ids in [0, k), or, with `multi_label`, 0 and sums of the classes' bits (of one class: 0 and
      1; see `jaxseg.classes`); `ignore_label` is no label, any other id makes the loss NaN.
    class_weights: one factor a class, for its question.
    normalize_by: over labelled pixels, over all pixels, or over the class weights of what is summed.
    multi_label: a pixel may have several classes or none.
    align_corners: corner rule of the resize to the labels' resolution.

  Raises:
    UserError: as `focal`.
  """
  # Focal loss with nothing to focus on, whose yes and no weigh a half each.
  return 2.0 * focal(
    logits,
    labels,
    ignore_label=ignore_label,
    class_weights=class_weights,
    normalize_by=normalize_by,
    gamma=0.0,
    alpha=0.5,
    multi_label=multi_label,
    align_corners=align_corners,
  )
