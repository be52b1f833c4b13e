"""What `throughput` and `explain` are asked to look at: weights, a workdir, or a model by name."""

import dataclasses
import functools
import math
import os
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxseg import catalog, models
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.hub import from_pretrained
from jaxseg.models import SYSTEMS, channels_of
from jaxseg.types import Preprocess

DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Network:
  """A model with its variables.

  Attributes:
    name: what it was asked for by, without folders.
    model: the Linen module.
    variables: its collections.
    preprocess: how it wants its image.
    trained: False for a model by name, whose weights are drawn.
  """

  name: str
  model: nn.Module
  variables: Any
  preprocess: Preprocess
  trained: bool


def open_network(source: str, *, num_classes: int = 19, dtype: str = "auto") -> Network:
  """A model by name with drawn weights, or what `jaxseg.from_pretrained` reads.

  Args:
    source: a name of `jaxseg list`, weights, a workdir, or org/name on the hub.
    num_classes: of a model by name.
    dtype: of the computation; auto is bfloat16 on TPU and GPU, float32 on a CPU.

  Raises:
    UserError: neither a model nor weights.
  """
  if dtype == "auto":
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  if source in models.list_models():
    fields = {part: {"dtype": dtype} for part in _parts_with_dtype(source)}
    model = models.create_model(source, num_classes=None if source in ENCODERS else num_classes, **fields)
    return Network(source, model, drawn_variables(model), Preprocess(), trained=False)
  if not os.path.exists(source) and "/" not in source:
    near = catalog.suggestion(source, models.list_models())
    raise UserError(f"{source!r} is no model and no file; {near}, or give weights or a workdir")
  net = from_pretrained(source)
  model = net.model
  parts = {
    name: getattr(model, name).clone(dtype=dtype)
    for name in ("encoder", "decoder", "aux_decoder")
    if hasattr(getattr(model, name, None), "dtype")
  }
  if parts:
    model = model.clone(**parts)
  elif hasattr(model, "dtype"):
    model = model.clone(dtype=dtype)
  name = os.path.basename(os.path.normpath(source))
  return Network(name, model, net.variables, net.preprocess, trained=True)


def _parts_with_dtype(name: str) -> list[str]:
  if name in ENCODERS:
    return ["encoder"] if "dtype" in catalog.fields(ENCODERS[name]) else []
  from jaxseg.decoders import DECODERS

  system = SYSTEMS[name]
  entries = {"encoder": ENCODERS[system.encoder], "decoder": DECODERS[system.decoder]}
  return [part for part, entry in entries.items() if "dtype" in catalog.fields(entry)]


def drawn_variables(model: nn.Module) -> Any:
  """Variables of a model, drawn on the host: kernels of variance 1 / fan-in, norms that change nothing.

  Compiling a network's own initialisers takes longer than most things that one does with them.
  """
  image = jax.ShapeDtypeStruct((1, 64, 64, channels_of(model)), np.float32)
  shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")[2]
    if name in ("bias", "mean"):
      return np.zeros(leaf.shape, leaf.dtype)
    if len(leaf.shape) <= 1:
      return np.full(leaf.shape, 0.25 if name == "slope" else 1.0, leaf.dtype)
    fan_in = math.prod(leaf.shape[:-1])
    return (rng.standard_normal(leaf.shape) / math.sqrt(fan_in)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)
