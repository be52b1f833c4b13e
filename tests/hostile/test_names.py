"""Names that somebody chose to harm a terminal, a table, a page or a path: they stand there as text."""

import html.parser
import json
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import jaxseg
from jaxseg.commands import label_files
from jaxseg.console import copied_to, markdown, print_line
from jaxseg.data.source import color_map, make_info
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.page import make_example
from jaxseg.evaluation.page.choice import Chosen
from jaxseg.evaluation.page.render import render_page, report_values
from jaxseg.evaluation.report import Report
from jaxseg.pretrained.untrusted import shown, some
from tests.hostile.changes import assert_sentence, cases, names
from tests.hub.small import TINY, init

class_name = names.filter(lambda name: 0 < len(name) <= 200)  # longer ones are refused


def safe(text: str) -> bool:
  return all(c.isprintable() or c == "\n" for c in text)


def test_one_name(tmp_path, capsys):
  @cases(150)
  @given(names)
  def case(name):
    assert printable(name).isprintable() and "\n" not in printable(name)
    assert shown(name).isascii() and shown(name).isprintable() and len(shown(name)) <= 80
    assert safe(some([name, name]))
    cell = markdown(name)
    assert cell.isprintable() and "<" not in cell and ">" not in cell
    bare = cell.replace("\\\\", "").replace("&lt;", "").replace("&gt;", "").replace("&amp;", "")
    for mark in "|`*_[]#":
      assert bare.count(mark) == bare.count("\\" + mark)
    with copied_to(tmp_path / "log.txt"):
      print_line(f"image {name} is missing")
    out = capsys.readouterr().out
    assert safe(out) and safe((tmp_path / "log.txt").read_text())

  case()


def test_a_report_of_such_classes_and_pictures():
  class Reader(html.parser.HTMLParser):
    def __init__(self):
      super().__init__()
      self.tags = []

    def handle_starttag(self, tag, attributes):
      self.tags.append(tag)
      assert not any(name.startswith("on") for name, _ in attributes), (tag, attributes)

  def tags(page):
    reader = Reader()
    reader.feed(page)
    return reader.tags

  picture, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
  report = Report(np.array([[5, 1], [2, 7]]))

  def page(classes, text):
    info = make_info("folder", classes, color_map(2))
    chosen = Chosen(0, "worst", 0.5)
    example = make_example(chosen, text, picture, label, [(text, label)], info.palette)
    facts = {"source": text, "step": 1, "split": text, "data": text}
    return render_page(
      "report.html", report_values(report, info, facts=facts, examples=[example], card=text, metrics=[])
    )

  plain = tags(page(("a", "b"), "plain"))

  @cases(12)
  @given(st.lists(class_name, min_size=2, max_size=2, unique=True), names.filter(bool))
  def case(classes, text):
    assert tags(page(tuple(classes), text)) == plain
    assert safe(report.table([printable(name) for name in classes]))
    json.loads(json.dumps(report.to_dict(tuple(classes)), allow_nan=False))

  case()


def test_the_card_of_saved_weights(tmp_path):
  model, variables = init(decoder=dict(use_bias=True), encoder=TINY | {"num_blocks": (1, 1)})
  fields = dict(num_classes=5, encoder=TINY | {"num_blocks": (1, 1)}, decoder=dict(use_bias=True))
  palette = np.arange(15, dtype=np.uint8).reshape(5, 3)
  preprocess = jaxseg.types.Preprocess()

  def card(classes, text):
    net = jaxseg.Net(
      model, variables, preprocess, tuple(classes), palette, "cgnet_m3n21", fields, licence=text,
      lineage={"source": text},
    )  # fmt: skip
    net.save_pretrained(tmp_path)
    return (tmp_path / "README.md").read_text()

  plain = card("abcde", "x").count("\n")

  @cases(8)
  @given(st.lists(names.filter(bool), min_size=5, max_size=5, unique=True), names.filter(bool))
  def case(classes, text):
    try:
      made = card(classes, text)
    except UserError as error:
      assert_sentence(error)
      return
    assert made.count("\n") == plain and safe(made)
    body = made.split("---", 2)[-1]
    assert not re.search(r"(?<!\\)<(img|script)|(?<!\\)\]\(javascript", body)
    back = jaxseg.from_pretrained(tmp_path)
    assert list(back.classes) == list(classes) and back.lineage["source"] == text

  case()


def test_label_maps_stay_below_their_folder(tmp_path):
  (tmp_path / "out").mkdir()
  info = make_info("folder", ("a", "b"), color_map(2))
  picture = np.zeros((4, 4, 3), np.uint8)

  @cases(60)
  @given(st.one_of(names, st.lists(st.sampled_from(["..", ".", "a", "", "b c"]), max_size=4).map("/".join)))
  def case(name):
    before = {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in path.parents}
    try:
      label_files.write_labels(
        tmp_path / "out",
        iter([(name, picture)]),
        predict=lambda image: np.zeros((4, 4), np.int32),
        info=info,
        write=True,
        progress=lambda done: None,
      )
    except UserError as error:
      assert_sentence(error)
    after = {path for path in tmp_path.rglob("*") if (tmp_path / "out") not in path.parents}
    assert after == before

  case()
