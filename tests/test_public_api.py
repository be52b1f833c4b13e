"""Conventions of the public API, checked on the code itself."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import sys

import flax.linen as nn
import pytest

import jaxseg
from jaxseg import catalog, lazy
from jaxseg.decoders import DECODERS
from jaxseg.encoders import ENCODERS
from jaxseg.models import SYSTEMS

PUBLIC = [
  "create_model", "list_models", "from_pretrained", "load_pretrained", "to_torch", "resize_logits",
  "SegmentationModel", "Net", "IGNORE_LABEL",
]  # fmt: skip
ROOMS = ["ops", "layers", "losses", "metrics", "encoders", "decoders", "pretrained", "models", "hub"]


def public_functions():
  """(qualified name, function) of everything without a leading underscore."""
  for room in ROOMS:
    module = importlib.import_module(f"jaxseg.{room}")
    modules = [module]
    if hasattr(module, "__path__"):
      modules += [
        importlib.import_module(f"{module.__name__}.{m.name}") for m in pkgutil.iter_modules(module.__path__)
      ]
    for m in modules:
      for name, value in vars(m).items():
        if name.startswith("_") or getattr(value, "__module__", None) != m.__name__:
          continue
        if inspect.isfunction(value):
          yield f"{m.__name__}.{name}", value
        elif inspect.isclass(value):
          yield f"{m.__name__}.{name}", value


def test_public_names_resolve():
  for name in PUBLIC:
    assert name in jaxseg.__all__ and getattr(jaxseg, name) is not None
  assert set(PUBLIC) <= set(dir(jaxseg))


def test_rooms_resolve():
  for room in jaxseg._ROOMS:
    assert getattr(jaxseg, room).__name__ == f"jaxseg.{room}"


@pytest.mark.parametrize("library, extra", [("cv2", "vision"), ("grain", "train"), ("onnx", "export")])
def test_a_missing_library_is_a_sentence_with_its_extra(library, extra, monkeypatch):
  monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
  with pytest.raises(lazy.MissingExtraError, match=rf"pip install 'jaxseg\[{extra}\]'"):
    lazy.load(library)


def test_type_checkers_see_what_python_resolves():
  """The names that are imported under TYPE_CHECKING are those of the lazy table, and of `__all__`."""
  for package in ("jaxseg", "jaxseg.config"):
    module = importlib.import_module(package)
    tree = ast.parse(inspect.getsource(module))
    seen = {
      alias.name: node.module
      for block in ast.walk(tree)
      if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
      for node in block.body
      for alias in node.names
    }
    rooms = {name for name, source in seen.items() if source == "jaxseg"}
    assert rooms == set(getattr(module, "_ROOMS", ()))
    assert {name: source for name, source in seen.items() if name not in rooms} == module._LAZY
    assert set(module.__all__) - {"__version__"} == set(module._LAZY)
  assert (pathlib.Path(jaxseg.__file__).parent / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
    jaxseg.create_modle  # noqa: B018


def test_everything_public_has_a_docstring():
  bare = [name for name, value in public_functions() if not (value.__doc__ or "").strip()]
  bare += [
    f"{name}: only the generated one"
    for name, value in public_functions()
    if inspect.isclass(value)
    and dataclasses.is_dataclass(value)
    and (value.__doc__ or "").startswith(f"{value.__name__}(")
  ]
  assert not bare, bare


def test_defaults_are_keyword_only():
  """In the rooms that importers call, an argument with a default cannot be given by position."""
  wrong = []
  for name, value in public_functions():
    if not inspect.isfunction(value) or name.split(".")[1] == "pretrained":
      continue
    for p in inspect.signature(value).parameters.values():
      if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and not _is_initializer(value):
        wrong.append(f"{name}({p.name})")
  assert not wrong, wrong


def _is_initializer(function) -> bool:
  """Linen calls initialisers as f(key, shape, dtype): their signature is not ours to choose."""
  return next(iter(inspect.signature(function).parameters), "") == "key"


def test_no_keyword_tunnels():
  wrong = [
    name
    for name, value in public_functions()
    if inspect.isfunction(value)
    and any(p.kind is p.VAR_KEYWORD for p in inspect.signature(value).parameters.values())
  ]
  assert not wrong, wrong


@pytest.mark.parametrize("table", [ENCODERS, DECODERS], ids=["encoders", "decoders"])
def test_catalog_entries_are_linen_variants(table):
  for name, entry in table.items():
    assert issubclass(entry.func, nn.Module), name
    assert not entry.args, f"{name}: fields are given by name"
    assert set(entry.keywords) <= set(catalog.fields(entry)), name
    train = inspect.signature(entry.func.__call__).parameters["train"]
    assert train.default is train.empty, f"{name}: train has no default, so that evaluation is never a guess"


def test_systems_name_catalog_entries():
  for name, system in SYSTEMS.items():
    assert set(system.encoder_fields) <= set(catalog.fields(ENCODERS[system.encoder])), name
    assert set(system.decoder_fields) <= set(catalog.fields(DECODERS[system.decoder])), name


def test_unknown_names_and_fields_are_sentences():
  with pytest.raises(ValueError, match=r"no model called 'cgnet_m3n12'; did you mean 'cgnet_m3n21'\?"):
    jaxseg.create_model("cgnet_m3n12", num_classes=2)
  with pytest.raises(ValueError, match=r"has no field 'num_block'; did you mean 'num_blocks'\?"):
    jaxseg.create_model("cgnet_m3n21", num_classes=2, encoder=dict(num_block=(1, 1)))
  with pytest.raises(ValueError, match="has no field 'name'"):
    jaxseg.create_model("cgnet_m3n21", num_classes=2, encoder=dict(name="renamed"))
  with pytest.raises(ValueError, match="num_classes is 0, expected an int of at least 1"):
    jaxseg.create_model("cgnet_m3n21", num_classes=0)
