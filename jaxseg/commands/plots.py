"""Figures of the commands: one look, drawn without pyplot's global state."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg import lazy

# Okabe and Ito's colours, which stay apart for the colour-blind.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Any, np.ndarray]:
  """A figure of `size` inches with rows x columns axes, always as a two-dimensional array."""
  made = lazy.load("matplotlib.figure").Figure(figsize=size, dpi=120, layout="constrained")
  return made, made.subplots(rows, columns, squeeze=False)


def tidy(axes: Any, *, title: str = "", x: str = "", y: str = "") -> None:
  """Titles, a light grid, no frame above and to the right."""
  axes.set_title(title, fontsize=10)
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  axes.grid(True, color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)


def legend_below(made: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
  """One legend for all axes, outside of them."""
  made.legend(
    handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9
  )


def load_patches() -> Any:
  """Matplotlib's shapes."""
  return lazy.load("matplotlib.patches")


def png(made: Any) -> bytes:
  """The figure as the bytes of a PNG file."""
  lazy.load("matplotlib.backends.backend_agg").FigureCanvasAgg(made)
  buffer = io.BytesIO()
  made.savefig(buffer, format="png")
  return buffer.getvalue()
