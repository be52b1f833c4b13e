"""The site: MyST pages, the API from docstrings, and tables that `generate.py` writes from the code."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generate  # noqa: E402

import jaxseg  # noqa: E402

project = "jaxseg"
author = "The jaxseg authors"
version = release = jaxseg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
html_show_copyright = False
html_theme = "furo"
html_title = f"jaxseg {release}"
html_copy_source = False
myst_heading_anchors = 3
# Anchors of one page that another one links to.
myst_enable_extensions = ["colon_fence", "deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say shapes and units; the source is one click away
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = False


def setup(app):
  app.connect("builder-inited", lambda app: generate.write(HERE / "reference"))
