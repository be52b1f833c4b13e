"""What `accelerator.py` writes: tables of all results, and a picture of ours against PyTorch's."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import accelerator_forms
import accelerator_numbers

Case = dict[str, Any]


def report(device: str, results: Sequence[Case], output: pathlib.Path, command: str) -> None:
  """Tables of all results, and a picture of ours against PyTorch's."""
  name = re.sub(r"[^A-Za-z0-9]+", "_", device)
  lines = [f"# {device}", "", f"Measured by `{command}`; ms are medians of three rounds.", ""]
  models = [r for r in results if r["kind"] == "model"]
  if models:
    lines += ["## Models, bfloat16", ""]
    lines += ["| model | what | size | batch | who | images/s | ms | peak GiB | compile s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for r in models:
      head = f"| {r['model']} | {r['mode']} | {r['rows']}x{r['columns']} | {r['batch']} | {r['who']} |"
      if "failed" in r:
        lines.append(f"{head} failed: {r['failed']} | | | |")
      else:
        peak = f"{r['peak_gib']:.2f}" if "peak_gib" in r else ""
        lines.append(
          f"{head} {r['images_per_second']:.1f} | {r['ms']:.2f} | {peak} | {r['compile_seconds']:.0f} |"
        )
  forms = [r for r in results if r["kind"] == "forms"]
  if forms:
    lines += ["", "## Forms of the operations, bfloat16", "", *accelerator_forms.table(forms)]
  numbers = [r for r in results if r["kind"] == "numbers"]
  if numbers:
    lines += ["", "## Differences from a CPU in float32: logits, gradients", ""]
    lines += accelerator_numbers.table(numbers)
  for r in (r for r in results if r["kind"] == "crf"):
    took = f"{r['ms']:.1f} ms" if "ms" in r else f"failed: {r['failed']}"
    lines += ["", f"CRF, lattice, {r['rows']}x{r['columns']}x21, ten steps: {took}"]
  (output / f"{name}.md").write_text("\n".join(lines) + "\n")
  picture(device, [r for r in models if "images_per_second" in r], output / f"{name}.png")


def picture(device: str, results: Sequence[Case], path: pathlib.Path) -> None:
  """Bars of images/s by model, a panel for each mode and a colour for each of who was measured."""
  if not results:
    return
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  panels: dict[str, list[Case]] = {}
  for r in results:
    mode = "infer, batch 1" if r["mode"] == "infer" and r["batch"] == 1 else r["mode"]
    panels.setdefault(mode, []).append(r)
  who = list(dict.fromkeys(r["who"] for r in results))
  widest = max(len({r["model"] for r in rows}) for rows in panels.values())
  size = (max(6.0, 2.2 * widest), 3.2 * len(panels))
  figure, grid = plt.subplots(len(panels), 1, figsize=size, squeeze=False, layout="constrained")
  for axes, (mode, rows) in zip(grid[:, 0], panels.items(), strict=True):
    batches = {r["model"]: f"{r['model']}\n{r['rows']}x{r['columns']}, batch {r['batch']}" for r in rows}
    for i, name in enumerate(who):
      rates = {r["model"]: r["images_per_second"] for r in rows if r["who"] == name}
      if not rates:
        continue
      at = [
        g + (i - (len(who) - 1) / 2) * 0.8 / len(who) for g, model in enumerate(batches) if model in rates
      ]
      bars = axes.bar(at, [rates[m] for m in batches if m in rates], 0.8 / len(who), label=name)
      axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(batches)), list(batches.values()), fontsize=7)
    axes.set_ylabel("images/s")
    axes.set_title(f"{device}, {mode}", fontsize=9)
    axes.legend(fontsize=7)
  figure.savefig(path, dpi=150)
  plt.close(figure)
