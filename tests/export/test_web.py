"""The page in headless Chromium: labels are those of `net.predict`; it asks for nothing but its folder."""

import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

from tests.export.test_export import export, net_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.mark.slow
@pytest.mark.skipif(not (CHROMIUM and DRIVER and shutil.which("npm")), reason="needs chromium and npm")
def test_the_page_segments_as_the_model_does(tmp_path):
  webdriver = pytest.importorskip("selenium.webdriver")
  image = pytest.importorskip("PIL.Image")
  net = net_of()
  export(net, "jax2onnx", tmp_path / "page", format="web")
  pixels = np.random.default_rng(0).integers(0, 256, (65, 97, 3)).astype(np.uint8)
  image.fromarray(pixels).save(tmp_path / "image.png")
  asked = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
      asked.append(self.path)

  serve = functools.partial(Handler, directory=tmp_path / "page")
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
    options.add_argument(word)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
      browser.set_script_timeout(120)
      browser.get(f"http://127.0.0.1:{server.server_port}/")
      wait = "const done = arguments[0]; const look = () => {text} ? done(1) : setTimeout(look, 50); look();"
      status = 'document.getElementById("status").textContent'
      browser.execute_async_script(wait.replace("{text}", f'{status} == "Ready."'))
      browser.execute_script(
        'document.addEventListener("segmented", (e) => {'
        " window.found = { ...e.detail, labels: Array.from(e.detail.labels) }; });"
      )
      browser.find_element("id", "file").send_keys(str(tmp_path / "image.png"))
      browser.execute_async_script(wait.replace("{text}", "window.found"))
      found = browser.execute_script("return window.found")
    finally:
      browser.quit()
      server.shutdown()
  labels = np.array(found["labels"]).reshape(found["height"], found["width"])
  assert labels.shape == pixels.shape[:2]
  assert (labels == net.predict(pixels)).mean() >= 0.995
  assert {path.split("/")[1] for path in asked} <= {
    "", "page.css", "page.js", "model.json", "model.onnx", "onnxruntime-web",
  }  # fmt: skip
