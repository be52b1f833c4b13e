"""Configs: built from fields, changed from the command line, checked; every refusal is one sentence."""

import json
import pathlib

import pytest

from jaxseg import config as config_lib
from jaxseg.commands.flags import split
from jaxseg.config import validate
from jaxseg.config.overrides import apply
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CAMVID = str(ROOT / "configs" / "cgnet_m3n21_camvid.py")


def load(*changes, arg=""):
  return config_lib.load(CAMVID + arg, overrides=[tuple(c.split("=", 1)) for c in changes])


def test_every_field_of_encoder_and_decoder_is_a_key():
  config = config_lib.model_config("cgnet_m3n21")
  assert config.encoder.num_blocks == (3, 21)
  assert config.decoder.use_bias is False, "the system's own value, not the class's default"
  assert config.decoder.stage is None and config.decoder.get_type("stage") is str
  assert config.encoder.get_type("dtype") is str
  assert "num_classes" not in config.decoder, "there is one place for it: model.num_classes"


@pytest.mark.parametrize(
  ("change", "value"),
  [
    ("data.crop_size=(320, 256)", (320, 256)),
    ("data.crop_size=320,256", (320, 256)),
    ("data.crop_size=[320,256]", (320, 256)),
    ("data.scale_range=1,2", (1.0, 2.0)),
    ("data.classes=road,car", ("road", "car")),
    ("data.classes=(road, car)", ("road", "car")),
    ("frozen=encoder/stage(1|2)", ("encoder/stage(1|2)",)),
    ("frozen=encoder/.*,decoder/classifier/bias", ("encoder/.*", "decoder/classifier/bias")),
    ("loss.factors=1,0.5", (1, 0.5)),
    ("data.label_map=((0,255),(7,0))", ((0, 255), (7, 0))),
    ("loss.class_weights=()", ()),
    ("model.encoder.surround=false", False),
    ("model.encoder.dtype=bfloat16", "bfloat16"),
    ("model.decoder.stage=stage2", "stage2"),
    ("model.decoder.stage=None", None),
    ("optimizer.learning_rate=1", 1.0),
    ("data.manual_dir=a=b", "a=b"),
    ("total_steps=7", 7),
  ],
)
def test_an_override_sets_the_value_in_its_type(change, value):
  config = load(change)
  for key in change.split("=", 1)[0].split("."):
    config = config[key]
  assert config == value and type(config) is type(value)


def test_the_schedule_follows_total_steps_until_it_has_its_own():
  assert load("total_steps=7").optimizer.schedule.total_steps == 7
  config = load("total_steps=7", "optimizer.schedule.total_steps=20")
  assert (config.total_steps, config.optimizer.schedule.total_steps) == (7, 20)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ("optimzer.learning_rate=1", "config has no key 'optimzer'; did you mean 'optimizer'?"),
    ("learning_rate=1", "config has no key 'learning_rate'; did you mean config.optimizer.learning_rate?"),
    ("optimizer.schedule.powr=1", "config.optimizer.schedule has no key 'powr'; did you mean 'power'?"),
    (
      "model.encoder.num_blockz=1,1",
      "config.model.encoder has no key 'num_blockz'; did you mean 'num_blocks'?",
    ),
    ("batch_size=abc", "config.batch_size expects an int, got 'abc'"),
    ("batch_size=8.5", "config.batch_size expects an int, got '8.5'"),
    ("data.flip=often", "config.data.flip expects a float, got 'often'"),
    ("model.encoder.surround=maybe", "config.model.encoder.surround expects true or false, got 'maybe'"),
    ("data.crop_size=769", "config.data.crop_size expects 2 values like (360, 360), got '769'"),
    ("data.crop_size=a,b", "config.data.crop_size expects 2 ints like (360, 360), got 'a,b'"),
    ("batch_size.x=1", "config.batch_size is the value 8 and has no key 'x'"),
    ("data=1", "config.data is a group of keys; set one of them: data.blur"),
    ("model.arch=cgnet", "config.model.arch is 'cgnet', which is no model; did you mean 'cgnet_m3n21'?"),
    ("model.encoder.activation=prelou", "'prelu', 'relu'; did you mean 'prelu'?"),
    (
      "dtype=bfloat17",
      "config.dtype is 'bfloat17'; expected one of 'float32', 'bfloat16'; did you mean 'bfloat16'?",
    ),
    ("data.color=photo", "config.data.color is 'photo'; expected one of 'none', 'photometric'"),
    ("data.crop_size=31,64", "config.data.crop_size is (31, 64); models need at least 32 pixels a side"),
    (
      "data.scale_range=2,1",
      "config.data.scale_range is (2.0, 1.0); expected (low, high) with 0 < low <= high",
    ),
    ("data.flip=1.5", "config.data.flip is 1.5; expected at least 0, at most 1"),
    ("total_steps=0", "config.total_steps is 0; expected at least 1"),
    ("preprocess.std=1,0,1", "config.preprocess.std is (1.0, 0.0, 1.0), which holds 0.0; expected above 0"),
    ("optimizer.schedule.warmup_steps=99999", "warmup_steps is 99999, more than its total_steps 46400"),
  ],
)
def test_a_wrong_override_is_one_sentence(change, sentence):
  with pytest.raises(UserError) as error:
    validate.validate(load(change))
  assert sentence in str(error.value)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ("ema_decay=1.0", "config.ema_decay is 1.0; expected at least 0, below 1"),
    ("ema_decay=-0.1", "config.ema_decay is -0.1; expected at least 0, below 1"),
    ("accumulate=0", "config.accumulate is 0; expected at least 1"),
    ("optimizer.b2=1.5", "config.optimizer.b2 is 1.5; expected at least 0, below 1"),
    ("optimizer.schedule.every=0", "config.optimizer.schedule.every is 0; expected at least 1"),
  ],
)
def test_ranges_of_what_training_may_do(change, sentence):
  with pytest.raises(UserError) as error:
    validate.validate(load(change))
  assert sentence in str(error.value)


def test_the_folder_recipe_warms_up_for_a_share_of_any_run():
  path = CAMVID.replace("camvid", "folder")
  for steps, warmup in ((10_000, 200), (1000, 20), (30, 0)):
    config = config_lib.load(path, overrides=[("total_steps", str(steps))])
    validate.validate(config)
    assert config.optimizer.schedule.warmup_steps == warmup
  config = config_lib.load(path, overrides=[("optimizer.schedule.warmup_steps", "7")])
  assert config.optimizer.schedule.warmup_steps == 7


def test_class_counts_have_to_agree():
  config = load("model.num_classes=19")
  with pytest.raises(UserError, match=r"config.model.num_classes is 19, but camvid has 3 classes"):
    validate.validate_classes(config, ["a", "b", "c"])
  with pytest.raises(UserError, match=r"config.loss.class_weights has 11 values for 3 classes"):
    validate.validate_classes(load(), ["a", "b", "c"])
  assert validate.validate_classes(load("loss.class_weights=()"), ["a", "b", "c"]) == 3


def test_files_and_arguments_that_are_not_there():
  with pytest.raises(UserError, match=r"no config file .*camvd.*did you mean .*cgnet_m3n21_camvid"):
    config_lib.load(CAMVID.replace("camvid", "camvd"))
  with pytest.raises(UserError, match=r"no argument :cpo; did you mean 'cpu'\?"):
    load(arg=":cpo")
  with pytest.raises(UserError, match="is no config"):
    config_lib.load(str(ROOT / "configs" / "common.py"))


def test_a_model_config_refuses_what_the_model_does_not_have():
  with pytest.raises(UserError, match=r"encoder of cgnet_m3n21 has no field 'depth'"):
    config_lib.model_config("cgnet_m3n21", encoder=dict(depth=3))
  with pytest.raises(UserError, match=r"num_blocks is .*expected 2 ints"):
    config_lib.model_config("cgnet_m3n21", encoder=dict(num_blocks=(3,)))
  with pytest.raises(UserError, match="has no aux_decoder"):
    config_lib.model_config("cgnet_m3n21", aux_decoder=dict(num_convs=1))


def test_split_keeps_the_order_and_the_other_flags():
  changes, rest = split(
    ["--config=a.py:cpu", "--config.x.y=1=2", "--workdir", "w", "--config.z", "-3", "--config.t"]
  )
  assert changes == [("x.y", "1=2"), ("z", "-3"), ("t", "true")]
  assert rest == ["--config=a.py:cpu", "--workdir", "w"]


def test_smoke_and_cpu_combine_and_overrides_come_last():
  config = load("batch_size=4", arg=":cpu,smoke")
  assert config.data.eval_split == "val" and config.data.name == "synthetic"
  assert config.model.encoder.num_blocks == (1, 1) and config.model.num_classes == 11
  assert (config.total_steps, config.batch_size, config.data.crop_size) == (2, 4, (64, 64))


def test_a_config_survives_json():
  config = load("model.encoder.surround=false", "data.label_map=((0,255),(7,0))", arg=":cpu")
  again = config_lib.from_resolved(json.loads(json.dumps(config_lib.resolved(config))))
  assert config_lib.resolved(again) == config_lib.resolved(config)
  apply(again, [("model.decoder.stage", "stage2")])
  assert again.model.decoder.stage == "stage2", "a None keeps its type"


def test_dtype_reaches_the_parts_that_have_none_of_their_own():
  fields = config_lib.model_fields(load("dtype=bfloat16", "model.decoder.dtype=float32"))
  assert (fields["encoder"]["dtype"], fields["decoder"]["dtype"]) == ("bfloat16", "float32")
