"""What a net knows beside its arrays, and how: argument, file, record, or only assumed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg import classes as datasets
from jaxseg.pretrained import published, records
from jaxseg.pretrained.keymap import Detected, Layout
from jaxseg.pretrained.schema import preprocess_of
from jaxseg.pretrained.weights import Weights
from jaxseg.types import Preprocess


@dataclasses.dataclass(frozen=True)
class Facts:
  """See `hub.Net`, whose fields these are."""

  preprocess: Preprocess
  classes: tuple[str, ...]
  palette: np.ndarray
  licence: str | None
  assumed: dict[str, str]
  lineage: dict[str, str]


def gather(
  weights: Weights,
  layout: Layout | None,
  num_classes: int | None,
  preprocess: Preprocess | Mapping[str, Any] | None,
) -> Facts:
  """The facts of a file, each from the surest source that has it.

  Args:
    weights: the file, with its own metadata.
    layout: of the file; None for our own.
    num_classes: of the model; None for one without a classifier.
    preprocess: what the user said.

  Raises:
    UserError: `preprocess` has unknown fields.
  """
  known_range = None
  if isinstance(preprocess, Mapping) and set(preprocess) == {"value_range"}:  # no statistics: these stay
    known_range, preprocess = preprocess_of(preprocess).value_range, None
  # Who gives the statistics says what the file is: its name is no claim any more.
  record = published.find(weights.path, strict=preprocess is None) if layout is not None else None
  default = layout.record(num_classes) if layout is not None else records.Record(Preprocess(), None, "", "")
  where = f"the default of {layout.family}/{layout.name}" if layout is not None else "the library's default"
  meta, assumed = weights.meta, {}

  if preprocess is not None:
    chosen = preprocess_of(preprocess)
  elif (chosen := meta.preprocess or (record and record.preprocess)) is None:
    chosen = default.preprocess
    assumed["preprocess"] = f"mean {chosen.mean}, std {chosen.std}: {where}"
  if known_range is not None:
    chosen = dataclasses.replace(chosen, value_range=known_range)
  licence = meta.licence or (record.licence if record else None)
  if licence is None and default.licence:
    licence = default.licence
    assumed["licence"] = f"{licence}: {where}"

  names = meta.classes if meta.classes and len(meta.classes) == num_classes else None
  palette = meta.palette if meta.palette is not None and len(meta.palette) == num_classes else None
  # A published file's name on a model of other classes (trained further by somebody) names none.
  sure = record is not None and record.dataset is not None and _count(record.dataset) == num_classes
  dataset = record.dataset if sure else default.dataset
  known = datasets.dataset(dataset) if dataset else None
  if names is None:
    names = known.names if known else tuple(f"class {i}" for i in range(num_classes or 0))
    if num_classes and not sure:
      assumed["classes"] = f"{num_classes} classes: " + (dataset or "numbered, nothing names them")
  if palette is None:
    palette = known.palette if known and known.names == names else datasets.voc_colors(len(names))
  # What was assumed when the file was made of another is no surer now.
  before = dict(meta.assumed or {})
  if preprocess is not None:
    before.pop("preprocess", None)
  assumed = before | assumed
  lineage = dict(meta.lineage or {})
  if layout is not None and not lineage:
    lineage = {"weights": weights.path.name, "layout": f"{layout.family}/{layout.name}"}
    lineage |= {"source": (record or default).source} if record or default.source else {}
    lineage |= {"data": record.dataset} if sure else {}
  return Facts(chosen, names, palette, licence, assumed, lineage)


def _count(dataset: str) -> int:
  return len(datasets.dataset(dataset).names)


def assumed_fields(
  model: Any, layout: Layout | None, told: Detected, given: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, str]:
  """The fields of the model that no tensor of the file shows and nobody gave, with their values in words.

  Args:
    model: as it was built.
    layout: of the file; None for our own, whose config tells everything.
    told: what the file told.
    given: part of the model → the fields that the user said.
  """
  assumed = {}
  for name in told.assumed if layout is not None else ():
    part, _, field = name.rpartition(".")
    owner = getattr(model, part, None) if part else model
    if hasattr(owner, field) and field not in (given.get(part) or {}):
      assumed[name] = f"{getattr(owner, field)}: the default of {layout.family}/{layout.name}"
  return assumed
