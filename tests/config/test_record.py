"""`config.json` of a workdir: damaged or hostile ones are one sentence."""

import json

import numpy as np
import pytest

from jaxseg import config as config_lib
from jaxseg.config import keys, record, schema
from jaxseg.errors import UserError


@pytest.fixture
def values():
  config = config_lib.load("colour_only_synthetic:smoke")
  return record.make_record(config, num_classes=8, classes=list("abcdefgh"), palette=np.zeros((8, 3), int))


def test_a_record_is_read_as_it_was_written(values, tmp_path):
  record.write(tmp_path, values)
  assert record.read(tmp_path) == values
  assert record.read_config(tmp_path).model.num_classes == 8


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    "[]",
    "7",
    "null",
    '"x"',
    "{}",
    '{"config": 1}',
    '{"config": {"model": {}}}',
    "[" * 100_000,
    "\xff",
  ],
)
def test_what_is_no_record(text, tmp_path):
  (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
  with pytest.raises(UserError, match=r"config\.json") as error:
    record.read_config(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    (("classes",), "abc"),
    (("classes",), [1, 2]),
    (("model",), []),
    (("model", "num_classes"), None),
    (("model", "num_classes"), {}),
    (("config", "model", "arch"), "nothing"),
    (("config", "model", "arch"), 7),
    (("config", "model", "encoder"), 7),
    (("config", "model", "encoder", "widths"), "x"),
    (("config", "model"), None),
    (("config",), []),
  ],
)
def test_a_record_with_something_else_in_it(values, key, value, tmp_path):
  node = values
  for part in key[:-1]:
    node = node[part]
  node[key[-1]] = value
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(UserError, match=r"config\.json") as error:
    record.read_config(tmp_path)
  assert "\n" not in str(error.value)


def test_a_config_of_an_earlier_version_is_filled_in():
  """With the values that configs/common.py has today; any other key that is missing is named."""
  config = config_lib.load("cgnet_m3n21_synthetic")
  values = config_lib.resolved(config)
  for name in schema.LATER:
    group, _, last = name.rpartition(".")
    (values[group] if group else values).pop(last)
  values.pop("early_stopping")
  back = config_lib.from_resolved(values)
  assert {name: keys.get(back, name) for name in schema.LATER} == {
    name: keys.get(config, name) for name in schema.LATER
  }
  values["optimizer"].pop("b1")
  with pytest.raises(UserError, match=r"config has no key optimizer\.b1"):
    config_lib.from_resolved(values)
  values["optimizer"] = "adam"
  with pytest.raises(UserError, match=r"config\.optimizer is no group of keys"):
    config_lib.from_resolved(values)
