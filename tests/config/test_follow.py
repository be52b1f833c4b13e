"""What hangs on a config's model follows it: auxiliary head, weights of its maps, rates of the pyramid."""

import argparse
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxseg import config as config_lib
from jaxseg import models
from jaxseg.commands import target
from jaxseg.config import record, validate
from jaxseg.errors import UserError
from jaxseg.train import workdir

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def load(file, *changes):
  name, _, arg = file.partition(":")
  return config_lib.load(f"{CONFIGS / name}.py:{arg}", overrides=[tuple(c.split("=", 1)) for c in changes])


def test_an_offered_auxiliary_head_is_switched_on_and_off():
  off = load("deeplabv3")
  assert off.model.auxiliary is False and off.loss.weights.to_dict() == {"logits": 1.0}
  assert config_lib.build_model(off, 21).aux_decoder is None
  assert "aux_decoder" not in config_lib.model_fields(off)

  on = load(
    "deeplabv3",
    "loss.weights.aux_logits=0.5",  # the order does not matter: the model comes first
    "model.auxiliary=true",
    "model.aux_decoder.channels=64",
  )
  assert on.loss.weights.to_dict() == {"logits": 1.0, "aux_logits": 0.5}
  aux = config_lib.build_model(on, 21).aux_decoder
  assert (aux.num_classes, aux.channels, aux.stage, aux.num_convs) == (21, 64, "stage3", 1)
  assert load("deeplabv3", "model.auxiliary=true").loss.weights.aux_logits == 0.4

  usual = load("deeplab_mmseg")
  assert usual.model.auxiliary is True and usual.loss.weights.aux_logits == 0.4
  assert "aux_logits" not in load("deeplab_mmseg", "model.auxiliary=false").loss.weights
  with pytest.raises(UserError, match=r"auxiliary head, which is off; set --config\.model\.auxiliary=true"):
    load("deeplabv3", "loss.weights.aux_logits=0.4")
  with pytest.raises(UserError, match=r"config\.model has no key 'auxiliary'"):
    load("cgnet_m3n21_camvid", "model.auxiliary=true")


def test_a_model_config_with_fields_of_the_offered_head_has_it_on():
  assert config_lib.model_config("deeplabv3_resnet50").auxiliary is False
  config = config_lib.model_config("deeplabv3_resnet50", aux_decoder=dict(channels=64))
  assert config.auxiliary is True and config.aux_decoder.num_convs == 1


@pytest.mark.parametrize("auxiliary", ["true", "false"])
def test_a_workdir_says_whether_the_head_is_there(tmp_path, auxiliary):
  config = load("deeplabv3", f"model.auxiliary={auxiliary}", "model.aux_decoder.channels=64")
  values = record.make_record(config, num_classes=2, classes=["a", "b"], palette=np.eye(2, 3))
  assert ("aux_decoder" in values["model"]) == (auxiliary == "true")
  workdir.prepare(tmp_path, values, write=True)
  again = record.read_config(tmp_path)
  expected = json.loads(json.dumps(config_lib.resolved(config)))
  expected["model"]["num_classes"] = 2
  assert json.loads(json.dumps(config_lib.resolved(again))) == expected
  assert config_lib.build_model(again, 2) == config_lib.build_model(config, 2)


def test_each_scale_gets_a_weight():
  config = load("deeplabv2_voc")
  assert dict(config.loss.weights) == {
    "logits": 1.0, "scale100_logits": 1.0, "scale075_logits": 1.0, "scale050_logits": 1.0,
  }  # fmt: skip
  assert dict(load("deeplabv2_voc", "model.scales=1").loss.weights) == {"logits": 1.0}
  two = load("deeplabv2_voc", "model.scales=(1.0,0.5)", "loss.weights.scale050_logits=0.1")
  assert dict(two.loss.weights) == {"logits": 1.0, "scale100_logits": 1.0, "scale050_logits": 0.1}


@pytest.mark.parametrize(
  ("file", "changes", "rates"),
  [
    ("deeplabv3", (), (6, 12, 18)),
    ("deeplabv3", ("model.encoder.output_stride=8",), (12, 24, 36)),
    ("deeplabv3", ("model.decoder.rates=6,12,18", "model.encoder.output_stride=8"), (6, 12, 18)),
    ("deeplabv3", ("model.encoder.output_stride=8", "model.decoder.rates=2,4"), (2, 4)),
    ("deeplabv3:finetune", (), (12, 24, 36)),
    ("deeplabv3plus:finetune", ("model.encoder.output_stride=16",), (6, 12, 18)),
    ("deeplabv3:mobilenetv2", ("model.encoder.output_stride=8",), ()),
    ("deeplab_mmseg", (), (12, 24, 36)),
    ("deeplabv2_voc", ("model.encoder.output_stride=16",), (6, 12, 18, 24)),
  ],
)
def test_rates_follow_the_output_stride(file, changes, rates):
  config = load(file, *changes)
  assert config.model.decoder.rates == rates
  assert config_lib.build_model(config, 21).decoder.rates == rates


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3plus_xception65"])
def test_a_model_by_name_follows_too(name):
  rates = lambda **fields: models.create_model(name, num_classes=2, **fields).decoder.rates  # noqa: E731
  assert rates() == (6, 12, 18)
  assert rates(encoder=dict(output_stride=8)) == (12, 24, 36)
  assert rates(encoder=dict(output_stride=32)) == (3, 6, 9)
  assert rates(encoder=dict(output_stride=8), decoder=dict(rates=(1, 2))) == (1, 2)
  config = config_lib.model_config(name, encoder=dict(output_stride=8), decoder=dict(rates=(1, 2)))
  assert config.decoder.rates == (1, 2)


@pytest.mark.parametrize("stride", ["0", "12", "4"])
def test_an_output_stride_that_no_encoder_gives(stride):
  with pytest.raises(ValueError, match=f"output_stride is {stride}.*8, 16 or 32"):
    validate.validate(load("deeplabv3", f"model.encoder.output_stride={stride}"))


@pytest.mark.parametrize(
  ("file", "sentence"),
  [
    ("deeplabv3:resnet50,mobilenetv2", "takes one of :resnet50, :mobilenetv2, not all"),
    ("deeplabv3:cityscapes,finetune", "takes one of :cityscapes, :finetune, not all"),
    ("deeplabv2_voc:aspp_s", "is one head of VGG16; give :vgg16,aspp_s"),
    ("deeplab_mmseg:769,voc", "takes one of :769, :voc, not all"),
    ("deeplab_mmseg:v3+", "has no argument :v3"),
  ],
)
def test_arguments_that_do_not_go_together(file, sentence):
  with pytest.raises(UserError, match=sentence):
    load(file)


def test_a_trained_model_is_evaluated_at_another_stride(tmp_path, monkeypatch):
  """As the papers do; fields that have parameters stay, and what would have no effect is refused."""
  small = ["model.encoder.stage_sizes=1,1,1,1", "model.encoder.width=8", "model.decoder.channels=8"]
  small.append("model.encoder.multi_grid=()")
  config = load("deeplabv3", *small)
  values = record.make_record(config, num_classes=2, classes=["a", "b"], palette=np.eye(2, 3))
  workdir.prepare(tmp_path, values, write=True)
  model = config_lib.build_model(config, 2)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False)
  )
  trained = target.TrainedModel("run", model, shapes, config_lib.make_preprocess(config.preprocess), 2)
  monkeypatch.setattr(target, "from_workdir", lambda directory, step: trained)
  flags = argparse.Namespace(workdir=tmp_path, source=None, config=None, split=None, step="best")

  def subject(*changes):
    return target.load_model(flags, target.choose_config(flags, [tuple(c.split("=", 1)) for c in changes]))

  assert subject().model == model
  finer = subject("model.encoder.output_stride=8").model
  assert (finer.encoder.output_stride, finer.decoder.rates) == (8, (12, 24, 36))
  with pytest.raises(UserError, match=r"does not fit the parameters of .*decoder/"):
    subject("model.decoder.channels=16")
  flags.config = str(CONFIGS / "deeplabv3.py")
  with pytest.raises(UserError, match="changing it has no effect; give --workdir alone"):
    subject("model.encoder.output_stride=8")


def test_a_value_that_json_wrote_as_null_still_has_its_type():
  config = load("cgnet_m3n21_synthetic")
  stored = config_lib.from_resolved(json.loads(json.dumps(config_lib.resolved(config))))
  config_lib.change(stored, [("loss.align_corners", "false")])
  assert stored.loss.align_corners is False
  with pytest.raises(UserError, match="align_corners"):
    config_lib.change(stored, [("loss.align_corners", "maybe")])


def test_one_scale_alone_is_a_map_too():
  config = load("cgnet_m3n21_synthetic", "model.scales=(0.75,)")
  assert dict(config.loss.weights) == {"logits": 1.0, "scale075_logits": 1.0}
