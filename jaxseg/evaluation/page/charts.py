"""Numbers → what the template draws as SVG: points, ticks and texts, all in the drawing's own units."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 14, 12, 44
# Points of a curve; longer ones are averaged.
_LARGEST = 1e100  # whose squares and ratios are still numbers
_MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Series:
  """A curve: `y` over `x`; NaN is left out.

  Attributes:
    style: "line", "points", or "dashed".
    labels: of each point, shown beside it.
  """

  name: str
  x: Sequence[float | int | None]
  y: Sequence[float | int | None]
  style: str = "line"
  labels: Sequence[str] = ()


def chart(
  series: Sequence[Series],
  *,
  title: str,
  x_label: str,
  y_label: str,
  x_range: tuple[float, float] | None = None,
  y_range: tuple[float, float] | None = None,
  log_x: bool = False,
) -> dict[str, Any] | None:
  """What `chart` of the template draws; None where there is no point."""
  kept = [(s, *_points(s)) for s in series]
  kept = [(s, x, y) for s, x, y in kept if len(x)]
  if log_x:
    kept = [(s, x[x > 0], y[x > 0]) for s, x, y in kept if (x > 0).any()]
  if not kept:
    return None
  scale = np.log10 if log_x else np.asarray
  x_low, x_high = x_range or _spread(np.concatenate([scale(x) for _, x, _ in kept]), exact=not log_x)
  y_low, y_high = y_range or _spread(np.concatenate([y for _, _, y in kept]), exact=False)

  def across(x):
    return _LEFT + (scale(x) - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

  def up(y):
    return HEIGHT - _BOTTOM - (np.asarray(y) - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

  curves = []
  for number, (s, x, y) in enumerate(kept):
    points = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across(x), up(y), strict=True)]
    labels = list(s.labels) if s.labels else [""] * len(points)
    curves.append(
      {
        "name": s.name,
        "color": number % 8,
        "style": s.style,
        "path": " ".join(f"{a},{b}" for a, b in points),
        "points": [
          {"x": a, "y": b, "label": label, "text": f"{s.name}: {number_text(vx)}, {number_text(vy)}"}
          for (a, b), label, vx, vy in zip(points, labels, x, y, strict=True)
        ]
        if s.style == "points" or len(points) <= 60
        else [],
        "last": number_text(float(y[-1])),
      }
    )
  x_ticks = _log_ticks(x_low, x_high) if log_x else _ticks(x_low, x_high)
  return {
    "title": title,
    "x_label": x_label,
    "y_label": y_label,
    "width": WIDTH,
    "height": HEIGHT,
    "left": _LEFT,
    "right": WIDTH - _RIGHT,
    "top": _TOP,
    "bottom": HEIGHT - _BOTTOM,
    "x_ticks": [{"at": round(float(across(v)), 1), "text": number_text(v)} for v in x_ticks],
    "y_ticks": [{"at": round(float(up(v)), 1), "text": number_text(v)} for v in _ticks(y_low, y_high)],
    "curves": curves,
  }


def number_text(value: float) -> str:
  """A tick's or a point's number: 20k, 0.35, 6e-05."""
  if value != value:
    return "–"
  size = abs(value)
  if size >= 1e4:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
      if size >= unit:
        return f"{value / unit:.4g}{name}"
  return f"{value:.4g}"


def _points(series: Series) -> tuple[np.ndarray, np.ndarray]:
  x, y = (
    np.array([np.nan if v is None else v for v in values], np.float64) for values in (series.x, series.y)
  )
  x, y = (np.where(np.abs(values) < 1 / _LARGEST, 0.0, values) for values in (x, y))
  known = (np.abs(x) < _LARGEST) & (np.abs(y) < _LARGEST)  # not those that are not finite, either
  x, y = x[known], y[known]
  if series.style == "points" or len(x) <= _MOST_POINTS:
    return x, y
  parts = zip(np.array_split(x, _MOST_POINTS), np.array_split(y, _MOST_POINTS), strict=True)
  means = np.array([(part.mean(), values.mean()) for part, values in parts])
  return means[:, 0], means[:, 1]


def _spread(values: np.ndarray, *, exact: bool) -> tuple[float, float]:
  low, high = float(values.min()), float(values.max())
  if low == high:
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad
  pad = 0.0 if exact else (high - low) * 0.06
  return low - pad, high + pad


def _ticks(low: float, high: float, *, about: int = 5) -> list[float]:
  step = 10.0 ** math.floor(math.log10((high - low) / about))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= about + 0.5)
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  ticks = [
    m * 10.0**power
    for power in range(math.floor(low), math.ceil(high) + 1)
    for m in (1, 2, 5)
    if low <= math.log10(m * 10.0**power) <= high
  ]
  return ticks if ticks else [10.0 ** ((low + high) / 2)]
