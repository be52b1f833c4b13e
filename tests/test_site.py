"""The documentation site builds without a warning, and none of its links between pages is dead."""

import html.parser
import pathlib
import subprocess
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Page(html.parser.HTMLParser):
  """The anchors and the links of a page."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.anchors, self.links = set(), []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.anchors.add(values.get("id"))
    self.links += [values[name] for name in ("href", "src") if values.get(name)]


def dead_links(folder: pathlib.Path) -> list[str]:
  """Links to a file that is not there or an anchor that its page lacks, each as "page: link"."""
  pages = {path: Page(path) for path in sorted(folder.resolve().rglob("*.html"))}
  dead = []
  for path, page in pages.items():
    for link in page.links:
      url = urllib.parse.urlsplit(link)
      if url.scheme or url.netloc:
        continue
      target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
      anchor = urllib.parse.unquote(url.fragment)
      if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
        dead.append(f"{path.name}: {link}")
  assert len(pages) > 30
  return dead


def test_the_site(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert dead_links(tmp_path) == []
