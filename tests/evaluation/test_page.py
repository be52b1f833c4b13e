"""report.html: complete in itself, small, safe against names, and usable in a browser by keyboard."""

import base64
import html.parser
import itertools
import re
import shutil

import cv2
import numpy as np
import pytest

from jaxseg.commands import compare
from jaxseg.data.source import color_map, make_info
from jaxseg.evaluation.counts import Details, ImageCounts
from jaxseg.evaluation.page import (
  Chosen,
  Series,
  chart,
  choose_images,
  iou_picture,
  make_example,
  matrix_picture,
  render_page,
  report_values,
)
from jaxseg.evaluation.report import Report
from jaxseg.metrics.boundary import TRIMAP_WIDTHS

EVIL = "<script>document.title='taken'</script>"
CLASSES = ("sky", EVIL, '"><img src=x onerror=alert(1)>', "tree & {{ 7 * 7 }}")
INFO = make_info("made", CLASSES, color_map(4))
SIZE = (420, 560)


@pytest.fixture(scope="module")
def report():
  """500 images of noise around the truth."""
  rng = np.random.default_rng(0)
  images, total = [], np.zeros((4, 4), np.int64)
  for index in range(500):
    matrix = rng.integers(0, 40, (4, 4)) + np.diag(rng.integers(0, 400, 4))
    total += matrix
    cells = np.flatnonzero(matrix)
    images.append(ImageCounts(index, f"{index:04d}", cells, matrix.reshape(-1)[cells]))
  calibration = np.zeros((15, 8), np.int64)
  calibration[4:, 1], calibration[4:, 0] = 100, np.arange(11) * 9
  details = Details(
    boundary=np.tile([5, 9, 8], (4, 1)),
    trimap=np.tile([5, 9, 8], (len(TRIMAP_WIDTHS), 4, 1)),
    calibration=calibration,
    loss=np.ones((4, 7), np.int64),
    images=tuple(images),
    shape=(4, 4),
  )
  return Report(total, details=details)


@pytest.fixture(scope="module")
def page(report):
  rng = np.random.default_rng(1)
  picture = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)  # the largest that a JPEG can be
  label = rng.integers(0, 4, SIZE)
  label[:30] = 255
  wrong = np.where(rng.random(SIZE) < 0.5, label, 0)
  examples = [
    make_example(c, f"{EVIL}{c.index}", picture, label, [("prediction", wrong)], INFO.palette)
    for c in choose_images(report)
  ]
  metrics = [
    {"step": i, "loss": 3 / i, "lr": 1e-3, **({"mIoU": i / 2000} if i % 100 == 0 else {})}
    for i in range(1, 1001)
  ]
  facts = {"source": EVIL, "step": 7, "split": "val", "crf": {"w1": 4.0}, "class_map": [[0, 1]]}
  values = report_values(report, INFO, facts=facts, examples=examples, card=f"model  {EVIL}", metrics=metrics)
  return render_page("report.html", values)


def test_names_are_text_and_nothing_is_asked_of_the_outside(page):
  assert EVIL not in page and "<img src=x" not in page
  assert "&lt;script&gt;document.title" in page and "tree &amp; {{ 7 * 7 }}" in page
  addresses, tags = [], set()

  class Reader(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
      tags.add(tag)
      addresses.extend(value for name, value in attributes if name in ("src", "href", "srcset", "action"))
      assert not any(name.startswith("on") for name, _ in attributes), tag

  Reader().feed(page)
  assert {"svg", "script", "img"} <= tags and not tags & {"iframe", "object", "embed"}
  assert all(a.startswith(("#", "data:")) for a in addresses) and len(addresses) > 50
  assert not re.search(r"https?://|@import|url\(", page)


def test_500_images_are_less_than_10_mb(page):
  assert 500 < page.count("<tr>") and len(page.encode()) < 10e6


def test_which_images_are_shown(report):
  chosen = choose_images(report)
  groups = [c.group for c in chosen]
  assert (groups.count("worst"), groups.count("best"), groups.count("confused")) == (5, 3, 4)
  assert len({c.index for c in chosen}) == len(chosen)
  scores = report.details.image_iou()
  assert [c.index for c in chosen[:5]] == np.argsort(scores, kind="stable")[:5].tolist()
  pairs = [c.pair for c in chosen[8:]]
  wrong = report.matrix - np.diag(np.diag(report.matrix))
  assert pairs[0] == tuple(np.unravel_index(wrong.argmax(), wrong.shape))
  assert choose_images(Report(report.matrix)) == [] == choose_images(report, most=0)


def test_an_example_shows_errors_and_what_has_no_label():
  image = np.full((32, 40, 3), 120, np.uint8)
  label, pred = np.zeros((32, 40), int), np.zeros((32, 40), int)
  label[:8], pred[16:] = 255, 1
  example = make_example(Chosen(0, "worst", 0.5), "a", image, label, [("prediction", pred)], INFO.palette)
  assert [name for name, _ in example.layers] == ["image", "label", "prediction", "error"]
  assert example.right == pytest.approx(8 / 24) and example.size == (40, 32)
  read = [
    cv2.imdecode(np.frombuffer(base64.b64decode(a.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for _, a in example.layers
  ]
  assert read[1][4, 20].tolist() == [0, 0, 0] and read[1][12, 20].tolist() == INFO.palette[0].tolist()
  assert read[2][24, 20].tolist() == INFO.palette[1].tolist()
  dark, right, wrong = (read[3][row, 20].astype(int) for row in (3, 12, 26))
  assert dark.max() < 80 and np.ptp(right) < 12 and wrong[0] - wrong[2] > 100


def test_charts_leave_out_what_is_not_finite_and_shorten_what_is_long():
  drawn = chart(
    [Series("a", range(5000), [1.0] * 4999 + [float("nan")])], title="t", x_label="x", y_label="y"
  )
  assert len(drawn["curves"][0]["path"].split()) == 400
  assert chart([Series("a", [1, 2], [None, None])], title="t", x_label="x", y_label="y") is None
  logarithmic = chart([Series("a", [10, 1000], [0.1, 0.2])], title="t", x_label="x", y_label="y", log_x=True)
  assert logarithmic["x_ticks"][0]["text"] == "10"


@pytest.mark.parametrize("log_x", [False, True])
def test_charts_of_numbers_that_nobody_measured(log_x):
  odd = [1e308, -1e308, 5e-324, 1e-310, 0.0, float("inf"), 1e99, -1e99, 1.0, 1.0 + 2e-16, 2**70]
  for x, y in itertools.product(itertools.combinations(odd, 2), itertools.combinations(odd, 2)):
    drawn = chart([Series("a", x, y)], title="t", x_label="x", y_label="y", log_x=log_x)
    for curve in drawn["curves"] if drawn else ():
      assert "nan" not in curve["path"] and "inf" not in curve["path"], (x, y)


def test_pictures_for_tensorboard(report):
  names = ["$x_", EVIL, "a", "b$"]  # no formulas
  for picture in (matrix_picture(report.matrix, names), iou_picture(report.by_class()["IoU"], names)):
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.fixture(scope="module")
def browser():
  webdriver = pytest.importorskip("selenium.webdriver")
  chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not (chromium and driver):
    pytest.skip("chromium and chromedriver are not installed")
  options = webdriver.ChromeOptions()
  options.binary_location = chromium
  for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
    options.add_argument(word)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
  yield browser
  browser.quit()


def test_in_a_browser(page, browser, tmp_path):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  (tmp_path / "report.html").write_text(page)
  browser.get((tmp_path / "report.html").as_uri())
  active = lambda: browser.switch_to.active_element  # noqa: E731
  find = lambda selector: browser.find_element(By.CSS_SELECTOR, selector)  # noqa: E731
  assert browser.title.startswith("<script>"), "the name is text"
  names = [e.text for e in browser.find_elements(By.CSS_SELECTOR, "#classes tbody th")]
  assert names == list(CLASSES)

  # Tab: the skip link, the theme, the sections, the table; and on to the matrix and the first slider.
  seen = []
  for _ in range(60):
    find("body").send_keys(Keys.TAB) if not seen else active().send_keys(Keys.TAB)
    element = active()
    seen.append(element.get_attribute("id") or element.get_attribute("class") or element.text)
    if element.get_attribute("class") == "slider":
      break
  order = [
    seen.index(name)
    for name in ("skip", "theme", "scroll", "matrix-norm", "zoom-in", "matrix", "left", "slider")
  ]
  assert order == sorted(order) and seen[:2] == ["skip", "theme"]

  slider, edge = active(), find(".example .edge")
  assert edge.get_attribute("style") == "left: 50%;"
  slider.send_keys(Keys.ARROW_RIGHT)
  assert edge.get_attribute("style") == "left: 51%;"
  assert "51 percent label" in slider.get_attribute("aria-valuetext")
  assert find(".example .over").get_attribute("style") == "clip-path: inset(0px 49% 0px 0px);"

  matrix = find("#matrix")
  assert "Truth and prediction sky" in find("#matrix-cell").text
  matrix.send_keys(Keys.ARROW_RIGHT)
  assert f"Truth sky, prediction {EVIL}" in find("#matrix-cell").text
  width = matrix.size["width"]
  matrix.send_keys("+")
  assert matrix.size["width"] > width

  button = find("#classes thead th:nth-child(2) button")
  button.send_keys(Keys.ENTER)
  values = [
    float(e.get_attribute("data-value")) for e in browser.find_elements(By.CSS_SELECTOR, "#classes .bar")
  ]
  assert values == sorted(values, reverse=True)
  assert find("#classes thead th:nth-child(2)").get_attribute("aria-sort") == "descending"

  before = find("body").value_of_css_property("background-color")
  find("#theme").send_keys(Keys.ENTER)
  assert find("body").value_of_css_property("background-color") != before
  unnamed = browser.execute_script(
    "return [...document.querySelectorAll('img:not([aria-hidden]), button, input, select, svg')].filter(e =>"
    " !(e.alt || e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
  )
  assert unnamed == 0, "everything has a label for a screen reader"
  assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
  assert browser.get_log("browser") == []


def test_a_comparison_in_a_dark_browser(browser, tmp_path):
  from selenium.webdriver.common.by import By
  from selenium.webdriver.common.keys import Keys

  rng = np.random.default_rng(2)
  runs = []
  for i, name in enumerate((EVIL, "b")):
    report = {"mIoU": 0.5 + 0.0004 * i, "ECE": 0.1, "data": "made", "split": "val"}
    report["classes"] = [{"name": c, "IoU": 0.1 * i} for c in CLASSES]
    lines = [{"step": step, "loss": 1 / step, "mIoU": step / 30 + i / 9} for step in range(1, 20)]
    costs = {"parameters": 1e6 * (i + 1), "macs": 2e9, "latency": 12.5 - i, "memory": 1e9}
    runs.append(compare.Run(name, name, report, {"seed": i, "model": {"arch": EVIL}}, lines, costs))
  image, label = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8), rng.integers(0, 4, (48, 64))
  predictions = [(run.name, np.roll(label, 1)) for run in runs]
  example = make_example(Chosen(0, "differ", 0.5), EVIL, image, label, predictions, INFO.palette)
  page = render_page("compare.html", compare._values(runs, ["a note"], [example]))
  assert EVIL not in page
  (tmp_path / "compare.html").write_text(page)
  dark = [{"name": "prefers-color-scheme", "value": "dark"}]
  browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
  try:
    browser.get((tmp_path / "compare.html").as_uri())
    find = lambda selector: browser.find_element(By.CSS_SELECTOR, selector)  # noqa: E731

    def brightness(name):
      return sum(map(int, re.findall(r"\d+", find("body").value_of_css_property(name))[:3]))

    assert brightness("background-color") < 120 and brightness("color") > 600
    assert find("#theme").get_attribute("aria-pressed") == "true"
    assert find("#runs thead th:nth-child(2)").text.startswith(EVIL)
    titles = [e.text for e in browser.find_elements(By.CSS_SELECTOR, "#trade-offs figcaption")]
    costs = ("Parameters", "MACs", "Latency, ms", "Peak memory")
    assert titles == [f"mIoU against {cost}" for cost in costs]
    # Ticks and names of axes do not lie over each other.
    boxes = browser.execute_script(
      "const box = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.right]; };"
      "return [...document.querySelectorAll('svg')].map((s) => [box([...s.querySelectorAll('.axis')].at(-1)),"
      " Math.min(...[...s.querySelectorAll('.tick[text-anchor=end]')].map((t) => box(t)[0]))])"
    )
    assert boxes and all(label[1] <= tick for label, tick in boxes), boxes
    find(".slider").send_keys(Keys.ARROW_LEFT)
    assert find(".example .edge").get_attribute("style") == "left: 49%;"
    find("#theme").send_keys(Keys.ENTER)
    assert brightness("background-color") > 600 and find("#theme").get_attribute("aria-pressed") == "false"
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.get_log("browser") == []
  finally:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
