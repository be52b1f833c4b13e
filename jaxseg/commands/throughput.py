"""Images a second and latency of a model's inference on this machine's first device, batch sizes swept.

  jaxseg throughput segformer_b0 --size=512x512
  jaxseg throughput runs/mine --batch_sizes=1,2,4,8,16 --output=runs/speed

SOURCE is a name of `jaxseg list`, whose weights are then drawn, or weights or a workdir. Measured is what
`predict` does on the device: 8-bit images that lie there already → normalisation, network, label map at the
size of the images. Latency is the time of one call by itself; images a second are of calls handed over one
after the other without waiting. A batch that the device has no room for ends the sweep. The output folder
gets throughput.json and throughput.png.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import __version__
from jaxseg.chips import peak_flops
from jaxseg.commands import outputs, plots
from jaxseg.commands.flags import parse_numbers, parse_size
from jaxseg.commands.networks import DTYPES, Network, open_network
from jaxseg.console import print_line
from jaxseg.errors import UserError, printable
from jaxseg.evaluation.predictor import make_predict
from jaxseg.macs import count_macs

_MIB = 1 << 20
_LEAST_CALLS = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
  """SOURCE, --size, --batch_sizes, --seconds, --dtype, --num_classes, --output."""
  parser.add_argument("source", metavar="SOURCE|MODEL", help="weights, a workdir, or a name of jaxseg list")
  parser.add_argument("--size", metavar="HxW", default="512x512", help="of the images; default: %(default)s")
  parser.add_argument("--batch_sizes", metavar="N,N", default="1,2,4,8", help="default: %(default)s")
  parser.add_argument(
    "--seconds", type=float, default=3.0, help="of each of the two measurements of a batch size; default: 3"
  )
  parser.add_argument(
    "--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on TPU and GPU, float32 on a CPU"
  )
  parser.add_argument("--num_classes", type=int, default=19, help="of a model by name; default: %(default)s")
  parser.add_argument("--output", metavar="DIR", default="runs/throughput", help="default: %(default)s")


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Measures, writes the JSON and the plot; the lines are a table.

  Raises:
    UserError: a wrong flag, no such model, or the smallest batch has no room.
  """
  del changes
  size = parse_size(flags.size, "--size")
  batches = parse_numbers(flags.batch_sizes, "--batch_sizes", low=1, high=65_536, whole=True)
  if not 0 < flags.seconds <= 3600:
    raise UserError(f"--seconds is {flags.seconds:g}; expected more than 0, and at most 3600")
  if flags.num_classes < 1:
    raise UserError(f"--num_classes is {flags.num_classes}; expected at least 1")
  output = outputs.try_folder(flags.output)
  network = open_network(flags.source, num_classes=flags.num_classes, dtype=flags.dtype)
  if not hasattr(network.model, "decoder"):
    raise UserError(f"{flags.source} has no segmentation head; give a segmentation model")
  device = jax.local_devices()[0]
  facts = {
    "source": flags.source,
    "size": list(size),
    "dtype": str(jnp.dtype(getattr(network.model.decoder, "dtype", None) or jnp.float32)),
    "device": device.device_kind,
    "platform": device.platform,
    "host": platform.machine(),
    "gmacs_an_image": count_macs(network.model, size) / 1e9,
    "jax": jax.__version__,
    "jaxseg": __version__,
  }
  rows, refused = sweep(network, size, batches, seconds=flags.seconds, say=print_line)
  peak = peak_flops([device])
  for row in rows:
    if peak:
      row["mfu"] = row["images_per_second"] * 2e9 * facts["gmacs_an_image"] / peak
  values = facts | {"rows": rows} | ({"refused": refused} if refused else {})
  outputs.write(output / "throughput.json", (json.dumps(values, indent=1) + "\n").encode())
  outputs.write(output / "throughput.png", _plot(network.name, facts, rows))
  title = f"{printable(network.name)} at {size[0]}x{size[1]}, {facts['dtype']}, on {facts['device']}"
  lines = [title, *_table(rows)]
  if refused:
    lines.append(f"batch {refused['batch_size']} has no room on the device ({refused['why']})")
  return [*lines, f"throughput.json and throughput.png in {printable(flags.output)}"]


def sweep(
  network: Network,
  size: tuple[int, int],
  batches: Sequence[int],
  *,
  seconds: float | int,
  say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
  """(a row for each batch size, what the device had no room for or None).

  Args:
    network: with a segmentation head.
    size: rows and columns of the images.
    batches: sizes to measure, in this order.
    seconds: of each measurement, at least five calls.
    say: prints a line.

  Raises:
    UserError: the first batch has no room.
  """
  variables = jax.device_put(network.variables)
  predict = make_predict(network.model, preprocess=network.preprocess)
  rng, rows = np.random.default_rng(0), []
  for batch in batches:
    try:
      image = jax.device_put(rng.integers(0, 256, (batch, *size, 3), np.uint8))
      began = time.perf_counter()
      compiled = predict.lower(variables, image).compile()
      compiling = time.perf_counter() - began
      run = lambda image=image, compiled=compiled: compiled(variables, image)  # noqa: E731
      jax.block_until_ready(run())
      jax.block_until_ready(run())
      row = {"batch_size": batch, **measure(run, seconds=seconds)}
    except jax.errors.JaxRuntimeError as error:
      why = str(error).splitlines()[0][:160]
      if not rows:
        raise UserError(
          f"a batch of {batch} images of {size[0]}x{size[1]} does not run on the device ({why}); give smaller"
          " --batch_sizes or a smaller --size"
        ) from None
      return rows, {"batch_size": batch, "why": why}
    row["images_per_second"] = batch * row.pop("calls_per_second")
    row["compile_seconds"] = compiling
    memory = compiled.memory_analysis()
    row["temporary_mib"] = memory.temp_size_in_bytes / _MIB if memory is not None else None
    say(f"batch {batch}: {row['images_per_second']:.3g} images/s")
    rows.append(row)
  return rows, None


def measure(run: Callable[[], Any], *, seconds: float | int) -> dict[str, float | int]:
  """Latency of single calls and the rate of calls that do not wait for each other.

  Args:
    run: starts one call and gives what becomes ready.
    seconds: of each of the two.

  Returns:
    latency_p50_ms, latency_p99_ms, calls (of the latency), calls_per_second.
  """
  times, end = [], time.perf_counter() + seconds
  while len(times) < _LEAST_CALLS or time.perf_counter() < end:
    began = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - began)
  p50, p99 = np.percentile(times, [50, 99]) * 1e3
  # As many as fill the time; a few are under way at once.
  count = max(_LEAST_CALLS, math.ceil(seconds / (p50 / 1e3)))
  began, under_way = time.perf_counter(), []
  for _ in range(count):
    under_way.append(run())
    if len(under_way) > 3:
      jax.block_until_ready(under_way.pop(0))
  jax.block_until_ready(under_way)
  rate = count / (time.perf_counter() - began)
  return {
    "latency_p50_ms": float(p50),
    "latency_p99_ms": float(p99),
    "calls": len(times),
    "calls_per_second": rate,
  }


def _table(rows: list[dict[str, Any]]) -> list[str]:
  lines = [
    "batch  images/s  p50 ms  p99 ms  calls  compiled in  temporaries" + ("   MFU" * ("mfu" in rows[0]))
  ]
  for row in rows:
    memory = "" if row["temporary_mib"] is None else f"{row['temporary_mib']:,.0f} MiB"
    line = (
      f"{row['batch_size']:5d}  {row['images_per_second']:8.4g}  {row['latency_p50_ms']:6.4g}"
      f"  {row['latency_p99_ms']:6.4g}  {row['calls']:5d}  {row['compile_seconds']:9.1f} s  {memory:>11}"
    )
    lines.append(line + (f"  {row['mfu']:5.1%}" if "mfu" in row else ""))
  return lines


def _plot(name: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> bytes:
  made, ((left, right),) = plots.figure(1, 2, size=(9.0, 3.6))
  batches = [row["batch_size"] for row in rows]
  left.plot(batches, [row["images_per_second"] for row in rows], "o-", color=plots.COLORS[0])
  plots.tidy(left, title="throughput", x="batch size", y="images/s")
  left.set_ylim(bottom=0)
  for key, label, color in (
    ("latency_p50_ms", "median", plots.COLORS[0]),
    ("latency_p99_ms", "99th percentile", plots.COLORS[1]),
  ):
    right.plot(batches, [row[key] for row in rows], "o-", color=color, label=label)
  plots.tidy(right, title="latency of one call", x="batch size", y="ms")
  right.set_ylim(bottom=0)
  right.legend(frameon=False, fontsize=9)
  for axes in (left, right):
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
  height, width = facts["size"]
  made.suptitle(f"{printable(name)}, {height}x{width}, {facts['dtype']}, {facts['device']}", fontsize=11)
  return plots.png(made)
