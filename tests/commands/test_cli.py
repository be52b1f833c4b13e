"""The console script: exit codes, what is a sentence and what keeps its traceback, and names of others."""

import types

import pytest

from jaxseg import cli, lazy
from jaxseg.console import markdown
from jaxseg.errors import UserError, printable


def ends(capsys, *words):
  with pytest.raises(SystemExit) as stopped:
    cli.main(list(words))
  return stopped.value.code, capsys.readouterr().err


def command(monkeypatch, error):
  def run(flags, changes):
    raise error

  module = types.SimpleNamespace(add_flags=lambda parser: None, run=run, __doc__="None.")
  monkeypatch.setattr(lazy, "load", lambda name: module)


def test_sentences(capsys):
  assert ends(capsys) == (2, "jaxseg: give a command\n")
  assert ends(capsys, "lst") == (2, "jaxseg: there is no command 'lst'; did you mean 'list'?\n")
  assert ends(capsys, "list", "--long") == (2, "jaxseg list: there is no flag --long; it has: \n")
  code, error = ends(capsys, "explain", "a", "--sources=b")  # SOURCES is no flag
  assert (
    code == 2
    and error.startswith("jaxseg explain: there is no flag --sources; ")
    and "'--sources'" not in error
  )
  assert ends(capsys, "list", "--config.seed=1") == (2, "jaxseg list: the command takes no --config.seed\n")
  code, error = ends(capsys, "config", "--config=")
  assert code == 2 and "--config is empty" in error
  code, error = ends(capsys, "plan", "--config=segnext_ade20k")
  assert code == 2 and error.startswith("jaxseg plan: the following arguments are required: --topology")


def test_only_a_user_error_is_a_sentence(capsys, monkeypatch):
  command(monkeypatch, UserError("mend it"))
  assert ends(capsys, "list") == (2, "jaxseg list: mend it\n")
  command(monkeypatch, ValueError("too many values to unpack"))
  with pytest.raises(ValueError, match="too many values"):
    cli.main(["list"])
  command(monkeypatch, KeyboardInterrupt())
  assert ends(capsys, "list")[0] == 130


def test_configs_that_are_none(capsys, tmp_path):
  code, error = ends(capsys, "config", f"--config={tmp_path}")
  assert code == 2 and "is a folder; give a file" in error
  for text, words in (
    ("x = 1\n", "is no config: it has no function get_config(arg)"),
    ("def get_config(arg):\n  return 7\n", "returns int; expected a ml_collections.ConfigDict"),
    ("def get_config(arg):\n", "is no Python: "),
    (
      "import ml_collections\ndef get_config(arg):\n  return ml_collections.ConfigDict()\n",
      "has no 'model'; start it from configs/common.py",
    ),
  ):
    (tmp_path / "my.py").write_text(text)
    code, error = ends(capsys, "config", f"--config={tmp_path / 'my.py'}")
    assert code == 2 and words in error and len(error.splitlines()) == 1, error


def test_a_config_elsewhere_and_one_by_its_name(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my.py").write_text(
    "from configs import common\nfrom jaxseg.config import model_config\n"
    "def get_config(arg=''):\n  config = common.base()\n  config.model = model_config('cgnet_m3n21')\n"
    "  config.mine = (1, 2)\n  return config\n"
  )
  cli.main(["config", "--config=my.py:smoke", "--config.mine=3,4"])
  assert "--config.mine=(3,4)\n" in capsys.readouterr().out
  cli.main(["config", "--config=cgnet_m3n21_camvid", "--config.batch_size=4"])
  out = capsys.readouterr().out
  assert (
    "--config.batch_size=4\n" in out and "weights from  random\n" in out and "cgnet_m3n21, 11 classes" in out
  )
  cli.main(["config", "--config=cgnet_m3n21_camvid", "--keys"])
  assert "optimizer.learning_rate: a float, at least 0, at most 100; that" in capsys.readouterr().out


def test_names_of_others_are_made_printable():
  assert printable("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
  assert printable("Straße σ") == "Straße σ"
  assert markdown("a|b<img>\n`c`") == "a\\|b&lt;img&gt;\\\\n\\`c\\`"
