"""What a weight file is of and what is wrong with it: parts of `from_pretrained` and `load_pretrained`."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import catalog, lazy
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.models import channels_of, create_model, list_models
from jaxseg.pretrained import LAYOUTS, keymap, tree
from jaxseg.pretrained.keymap import Detected, Differences, Layout
from jaxseg.pretrained.source import open_source, read_best
from jaxseg.pretrained.untrusted import reading, shown, some
from jaxseg.pretrained.weights import Weights


@dataclasses.dataclass(frozen=True)
class LoadReport:
  """What `load_pretrained` did, for a record of the run.

  Attributes:
    source: as it was given.
    arch: what the file holds.
    layout: the form its weights are in; "jaxseg" for our own.
    loaded, new: paths that were filled from the file, and paths that kept their initial value.
    licence: of the file's weights, as far as it is known: it holds for what is trained from them, too.
    lineage: what the file's weights are and come from, as `Net.lineage`.
  """

  source: str
  arch: str
  layout: str
  loaded: tuple[str, ...]
  new: tuple[str, ...]
  licence: str | None
  lineage: Mapping[str, str]

  def text(self) -> str:
    """One line for people: the file, what was loaded from it, what is new."""
    new = sorted({tree.below(path).rsplit("/", 1)[0] for path in self.new})
    return (
      f"{self.source} ({self.arch}, {self.layout}): {len(self.loaded)} arrays loaded;"
      f" new: {some(new, 4) or 'nothing'}; licence: {self.licence or 'not known'}"
    )

  def facts(self) -> dict[str, Any]:
    """`licence` and `lineage` of a model that is trained from here, as config.json holds them."""
    return {"licence": self.licence, "lineage": {**self.lineage, "trained from": self.source}}


@dataclasses.dataclass(frozen=True)
class Identified:
  """What a file is: its layout (None for our own names) and the model that it holds."""

  weights: Weights
  layout: Layout | None
  told: Detected


# Any size does for the shapes of the parameters; this one suits every encoder.
_TRACED = (1, 64, 64)


def open_weights(source: str | os.PathLike, *, revision: str | None = None) -> Weights:
  """The arrays that `source` names; of a workdir, those of `best/`, else of its latest checkpoint."""
  found = open_source(source, revision=revision)
  if isinstance(found, Weights):
    return found
  if best := read_best(found.path):
    return Weights(best.tensors, pathlib.Path(found.path), meta=found.meta)
  # Orbax comes with jaxseg[train].
  restore_variables = lazy.load("jaxseg.checkpoint").restore_variables
  arrays = tree.flat(restore_variables(found.checkpoints))
  return Weights(arrays, pathlib.Path(found.path), meta=found.meta)


def check_arch(arch: str | None) -> None:
  """Refuses a name that `create_model` does not know."""
  if arch is not None and arch not in list_models():
    raise UserError(f"there is no model called {arch!r}; {catalog.suggestion(arch, list_models())}")


def identify(found: Weights, arch: str | None) -> Identified:
  """What the file is of, by its names and shapes, its own config, or `arch`.

  Raises:
    UserError: names of no known layout, of another family than `arch`, or our own without a config.
  """
  with reading(found.path):
    if tree.is_ours(found):
      return Identified(found, None, _told_by_config(found, arch))
    layout = keymap.recognise(found, LAYOUTS)
    if arch is not None and not arch.startswith(layout.archs):
      raise UserError(f"{found.path} holds {layout.family} weights ({layout.name}), not those of {arch!r}")
    try:
      told = layout.detect({name: value.shape for name, value in found.tensors.items()})
    except UserError as error:
      raise UserError(f"{found.path}: {error}") from None
    said = dict(found.meta.encoder or {})
    assumed = tuple(name for name in told.assumed if name.removeprefix("encoder.") not in said)
    told = dataclasses.replace(told, encoder={**told.encoder, **said}, assumed=assumed)
    return Identified(found, layout, told)


def _told_by_config(found: Weights, arch: str | None) -> Detected:
  """What the config.json beside our own arrays says, or `arch` where there is none."""
  fields = found.meta.model
  if fields is None and arch is None:
    raise UserError(f"{found.path} has our own names but no config.json that says the model; give arch=")
  fields = _tuples(fields or {})
  name = fields.get("arch", arch)
  if name not in list_models():
    raise UserError(f"{found.path}: its config.json has the model '{shown(name)}', which is not known here")
  return Detected(
    name,
    fields.get("num_classes"),
    **{
      key: fields[key]
      for key in ("encoder", "decoder", "aux_decoder", "scales", "multi_label")
      if fields.get(key)
    },
  )


def build(found: Weights, arch: str, fields: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
  """The module and path → shape of its variables; what a file's own config says may make neither.

  Raises:
    UserError: the fields, the file's or the user's, are none that the module can have.
  """
  try:
    model = create_model(arch, **fields)
    return model, {path: leaf.shape for path, leaf in tree.flat(abstract_variables(model)).items()}
  except UserError as error:
    raise UserError(f"{found.path}: {error}" if found.meta.model else str(error)) from error
  except Exception as error:
    words = f"{type(error).__name__}: {shown(str(error), 120)}"
    raise UserError(
      f"{found.path}: {arch} cannot be made of the fields given and in the file ({words})"
    ) from error


def keep_hint(told: Detected, arch: str) -> str:
  """The pattern for `load_pretrained` that leaves out what a file of `told` most likely lacks for `arch`."""
  if told.arch not in ENCODERS:
    return "decoder/classifier/.*"
  return "head/.*" if arch in ENCODERS else "decoder/.*"


def check_classes(file: Identified, arch: str | None, num_classes: int | None) -> None:
  """Refuses a class count that the file does not have: its classifier would be of another shape."""
  found, told = file.weights, file.told
  silent = tree.is_ours(found) and found.meta.model is None  # only the user knows
  if num_classes is None or told.num_classes == num_classes or silent:
    return
  wanted = arch or told.arch
  has = f"{told.num_classes} classes, not {num_classes}" if told.num_classes else "no classifier"
  hint = keep_hint(told, wanted)
  raise UserError(
    f"{found.path} has {has}; for a new classifier, create_model({wanted!r}, num_classes={num_classes}) and"
    f" fill its variables with jaxseg.load_pretrained(source, variables, keep=({hint!r},))"
  )


def model_fields(told: Detected, arch: str, num_classes: int | None, encoder, decoder) -> dict[str, Any]:
  """`create_model`'s arguments: what the file tells, under what the user said."""
  alone = arch in ENCODERS and told.arch not in ENCODERS  # the encoder of a whole model's file
  fields = {
    "num_classes": None if alone else num_classes or told.num_classes,
    "encoder": {**told.encoder, **(encoder or {})},
    "decoder": {**({} if alone else told.decoder), **(decoder or {})},
    "aux_decoder": {} if alone else dict(told.aux_decoder),
    "scales": None if alone else told.scales,
    "multi_label": None if alone else told.multi_label or None,
  }
  return {key: _tuples(value) for key, value in fields.items() if value not in (None, {})}


@functools.lru_cache(maxsize=16)
def abstract_variables(model: nn.Module) -> dict[str, Any]:
  """The model's variables as shapes; nothing is computed."""
  init = functools.partial(model.init, train=False)
  image = jax.ShapeDtypeStruct((*_TRACED, channels_of(model)), jnp.float32)
  return jax.eval_shape(init, jax.random.key(0), image)


def drop_spare(
  differences: Differences, file: Identified, leaves: Mapping[str, Any], *, keep: Sequence[str] = ()
) -> None:
  """Takes out of the unexpected names those of the file's own model that `leaves` may well not want."""
  if not differences.unexpected:
    return
  if file.layout is None:
    own = tree.canonical(file.weights.tensors)
    names = {path: path for path in own.values()}
  else:
    whole = create_model(file.told.arch, **model_fields(file.told, file.told.arch, None, None, None))
    paths = tree.canonical(tree.flat(abstract_variables(whole))).values()
    names = {part.name: path for path in paths if (part := file.layout.part(path)) is not None}
  extra = tree.spare(names, tree.canonical(leaves).values(), keep)
  differences.unexpected = [name for name in differences.unexpected if name not in extra]


OTHER_CHANNELS = (
  "{path} is for images of 3 channels, the given variables for another number; adapt_channels=True"
  " (config.init_adapt_channels) brings its first layer to theirs"
)


def adapted_channels(
  file: Identified, wanted: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], Differences] | None:
  """`tree.fill` of `wanted` with the layers that see the image brought from three channels to theirs.

  Args:
    file: of three channels.
    wanted: path → shape.
    values: those that fit as they are.

  Returns:
    None where that is not all in which the shapes differ.
  """
  others = {p: s for p, s in wanted.items() if p not in values and p.endswith("/kernel") and len(s) == 4}
  of_three = {path: (*shape[:2], 3, shape[3]) for path, shape in others.items()}
  filled, differences, _ = tree.fill(file.weights, file.layout, {**wanted, **of_three})
  if differences.shapes or not others.keys() <= filled.keys():
    return None
  for path, shape in others.items():
    kernel, count = filled[path], shape[2]
    if count == 1:
      filled[path] = kernel.sum(2, keepdims=True)
    else:
      filled[path] = kernel[:, :, np.arange(count) % 3] * np.float32(3 / count)
  return filled, differences


def kept_paths(leaves: Mapping[str, Any], keep: Sequence[str]) -> set[str]:
  """The paths that `keep`'s patterns match; each has to match one."""
  if isinstance(keep, str):
    raise UserError(f"keep is the text {keep!r}, expected a sequence of patterns: keep=({keep!r},)")
  kept = set()
  for pattern in keep:
    try:
      hits = {path for path in leaves if re.fullmatch(pattern, tree.below(path))}
    except re.error as error:
      raise UserError(f"keep holds {pattern!r}, which is no regular expression ({error})") from None
    if not hits:
      some = sorted({tree.below(path).rsplit("/", 1)[0] for path in leaves})
      close = difflib.get_close_matches(pattern, some, n=1, cutoff=0.0)
      raise UserError(f"keep holds {pattern!r}, which matches no path; there is {close[0] + '/.*'!r}")
    kept |= hits
  return kept


def check_family(file: Identified, leaves: Mapping[str, Any]) -> None:
  """Refuses a published file whose layout has no name for anything of the encoder to fill."""
  found, layout = file.weights, file.layout
  inner = [path for path in tree.canonical(leaves).values() if path.startswith("encoder/")]
  if layout is None or not inner or any(layout.part(path) for path in inner):
    return
  raise UserError(
    f"{found.path} holds {layout.family} weights ({layout.name}), and the given variables are of another"
    f" family ({inner[0]}, ...); give a file of that family"
  )


def disagreement(
  found: Weights, differences: Differences, what: str, hint: str, *, told: Detected | None = None
) -> str:
  """The sentence about all differences between a file, which `told` what it is of, and `what`."""
  if told is not None and what != told.arch and what not in ENCODERS and told.arch not in ENCODERS:
    numbers = ", ".join(f"{len(names)} {word}" for word, names in differences.lists() if names)
    return f"{found.path} holds {told.arch}, not {what} (tensors: {numbers}); leave arch out"
  return (
    f"{found.path} and {what} disagree: {differences.text()};"
    f" parts to leave as they are go into load_pretrained(..., keep=({hint!r},))"
  )


def like(value: np.ndarray, leaf: Any) -> Any:
  """`value` with the element type of `leaf`, and where `leaf` is."""
  value = value.astype(leaf.dtype)
  if isinstance(leaf, np.ndarray):
    return value
  return jax.device_put(value, leaf.sharding if isinstance(leaf, jax.Array) else None)


def _tuples(value: Any) -> Any:
  """JSON's lists as the tuples that Linen fields need to be hashable."""
  if isinstance(value, Mapping):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
