"""`Net`: a model with its weights and everything needed to use it."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from jaxseg import __version__, catalog, lazy
from jaxseg.crf import Settings, mean_field
from jaxseg.errors import UserError
from jaxseg.evaluation.inference import label_map
from jaxseg.evaluation.predictor import Predictor
from jaxseg.evaluation.rule import MODES, InferenceRule
from jaxseg.hub.comparison import Comparison
from jaxseg.layers.resize import resize_logits
from jaxseg.models import align_corners_of
from jaxseg.pretrained import saved, tree
from jaxseg.pretrained.keymap import Stored
from jaxseg.types import AnyArray, Preprocess

# The layout of our own files.
OURS = "jaxseg"
# Of sliding windows, where nothing else is said: mmsegmentation's most common.
_CROP = (512, 512)
_CRF = ("kernels", "steps", "method")


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
  """A model with its weights and everything needed to use it.

  Attributes:
    model: the Linen module.
    variables: its collections, float32 arrays.
    preprocess: how it wants its image.
    classes: names in the order of the logits; () for a model without classes.
    palette: (k, 3) uint8 RGB.
    arch: the name `create_model` knows.
    fields: what was passed to it besides: num_classes, encoder, decoder, ...
    layout: the form the weights came in: "official", "mmseg", ..., "jaxseg" for our own.
    licence: of the weights, as far as it is known.
    lineage: what the weights are and come from: "weights" (the file), "source", "data", "trained from", ...
    unused: what the file carried and the model has no use for, name → (shape, dtype).
    assumed: what neither arguments nor file nor record told, name → the assumption in words.
    stored: name → (shape, dtype) of every tensor of the file.
  """

  model: nn.Module
  variables: Mapping[str, Any] = dataclasses.field(repr=False)
  preprocess: Preprocess
  classes: tuple[str, ...]
  palette: np.ndarray = dataclasses.field(repr=False)
  arch: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  layout: str = OURS
  licence: str | None = None
  lineage: Mapping[str, str] = dataclasses.field(default_factory=dict)
  unused: Mapping[str, Stored] = dataclasses.field(default_factory=dict, repr=False)
  assumed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  stored: Mapping[str, Stored] = dataclasses.field(default_factory=dict, repr=False)

  def predict(
    self,
    image: Any,
    *,
    mode: str = "whole",
    crop_size: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    resize: tuple[int, ...] = (),
    multiple: int = 0,
    multiple_rule: str = "pad",
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    crf: Mapping[str, Any] | Settings | None = None,
  ) -> Int[np.ndarray, "h w"]:
    """The class of every pixel, at the image's own size.

    Args:
      image: uint8 RGB, h w 3; or the path of an image file, or a PIL image.
      mode: "whole" runs the network once over the whole image; "slide" takes the mean of its
        logits over overlapping windows.
      crop_size: rows and columns of a window; 512 x 512 unless given.
      stride: between windows; two thirds of their size unless given.
      resize: (long, short) that the image is scaled to fit, its shape kept; () leaves it.
      multiple: what the sides of the network's input have to divide by; 0 for anything.
      multiple_rule: "pad" or "resize", how they are made to.
      scales: factors of the image's size, over which the softmax is averaged.
      flip: averages with the mirrored image, too.
      crf: refine the result by a fully-connected CRF: `jaxseg.crf.Settings()` for the papers', or
        `dict(kernels=..., steps=..., method=...)` as `jaxseg.crf.mean_field` takes them.

    Raises:
      UserError: an image of another kind, an unknown mode, windows, sizes or scales that make
        no sense, or a model without classes.
    """
    image = read_image(image)
    if mode not in MODES:
      raise UserError(f"mode is {mode!r}; {catalog.suggestion(mode, MODES)}")
    if not self.classes or not hasattr(self.model, "decoder"):
      raise UserError(f"{self.arch} without a segmentation head gives no label map; use model.apply")
    if mode == "slide":
      crop_size = crop_size or _CROP
      stride = stride or tuple(max(1, side * 2 // 3) for side in crop_size)
    rule = InferenceRule(
      mode=mode,
      crop_size=crop_size or (0, 0),
      stride=stride or (0, 0),
      resize=resize,
      multiple=multiple,
      multiple_rule=multiple_rule,
      scales=scales,
      flip=flip,
    )
    if crf is None:
      if not rule.plain:
        return self._by_rule(image, rule, "labels")
      return np.asarray(_labels(self.variables, image, model=self.model, preprocess=self.preprocess))
    if isinstance(crf, Settings):
      crf = dict(kernels=crf.kernels, steps=crf.steps, method=crf.method)
    if set(crf) - set(_CRF) or "kernels" not in crf:
      raise UserError(f"crf has the keys {sorted(crf)}, expected kernels and perhaps {', '.join(_CRF[1:])}")
    if rule.plain:
      unary = _unary(self.variables, image, model=self.model, preprocess=self.preprocess)
    else:
      unary = -self._by_rule(image, rule, "scores")
    refined = mean_field(unary, image, **crf)
    return np.asarray(jnp.argmax(refined, -1).astype(jnp.int32))

  def overlay(self, image: Any, label: AnyArray) -> UInt8[np.ndarray, "h w 3"]:
    """The image with half of each class's colour over it; the image alone where the label is no class.

    Args:
      image: as in `predict`.
      label: class of every pixel, h w, as `predict` gives it.

    Raises:
      UserError: image and label are not of the same size.
    """
    image, label = np.asarray(read_image(image)), np.asarray(label)
    if label.shape != image.shape[:2]:
      raise UserError(f"label has shape {label.shape}, expected the image's {image.shape[:2]}")
    labelled = (label >= 0) & (label < len(self.classes))
    colours = np.asarray(self.palette)[np.where(labelled, label, 0)]
    return np.where(labelled[..., None], (image.astype(np.uint16) + colours + 1) // 2, image).astype(np.uint8)

  def export(
    self,
    path: str | os.PathLike,
    *,
    format: str = "stablehlo",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    output: str = "labels",
  ) -> Comparison:
    """Writes a file that runs without jaxseg, after its own runtime ran it on three images.

    It takes uint8 RGB b h w 3 and gives int32 labels b h w, or float32 probabilities b h w k.

    Args:
      path: the file, or for "web" a folder.
      format: "stablehlo", "onnx", "litert", or "web" for a page that segments in the browser.
      size: rows and columns; None leaves batch, rows and columns open where the format can.
      batch: images at once; None is any number where `size` is None, and one where it is given.
      output: "labels" or "probabilities".

    Returns:
      how near the file's results are to this model's, and how fast it is.

    Raises:
      UserError: what cannot be exported so, a library that is not installed (`jaxseg[export]`), or a
        place that cannot be written.
    """
    export = lazy.load("jaxseg.export").export
    return export(self, path, format=format, size=size, batch=batch, output=output)

  def push_to_hub(self, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Uploads what `save_pretrained` writes to "org/name" on the Hugging Face hub, which is made if need be.

    Args:
      name: "org/name".
      private: of a new repository.
      revision: the branch to write to; the main one unless given.

    Returns:
      the address of the commit.

    Raises:
      UserError: no such name, no client (`jaxseg[hub]`), or the hub refuses (not logged in, no right).
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
      raise UserError(f"{name!r} is not the name of a repository on the hub, expected org/name")
    hub = lazy.load("huggingface_hub")
    with tempfile.TemporaryDirectory() as folder:
      self.save_pretrained(folder)
      try:
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, revision=revision))
      except Exception as error:  # the client's own kinds, httpx's and OSError's
        raise UserError(
          f"the Hugging Face hub did not take {name} ({type(error).__name__}); log in with `hf auth login`,"
          " and check the name and your right to write"
        ) from error

  def _by_rule(self, image: AnyArray, rule: InferenceRule, kind: str) -> np.ndarray:
    """The "labels" or "scores" that `Predictor` gives for one picture."""
    rows, columns = image.shape[:2]
    picture = np.asarray(published_size(image, self.preprocess))
    batch = {"image": picture[None], "size": np.array([[rows, columns]], np.int32)}
    predictor = _predictor(self.model, self.preprocess, rule)
    return np.asarray(getattr(predictor, kind)(self.variables, batch)[0, :rows, :columns])

  def save_pretrained(self, directory: str | os.PathLike) -> None:
    """Writes model.safetensors, config.json and a model card; `from_pretrained(directory)` reads them."""
    tensors = {path: np.asarray(leaf) for path, leaf in tree.flat(self.variables).items()}
    config = {
      "jaxseg_version": __version__,
      "model": {"arch": self.arch, **self.fields},
      "classes": list(self.classes),
      "palette": np.asarray(self.palette).tolist(),
      "preprocess": dataclasses.asdict(self.preprocess),
      "licence": self.licence,
      "lineage": dict(self.lineage),
      "layout": self.layout,
      "assumed": dict(self.assumed),
    }
    saved.write(pathlib.Path(directory), tensors, json.loads(json.dumps(config, default=_plain)))


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _labels(variables, image, *, model, preprocess):
  corners = align_corners_of(model)
  return label_map(_outputs(variables, image, model, preprocess), image.shape[:2], align_corners=corners)[0]


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _unary(variables, image, *, model, preprocess):
  logits = _outputs(variables, image, model, preprocess)["logits"]
  corners = align_corners_of(model)
  return -jax.nn.log_softmax(resize_logits(logits, image.shape[:2], align_corners=corners)[0])


@functools.lru_cache(maxsize=8)
def _predictor(model: nn.Module, preprocess: Preprocess, rule: InferenceRule) -> Predictor:
  """One for all calls, so that each size is compiled once."""
  return Predictor(model, rule=rule, preprocess=preprocess)


def _outputs(variables, image, model, preprocess):
  return model.apply(variables, preprocess(published_size(image, preprocess))[None], train=False)


def published_size(image: AnyArray, preprocess: Preprocess) -> AnyArray:
  """Pictures (*b h w 3, uint8) as the published pipeline resizes them, where it does."""
  if preprocess.size is not None and tuple(preprocess.size) != image.shape[-3:-1]:
    # The published pipelines resize the 8-bit picture with Pillow: antialiased, columns first,
    # and rounded to 8 bits after each axis.
    method = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}[preprocess.resize]
    rows, columns = preprocess.size
    for size in ((image.shape[-3], columns), (rows, columns)):
      shape = (*image.shape[:-3], *size, 3)
      resized = jax.image.resize(image.astype(jnp.float32), shape, method)
      image = jnp.clip(jnp.floor(resized + 0.5), 0, 255).astype(jnp.uint8)
  return image


def read_image(image: Any) -> AnyArray:
  """An image as `predict` wants it, from an array, the path of a file, or a PIL image.

  Raises:
    UserError: no image file, or an array of another kind.
  """
  if isinstance(image, str | os.PathLike):
    from PIL import Image, ImageOps

    try:
      with Image.open(image) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
      raise UserError(f"{os.fspath(image)} cannot be read as an image ({type(error).__name__})") from None
  if not hasattr(image, "dtype") and hasattr(image, "convert"):
    image = np.asarray(image.convert("RGB"))
  _check_picture(image)
  return image


def _check_picture(image: AnyArray) -> None:
  shape = tuple(image.shape)
  if image.ndim == 2 or (image.ndim == 3 and shape[-1] == 1):
    raise UserError(f"image has shape {shape}, a grey picture; repeat it to three channels: h w 3")
  if image.ndim == 4:
    raise UserError(f"image has shape {shape}, a batch; predict takes one picture h w 3: image[0]")
  if image.ndim != 3 or shape[-1] != 3:
    raise UserError(f"image has shape {shape}, expected RGB as height, width, 3")
  if image.dtype != np.uint8:
    raise UserError(
      f"image is {image.dtype}, expected uint8 RGB in 0..255; predict normalises it by itself"
      " (a float picture in 0..1 becomes one by `(image * 255).round().astype('uint8')`)"
    )


def _plain(value: Any) -> Any:
  """What JSON does not know of a module's fields: element types."""
  return np.dtype(value).name
