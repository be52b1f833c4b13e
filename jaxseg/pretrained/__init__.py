"""Weight files of others: readers, key maps per family and layout, records of what was published.

A new layout is one `keymap.Layout`, in its family's file or in a new one, and one line of `LAYOUTS`. Tests
and docs want a few lines more (CONTRIBUTING.md).
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from jaxseg.catalog import suggestion
from jaxseg.errors import UserError
from jaxseg.pretrained import cgnet, deeplab, mobilenet, resnet, segformer, segnext, vgg
from jaxseg.pretrained.keymap import Layout

LAYOUTS = (
  cgnet.OFFICIAL,
  cgnet.MMSEG,
  segnext.OFFICIAL,
  segnext.MMSEG,
  segnext.OFFICIAL_BACKBONE,
  segnext.MMSEG_BACKBONE,
  segformer.NVLABS,
  segformer.MMSEG,
  segformer.HF,
  segformer.HF4,
  segformer.NVLABS_BACKBONE,
  segformer.MMSEG_BACKBONE,
  segformer.HF_BACKBONE,
  segformer.HF4_BACKBONE,
  deeplab.MMSEG,
  deeplab.TORCHVISION,
  deeplab.KAZUTO,
  deeplab.KAZUTO_SINGLE,
  mobilenet.MMSEG,
  mobilenet.TFLITE,
  resnet.TORCHVISION_BACKBONE,
  resnet.MMSEG_BACKBONE,
  vgg.TORCHVISION_VGG,
)


def layouts_of(arch: str) -> dict[str, Layout]:
  """Layout name → layout, of those that can hold the model `arch`."""
  return {layout.name: layout for layout in LAYOUTS if arch.startswith(layout.archs)}


def layout_of(arch: str, name: str) -> Layout:
  """The layout called `name` of `arch`'s family.

  Raises:
    UserError: the family has no such layout; the message lists those it has.
  """
  known = layouts_of(arch)
  if name not in known:
    raise UserError(f"{arch} has no layout {name!r}; known: {', '.join(known) or 'none'}")
  return known[name]


def published_names(params: Mapping[str, Any], layout: str) -> dict[str, str]:
  """Published name of each of our leaves, for recipes whose rules match published names.

  Args:
    params: the parameter tree (or a `batch_stats` tree); which family it is shows in its paths.
    layout: "mmseg", "official", ..., or with its family "cgnet/mmseg".

  Returns:
    path ("encoder/stage2/block0/local/kernel") → name; leaves without a place in the layout
    keep their own path.

  Raises:
    UserError: no layout of that name, or none that knows this tree.
  """
  chosen = [known for known in LAYOUTS if layout in (known.name, f"{known.family}/{known.name}")]
  if not chosen:
    names = sorted({known.name for known in LAYOUTS})
    raise UserError(f"there is no layout called {layout!r}; {suggestion(layout, names)}")
  paths = ["/".join(map(str, path)) for path in traverse_util.flatten_dict(params)]
  # A lone encoder's tree is the subtree that key maps know as encoder/.
  prefix = "" if any(path.startswith(("encoder/", "decoder/")) for path in paths) else "encoder/"
  named = [{path: known.part(prefix + path) for path in paths} for known in chosen]
  best = max(named, key=lambda parts: sum(part is not None for part in parts.values()))
  if not any(best.values()):
    raise UserError(f"no layout {layout!r} knows parameters such as {paths[0] if paths else '(none)'}")
  return {path: part.name if part else path for path, part in best.items()}
