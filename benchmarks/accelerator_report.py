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
  """Bars of images/s by model and mode, a colour for each of who was measured."""
  if not results:
    return
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  groups = list(dict.fromkeys(f"{r['model']}\n{r['mode']} {r['batch']}" for r in results))
  who = list(dict.fromkeys(r["who"] for r in results))
  figure, axes = plt.subplots(figsize=(max(6, 1.1 * len(groups)), 4.5), layout="constrained")
  for i, name in enumerate(who):
    rates_ = {
      f"{r['model']}\n{r['mode']} {r['batch']}": r["images_per_second"] for r in results if r["who"] == name
    }
    at = [g + (i - (len(who) - 1) / 2) * 0.8 / len(who) for g in range(len(groups))]
    axes.bar(at, [rates_.get(g, 0) for g in groups], 0.8 / len(who), label=name)
  axes.set_yscale("log")
  axes.set_xticks(range(len(groups)), groups, rotation=45, ha="right", fontsize=7)
  axes.set_ylabel("images/s")
  axes.set_title(device)
  axes.legend()
  figure.savefig(path, dpi=150)
  plt.close(figure)
