"""`Net`: a model with its weights and everything needed to use it."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxseg import __version__, catalog, lazy
from jaxseg.crf import Settings, mean_field
from jaxseg.data.source import DatasetInfo, as_rgb
from jaxseg.errors import UserError
from jaxseg.evaluation.decision import log_probabilities, threshold_of
from jaxseg.evaluation.inference import label_map
from jaxseg.evaluation.rule import MODES, InferenceRule
from jaxseg.hub.comparison import Comparison
from jaxseg.hub.reading import read_image
from jaxseg.hub.segmenter import Segmenter, published_size
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
    threshold: float = 0.5,
    crf: Mapping[str, Any] | Settings | None = None,
  ) -> Int[np.ndarray, "h w"]:
    """The class of every pixel, at the image's own size.

    Of a model of several classes a pixel (`net.model.multi_label`), the classes that reach `threshold`, a bit
    for each: of one class 0 and 1; `jaxseg.classes.members(label, k)` is a map for each.

    Args:
      image: uint8 RGB, h w 3 (or the channels that the model takes); or the path of an image file, or a PIL
        image. More than 8 bits are read by `net.preprocess.value_range`.
      mode: "whole" runs the network once over the whole image; "slide" takes the mean of its
        logits over overlapping windows.
      crop_size: rows and columns of a window; 512 x 512 unless given.
      stride: between windows; two thirds of their size unless given.
      resize: (long, short) that the image is scaled to fit, its shape kept; () leaves it.
      multiple: what the sides of the network's input have to divide by; 0 for anything.
      multiple_rule: "pad" or "resize", how they are made to.
      scales: factors of the image's size, over which the softmax is averaged.
      flip: averages with the mirrored image, too.
      threshold: probability from which on a pixel has a class, where it may have several.
      crf: refine the result by a fully-connected CRF: `jaxseg.crf.Settings()` for the papers', or
        `dict(kernels=..., steps=..., method=...)` as `jaxseg.crf.mean_field` takes them.

    Raises:
      UserError: an image of another kind, an unknown mode, windows, sizes or scales that make
        no sense, or a model without classes.
    """
    image = self._read(image)
    rule = self._rule(mode, crop_size, stride, resize, multiple, multiple_rule, scales, flip, threshold)
    crf = self._settings(crf)
    if crf is None:
      if not rule.plain:
        return self._segmenter(rule).labels([image])[0]
      how = dict(model=self.model, preprocess=self.preprocess, threshold=threshold)
      return np.asarray(_labels(self.variables, image, **how))
    return np.asarray(jnp.argmax(self._refined(image, rule, crf), -1).astype(jnp.int32))

  def probabilities(
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
  ) -> Float[np.ndarray, "h w k"]:
    """The probability of every class at every pixel, at the image's own size; float32, sums of 1.

    Of a model of several classes a pixel each class has a probability of its own. Arguments and errors are
    those of `predict`.
    """
    image = self._read(image)
    rule = self._rule(mode, crop_size, stride, resize, multiple, multiple_rule, scales, flip)
    crf = self._settings(crf)
    if crf is None:
      return np.exp(-np.asarray(self._unary(image, rule)))
    return np.asarray(self._refined(image, rule, crf))

  def predict_batch(
    self,
    images: Sequence[Any],
    *,
    batch_size: int = 8,
    exact: bool = True,
    mode: str = "whole",
    crop_size: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    resize: tuple[int, ...] = (),
    multiple: int = 0,
    multiple_rule: str = "pad",
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    threshold: float = 0.5,
    crf: Mapping[str, Any] | Settings | None = None,
  ) -> list[Int[np.ndarray, "_ _"]]:
    """The label maps of many images of any sizes, each at its own, in the order of the images.

    Images whose network input has the same size go through the network together.

    Args:
      images: each as in `predict`.
      batch_size: how many go through the network at once.
      exact: False resizes images of more than eight sizes to eight for the network, because each size is
        compiled; labels come back at each image's own size and differ a little.
      mode: this and the following as in `predict`.

    Raises:
      UserError: as `predict`; the message names the image by its number.
    """
    if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
      images = list(images)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f"batch_size is {batch_size!r}; expected a whole number of images, 1 or more")
    arrays = []
    for i, image in enumerate(images):
      try:
        arrays.append(np.asarray(self._read(image)))
      except UserError as error:
        raise UserError(f"image {i}: {error}") from None
    rule = self._rule(mode, crop_size, stride, resize, multiple, multiple_rule, scales, flip, threshold)
    segmenter = self._segmenter(rule, self._settings(crf))
    if not exact:
      segmenter = segmenter.for_sizes([array.shape[:2] for array in arrays])
    labels: list[Any] = [None] * len(arrays)
    for numbers, rows in segmenter.batches([array.shape[:2] for array in arrays], batch_size=batch_size):
      found = segmenter.labels([arrays[number] for number in numbers], count=rows)
      for number, label in zip(numbers, found, strict=True):
        labels[number] = label
    return labels

  def _read(self, image: Any) -> AnyArray:
    return read_image(image, preprocess=self.preprocess)

  @property
  def info(self) -> DatasetInfo:
    """Classes and palette, and whether a pixel may have several of them."""
    palette, several = np.asarray(self.palette, np.uint8), getattr(self.model, "multi_label", False)
    return DatasetInfo(self.arch, tuple(self.classes), palette, several)

  def overlay(self, image: Any, label: AnyArray) -> UInt8[np.ndarray, "h w 3"]:
    """The image with half of each class's colour over it; the image alone where the label is no class.

    Args:
      image: as in `predict`.
      label: class of every pixel, h w, as `predict` gives it.

    Raises:
      UserError: image and label are not of the same size.
    """
    image, label = as_rgb(np.asarray(self._read(image))), np.asarray(label)
    if label.shape != image.shape[:2]:
      raise UserError(f"label has shape {label.shape}, expected the image's {image.shape[:2]}")
    palette = self.info.drawn.palette
    labelled = (label >= int(self.info.multi_label)) & (label < len(palette))
    colours = palette[np.where(labelled, label, 0)]
    return np.where(labelled[..., None], (image.astype(np.uint16) + colours + 1) // 2, image).astype(np.uint8)

  def export(
    self,
    path: str | os.PathLike,
    *,
    format: str = "stablehlo",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    output: str = "labels",
    weights: str = "float32",
  ) -> Comparison:
    """Writes a file that runs without jaxseg, after its own runtime ran it on three images.

    It takes uint8 images b h w c and gives int32 labels b h w, or float32 probabilities b h w k.

    Args:
      path: the file, or for "web" a folder.
      format: "stablehlo", "onnx", "litert", or "web" for a page that segments in the browser.
      size: rows and columns; None leaves batch, rows and columns open where the format can.
      batch: images at once; None is any number where `size` is None, and one where it is given.
      output: "labels" or "probabilities".
      weights: "float32", or "int8" for a smaller file.

    Returns:
      how near the file's results are to this model's, and how fast it is.

    Raises:
      UserError: what cannot be exported so, a library that is not installed (`jaxseg[export]`), or a
        place that cannot be written.
    """
    export = lazy.load("jaxseg.export").export
    return export(self, path, format=format, size=size, batch=batch, output=output, weights=weights)

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

  def _rule(
    self, mode, crop_size, stride, resize, multiple, multiple_rule, scales, flip, threshold=0.5
  ) -> InferenceRule:
    if mode not in MODES:
      raise UserError(f"mode is {mode!r}; {catalog.suggestion(mode, MODES)}")
    if not self.classes or not hasattr(self.model, "decoder"):
      raise UserError(f"{self.arch} without a segmentation head gives no label map; use model.apply")
    if mode == "slide":
      crop_size = crop_size or _CROP
      stride = stride or tuple(max(1, side * 2 // 3) for side in crop_size)
    return InferenceRule(
      mode=mode,
      crop_size=crop_size or (0, 0),
      stride=stride or (0, 0),
      resize=resize,
      multiple=multiple,
      multiple_rule=multiple_rule,
      scales=scales,
      flip=flip,
      threshold=threshold,
    )

  def _settings(self, crf: Mapping[str, Any] | Settings | None) -> Mapping[str, Any] | None:
    """What `mean_field` takes, from what a caller gave."""
    if crf is None:
      return None
    if self.info.multi_label:
      raise UserError(
        f"the CRF gives each pixel one class, and one of {self.arch} may have several; leave crf out"
      )
    if self.preprocess.channels != 3:
      raise UserError(
        f"the CRF compares the colours of RGB images, and {self.arch} takes {self.preprocess.channels}"
        " channels; leave crf out"
      )
    if isinstance(crf, Settings):
      return dict(kernels=crf.kernels, steps=crf.steps, method=crf.method)
    if set(crf) - set(_CRF) or "kernels" not in crf:
      raise UserError(f"crf has the keys {sorted(crf)}, expected kernels and perhaps {', '.join(_CRF[1:])}")
    return crf

  def _segmenter(self, rule: InferenceRule, crf: Mapping[str, Any] | None = None) -> Segmenter:
    return Segmenter(self.model, self.variables, preprocess=self.preprocess, rule=rule, crf=crf)

  def _unary(self, image: AnyArray, rule: InferenceRule) -> Float[AnyArray, "h w k"]:
    """Negative log probabilities."""
    if rule.plain:
      return _unary(self.variables, image, model=self.model, preprocess=self.preprocess)
    return -self._segmenter(rule).scores(image)

  def _refined(self, image: AnyArray, rule: InferenceRule, crf: Mapping[str, Any]) -> jax.Array:
    return mean_field(self._unary(image, rule), image, **crf)

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


@functools.partial(jax.jit, static_argnames=("model", "preprocess", "threshold"))
def _labels(variables, image, *, model, preprocess, threshold):
  outputs = _outputs(variables, image, model, preprocess)
  how = dict(align_corners=align_corners_of(model), threshold=threshold_of(model, threshold))
  return label_map(outputs, image.shape[:2], **how)[0]


@functools.partial(jax.jit, static_argnames=("model", "preprocess"))
def _unary(variables, image, *, model, preprocess):
  logits = _outputs(variables, image, model, preprocess)["logits"]
  corners = align_corners_of(model)
  logits = resize_logits(logits, image.shape[:2], align_corners=corners)[0]
  return -log_probabilities(logits, threshold_of(model, 0.5))


def _outputs(variables, image, model, preprocess):
  return model.apply(variables, preprocess(published_size(image, preprocess))[None], train=False)


def _plain(value: Any) -> Any:
  """What JSON does not know of a module's fields: element types."""
  return np.dtype(value).name
