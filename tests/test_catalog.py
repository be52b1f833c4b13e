"""What every entry of the catalogs must do; a new entry is tested without editing this file."""

import functools
import math
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxseg
from jaxseg import catalog
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.errors import UserError
from jaxseg.models import SYSTEMS, SegmentationModel
from jaxseg.ops.definition import plain_definitions
from tests import filled, golden
from tests.encoders.checks import unexpected

ODD = (1, 45, 71, 3)


pytestmark = pytest.mark.usefixtures("quick_depthwise")


def smallest(table, name: str) -> nn.Module:
  """The variant with one block a stage and no drop path: every kind of block, few of them."""
  values = catalog.defaults(table[name])
  shrunk = {
    key: tuple(1 + (key == "num_blocks") for _ in values[key])
    for key in ("depths", "num_blocks", "stage_sizes")
    if isinstance(values.get(key), tuple)
  }
  # A dropped path has no gradient, and one image of a batch of one is either dropped or not.
  shrunk |= {"drop_path_rate": 0.0} if "drop_path_rate" in values else {}
  return catalog.build(table, name, shrunk, kind="entry")


def partials(table) -> dict[str, functools.partial]:
  """The table without what is no partial, of which `test_entries_are_partials` alone is to speak."""
  return {name: entry for name, entry in table.items() if isinstance(entry, functools.partial)}


def one_of_each(table) -> list[str]:
  """One variant of each module class: the others differ in sizes only."""
  first = {}
  for name, entry in partials(table).items():
    first.setdefault(entry.func, name)
  return sorted(first.values())


def one_system_of_each() -> list[str]:
  """A system for every pair of encoder and decoder classes."""
  first, encoders, decoders = {}, partials(ENCODERS), partials(DECODERS)
  for name, system in SYSTEMS.items():
    if system.encoder in encoders and system.decoder in decoders:
      first.setdefault((encoders[system.encoder].func, decoders[system.decoder].func), name)
  return sorted(first.values())


def variants(names) -> list:
  """Names of systems; those that differ from an earlier one in sizes only are for `make test-full`."""
  return [n if n in one_system_of_each() else pytest.param(n, marks=pytest.mark.full) for n in names]


def kept(system) -> dict:
  """The encoder's fields that its decoder needs."""
  return {k: v for k, v in system.encoder_fields.items() if k in ("with_image", "stem")}


@functools.cache
def initialised(name: str):
  """(encoder, variables, image): no parameter is zero, which would hide a branch."""
  encoder = smallest(ENCODERS, name)
  image = jax.random.normal(jax.random.key(1), ODD)
  return encoder, filled.variables(encoder, image), image


def rngs():
  return {name: jax.random.key(i) for i, name in enumerate(("dropout", "nmf"))}


@pytest.mark.parametrize("table", [ENCODERS, DECODERS], ids=["encoders", "decoders"])
def test_entries_are_partials(table):
  bare = sorted(set(table) - set(partials(table)))
  assert not bare, f"enter functools.partial(Class) for {', '.join(bare)}, and not the class itself"


@pytest.mark.parametrize("name", variants(golden.names()))
def test_golden_tree(name):
  path = golden.FOLDER / f"{name}.txt"
  assert path.exists(), f"no golden tree for {name}: python -m tests.golden"
  assert golden.tree(name) == path.read_text(), (
    f"the parameter tree of {name} changed, which breaks saved weights; if that is meant,"
    " run python -m tests.golden and say so in CHANGELOG.md"
  )


# Classes → parameters of the published systems and of their encoders alone, by the golden trees.
PUBLISHED = {
  "cgnet_m3n21": {19: 496_306, 11: 494_258},
  "segnext_tiny": {150: 4_263_414, 19: 4_229_747},
  "segnext_small": {150: 13_932_886, 19: 13_899_219},
  "segnext_base": {150: 27_636_310, 19: 27_569_107},
  "segnext_large": {150: 48_926_550, 19: 48_792_275},
  "segformer_b0": {150: 3_752_694, 19: 3_719_027, 0: 3_319_392},
  "segformer_b1": {150: 13_715_798, 19: 13_682_131, 0: 13_151_424},
  "segformer_b2": {150: 27_461_974, 19: 27_361_235, 0: 24_196_288},
  "segformer_b3": {150: 47_337_814, 19: 47_237_075, 0: 44_072_128},
  "segformer_b4": {150: 64_108_374, 19: 64_007_635, 0: 60_842_688},
  "segformer_b5": {150: 84_708_694, 19: 84_607_955, 0: 81_443_008},
  "deeplabv1_vgg16": {21: 20_505_429, 0: 14_714_688},
  # MSc: a 3×3 and a 1×1 to 128 on five maps, and 640 channels more for the classifier.
  "deeplabv1_msc_vgg16": {21: 21_711_445},
  "deeplabv2_vgg16": {21: 37_877_652},
  "deeplabv2_resnet101": {21: 44_048_532, 0: 42_500_160},
  "deeplabv3_resnet50": {0: 23_508_032},
  "deeplabv3_resnet101": {21: 58_040_661},
  "deeplabv3_mobilenetv2": {21: 2_113_557, 0: 1_811_712},
  "deeplabv3plus_resnet50": {21: 40_352_181},
  "deeplabv3plus_resnet101": {21: 59_344_309},
  "deeplabv3plus_xception65": {21: 41_055_413, 0: 37_867_312},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
  """0 classes: the encoder alone."""
  leaves = [line.split() for line in (golden.FOLDER / f"{name}.txt").read_text().splitlines()]
  sizes = {path: math.prod(map(int, shape.split("x"))) for path, shape, _ in leaves if "params/" in path}
  for classes, expected in PUBLISHED[name].items():
    parts = [
      size * classes // golden.NUM_CLASSES if "/classifier" in path else size
      for path, size in sizes.items()
      if classes or path.startswith("params/encoder/")
    ]
    assert sum(parts) == expected, classes


@pytest.mark.parametrize("name", one_of_each(ENCODERS))
def test_encoder_features_and_gradients(name):
  """Stages fine to coarse at an odd size under jit, and every parameter matters to one of them."""
  encoder, variables, image = initialised(name)
  rest = {k: v for k, v in variables.items() if k != "params"}

  @jax.jit
  def run(params):
    def total(params):
      features, _ = encoder.apply(
        {"params": params, **rest}, image, train=True, rngs=rngs(), mutable=list(rest)
      )
      weights = {k: jax.random.normal(jax.random.key(5), v.shape) for k, v in features.items()}
      return sum((features[k] * weights[k]).sum() for k in features), features

    return jax.value_and_grad(total, has_aux=True)(params)

  (value, features), gradient = run(variables["params"])
  assert np.isfinite(value)
  assert list(features) == [f"stage{i + 1}" for i in range(len(features))]
  sizes = [f.shape[1] * f.shape[2] for f in features.values()]
  assert sizes == sorted(sizes, reverse=True)
  assert not unexpected(gradient)


@pytest.mark.parametrize("name", one_of_each(ENCODERS))
def test_encoder_in_bfloat16(name):
  """Same features to bfloat16's precision, parameters untouched in float32."""
  encoder, variables, image = initialised(name)
  exact = jax.jit(functools.partial(encoder.apply, train=False))(variables, image)
  half = encoder.clone(dtype=jnp.bfloat16)
  features = jax.jit(functools.partial(half.apply, train=False))(variables, image)
  for stage, value in features.items():
    assert value.dtype == jnp.bfloat16, stage
    error = np.linalg.norm(value.astype(jnp.float32) - exact[stage]) / np.linalg.norm(exact[stage])
    assert error < 0.06, (stage, error)
  shapes = jax.eval_shape(functools.partial(half.init, train=False), jax.random.key(0), image)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes["params"]))


def feeds(encoder: str, decoder: str) -> bool:
  """Whether the encoder has the stages the decoder reads."""
  num_stages = len(stage_shapes(encoder))
  stages = catalog.defaults(DECODERS[decoder]).get("stages", ())
  return all(int(s.removeprefix("stage")) <= num_stages for s in stages or ())


@functools.cache
def stage_shapes(name: str):
  encoder, variables, image = initialised(name)
  return jax.eval_shape(functools.partial(encoder.apply, train=False), variables, image)


@pytest.mark.parametrize("name", one_of_each(DECODERS))
def test_decoder_reads_every_feature_it_names(name):
  """Gradients reach every parameter and every feature; without classes there is no classifier."""
  encoder = next(e for e in one_of_each(ENCODERS) if feeds(e, name))
  shapes = stage_shapes(encoder)
  features = {
    k: jax.random.normal(jax.random.key(i), (2, *v.shape[1:]))
    for i, (k, v) in enumerate(sorted(shapes.items()))
  }
  decoder = catalog.build(DECODERS, name, {"num_classes": 5}, kind="decoder")
  variables = filled.variables(decoder, features)
  rest = {k: v for k, v in variables.items() if k != "params"}

  @jax.jit
  def run(params, features):
    def total(params, features):
      logits, _ = decoder.apply(
        {"params": params, **rest}, features, train=True, rngs=rngs(), mutable=list(rest)
      )
      return (logits * jax.random.normal(jax.random.key(6), logits.shape)).sum(), logits

    return jax.grad(total, argnums=(0, 1), has_aux=True)(params, features)

  (for_params, for_features), logits = run(variables["params"], features)
  assert logits.shape[0] == 2 and logits.shape[-1] == 5
  assert not unexpected(for_params)
  read = catalog.defaults(DECODERS[name]).get("stages") or (max(features),)
  assert {k for k, g in for_features.items() if np.any(g)} == set(read)

  bare = catalog.build(DECODERS, name, {"num_classes": None}, kind="decoder")
  variables = jax.eval_shape(functools.partial(bare.init, train=False), jax.random.key(0), features)
  assert "classifier" not in variables.get("params", {})


@pytest.mark.parametrize("name", one_system_of_each())
def test_system_outputs(name):
  """Float32 logits with the right classes for any image of at least 32 px, abstractly.

  Variants of the same classes differ in sizes, which the golden trees hold.
  """
  model = jaxseg.create_model(name, num_classes=7)
  run = functools.partial(model.init_with_output, train=False)
  for size in ((32, 32), (45, 71)):
    out, _ = jax.eval_shape(run, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    assert out["logits"].dtype == jnp.float32 and out["logits"].shape[-1] == 7


@pytest.mark.parametrize("name", one_system_of_each())
def test_forward_mode_works_on_the_definitions(name):
  """`jax.jvp` of a whole model inside `plain_definitions`: no reverse rule is left that would refuse it."""
  system = SYSTEMS[name]
  decoder = dict(system.decoder_fields) | dict(num_classes=3)
  model = SegmentationModel(
    encoder=smallest(ENCODERS, system.encoder).clone(**kept(system)),
    decoder=catalog.build(DECODERS, system.decoder, decoder, kind="decoder"),
  )
  image = jax.ShapeDtypeStruct((1, 45, 71, 3), jnp.float32)
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)

  def forward(variables, image):
    run = lambda x: model.apply(variables, x, train=True, rngs=rngs(), mutable=["batch_stats"])[0]  # noqa: E731
    return jax.jvp(run, (image,), (image,))[1]

  with plain_definitions():
    assert jax.eval_shape(forward, variables, image)["logits"].shape[-1] == 3


def test_any_encoder_takes_any_decoder_by_hand():
  model = SegmentationModel(
    encoder=smallest(ENCODERS, "cgnet_m3n21_encoder"),
    decoder=catalog.build(DECODERS, "fcn", {"num_classes": 3}, kind="decoder"),
  )
  image = jnp.zeros((1, 33, 47, 3))
  variables = jax.tree.map(jnp.asarray, filled.variables(model, image))
  assert set(variables["params"]) == {"encoder", "decoder"}
  run = lambda **more: jax.eval_shape(functools.partial(model.apply, train=False, **more), variables, image)  # noqa: E731
  assert run()["logits"].shape == (1, 5, 6, 3)
  features = run(method="features")
  assert list(features) == ["stage1", "stage2", "stage3"]


@pytest.mark.parametrize(
  "image, sentence",
  [
    (np.zeros((64, 64, 3), np.float32), r"shape \(64, 64, 3\), expected .* image\[None\]"),
    (np.zeros((1, 64, 64, 3), np.uint8), "uint8, expected floating point normalised"),
    (np.zeros((1, 20, 64, 3), np.float32), "20x64, but models need at least 32"),
  ],
)
def test_bad_images_are_sentences(image, sentence):
  # The shape check of the annotations would speak first in tests; users run without it.
  from jaxseg.models import check_image

  with pytest.raises(ValueError, match=sentence):
    check_image(image)


def test_classifier():
  """An encoder alone with num_classes is an image classifier."""
  model = jaxseg.create_model("cgnet_m3n21_encoder", num_classes=10, encoder=dict(num_blocks=(1, 1)))
  image = jnp.zeros((2, 32, 32, 3))
  run = functools.partial(model.init_with_output, train=False)
  logits, variables = jax.eval_shape(run, jax.random.key(0), image)
  assert logits.shape == (2, 10) and logits.dtype == jnp.float32
  assert variables["params"]["head"]["kernel"].shape == (256, 10)


def wrong_values(annotation):
  """A value that each `Literal` excludes, near one that it has, and a tuple that is too long."""
  for option in (annotation, *typing.get_args(annotation)):
    if typing.get_origin(option) is typing.Literal:
      choice = typing.get_args(option)[0]
      yield f"{choice}x", choice
    elif typing.get_origin(option) is tuple and Ellipsis not in typing.get_args(option):
      yield (1,) * (len(typing.get_args(option)) + 1), None


WRONG = [
  (kind, name, field, value, near)
  for kind, table in (("encoder", ENCODERS), ("decoder", DECODERS))
  for name in one_of_each(table)
  for field, spec in catalog.fields(table[name]).items()
  for value, near in wrong_values(spec.type)
]


def test_some_values_are_wrong():
  assert {field for _, _, field, _, _ in WRONG} >= {
    "attention",
    "stem",
    "epsilons",
    "middle",
    "dims",
    "stages",
  }


@pytest.mark.parametrize("kind, name, field, value, near", WRONG)
def test_a_wrong_value_is_one_sentence(kind, name, field, value, near, monkeypatch):
  """From `create_model` and from the module itself, with the nearest right value."""
  # The type check of the annotations would speak first in tests; users run without it.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  sentence = f"did you mean {near!r}" if near else "expected"
  table = {"encoder": ENCODERS, "decoder": DECODERS}[kind]
  systems = [s for s, system in SYSTEMS.items() if name in (system.encoder, system.decoder)]
  for system in systems[:1]:
    with pytest.raises(UserError, match=sentence):
      jaxseg.create_model(system, num_classes=3, **{kind: {field: value}})
  with pytest.raises(UserError, match=sentence):
    table[name](**{field: value})


@pytest.mark.parametrize(
  "system, fields, sentence",
  [
    ("segnext_tiny", dict(decoder=dict(stages=("stage2", "stage5"))), "'stage5', which MSCAN does not"),
    (
      "cgnet_m3n21",
      dict(decoder=dict(stage="stage4")),
      "known: stage1, stage2, stage3",
    ),
    ("deeplabv1_vgg16", dict(decoder=dict(side_stages=("stage0",))), "set the encoder's with_image=True"),
  ],
)
def test_a_stage_that_is_not_there_is_one_sentence(system, fields, sentence):
  with pytest.raises(UserError, match=sentence):
    jaxseg.create_model(system, num_classes=3, **fields)
