r"""Measures an accelerator: ours, and PyTorch's where a GPU machine has it, in calls of limited time.

  python benchmarks/accelerator.py --minutes=9 --peers=../shared/peers --peer_python=peers/bin/python

A measurement of a model is a process of its own, ours and theirs in turn. `--jobs` processes compile beside
one another, each with a share of the processor; the device is timed by one at a time, when all of them have
compiled. A result is a line of `OUTPUT/accelerator_DEVICE.jsonl` at once. The same command again goes on with
what is missing; a measurement that failed is a line with its reason, and is tried again with `--retry`. Every
call ends by writing `OUTPUT/DEVICE.md` and `OUTPUT/DEVICE.png` from all lines. Without `--peers` only ours is
measured; `--trace=FOLDER` writes a profile of each of ours.

`--what=forms` times every form of `jaxseg.ops` at the models' shapes, which is what the choice tables of
the operations are set by (`accelerator_forms.py`). `--what=numbers` compares logits and gradients with a
CPU's.

What is measured: training steps and inference (uint8 image in, label map out) in bfloat16: images/s over
steps that are dispatched one after the other, peak memory, seconds to compile; and the CRF. PyTorch runs with
autocast to bfloat16 and channels_last, eager and compiled.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import accelerator_forms
import accelerator_numbers
from accelerator_report import report

HERE = pathlib.Path(__file__).resolve().parent
# Model → (rows, columns, batch) of a training step; CGNet's crop is its paper's.
MODELS = {
  "segnext_tiny": (512, 512, 16),
  "segformer_b0": (512, 512, 16),
  "cgnet_m3n21": (680, 680, 8),
  "deeplabv3plus_resnet50": (512, 512, 8),
  "segnext_base": (512, 512, 16),
  "segformer_b2": (512, 512, 16),
}
# Shapes of the operations' forms that one process measures: starting it takes longer than one of them.
FORMS_AT_ONCE = 4
Case = dict[str, Any]


def main() -> None:
  """Measures what is missing until the time is up, then writes the report."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, default=9.0, help="of this call, default %(default)s")
  parser.add_argument("--output", type=pathlib.Path, default=HERE / "results")
  parser.add_argument("--peers", type=pathlib.Path, help="folder of the PyTorch models (refmodels.py)")
  parser.add_argument("--peer_python", default=sys.executable, help="interpreter that has them")
  parser.add_argument(
    "--what", default="models,forms,numbers,crf", help="parts to measure, default %(default)s"
  )
  parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
  parser.add_argument("--modes", default="train,infer,infer1", help="of the models, default %(default)s")
  parser.add_argument(
    "--jobs", type=int, default=1, help="processes that compile at once, default %(default)s"
  )
  parser.add_argument(
    "--who", default="jaxseg,torch,torch.compile", help="of the models, default %(default)s"
  )
  parser.add_argument(
    "--references", type=pathlib.Path, help="folder that keeps a CPU's results for `numbers`"
  )
  parser.add_argument("--forms", default=",".join(accelerator_forms.SHAPES), help="default: %(default)s")
  parser.add_argument("--trace", type=pathlib.Path, help="folder for profiles of our models")
  parser.add_argument("--tiny", action="store_true", help="small shapes and two runs, to try the script")
  parser.add_argument("--retry", action="store_true", help="measure again what failed")
  parser.add_argument("--one", metavar="JSON", help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.one:
    measure_here(json.loads(flags.one))
    return
  deadline = time.monotonic() + 60 * flags.minutes
  device = run_wave([ours([{"kind": "device"}])], deadline)[0][0]
  if "failed" in device:
    sys.exit(f"no device could be asked: {device['failed']}")
  device = device["device"]
  flags.output.mkdir(parents=True, exist_ok=True)
  record = flags.output / f"accelerator_{re.sub(r'[^A-Za-z0-9]+', '_', device)}.jsonl"
  done = read(record)
  asked = cases(flags)
  left = [c for c in asked if key(c) not in done or (flags.retry and "failed" in done[key(c)])]
  print(f"{device}: {len(asked) - len(left)} of {len(asked)} are measured already", flush=True)
  batches = batched(left)
  for first in range(0, len(batches), flags.jobs):
    wave = batches[first : first + flags.jobs]
    if time.monotonic() > deadline - 15:
      print(f"time is up; {sum(map(len, batches[first:]))} are left: the same command goes on with them")
      break
    found = run_wave([theirs(c[0], flags) if c[0]["who"] != "jaxseg" else ours(c) for c in wave], deadline)
    for batch, results in zip(wave, found, strict=True):
      for case, result in itertools.zip_longest(batch, results, fillvalue=results[-1]):
        if result.get("failed") == "time":
          print(f"{key(case)}: not done within this call; the next one tries it again", flush=True)
          continue
        done[key(case)] = case | result
        with record.open("a") as file:
          file.write(json.dumps(case | result) + "\n")
        shown = {k: v for k, v in result.items() if k not in case and k != "device"}
        print(f"{key(case)}: {shown}", flush=True)
  report(
    device, list(done.values()), flags.output, " ".join(["python benchmarks/accelerator.py", *sys.argv[1:]])
  )


def cases(flags: argparse.Namespace) -> list[Case]:
  """All measurements, the most wanted first."""
  found: list[Case] = []
  who = [name for name in flags.who.split(",") if name == "jaxseg" or flags.peers]
  runs = 2 if flags.tiny else 20
  if "models" in flags.what.split(","):
    for mode in flags.modes.split(","):
      for name in flags.models.split(","):
        rows, columns, batch = (64, 64, 2) if flags.tiny else MODELS[name]
        shape = dict(rows=rows, columns=columns, batch=1 if mode == "infer1" else batch, runs=runs)
        case = dict(kind="model", model=name, mode=mode.removesuffix("1"), **shape)
        found += [dict(case, who=peer) for peer in who]
        if flags.trace and who[0] == "jaxseg":
          found[-len(who)]["trace"] = str(flags.trace)
  if "forms" in flags.what.split(","):
    every = accelerator_forms.cases(tiny=flags.tiny, runs=runs)
    found += [dict(case, who="jaxseg") for case in every if case["operation"] in flags.forms.split(",")]
  if "numbers" in flags.what.split(","):
    size = 64 if flags.tiny else 128
    shape = dict(rows=size, columns=size, batch=2)
    if flags.references:
      shape["references"] = str(flags.references)
    found += [dict(kind="numbers", model=n, who="jaxseg", **shape) for n in flags.models.split(",")]
  if "crf" in flags.what.split(","):
    rows, columns = (24, 32) if flags.tiny else (375, 500)
    found.append(dict(kind="crf", who="jaxseg", rows=rows, columns=columns, runs=min(runs, 5)))
  return found


def batched(cases: Sequence[Case]) -> list[list[Case]]:
  """What one process measures: a model, or some operations' shapes."""
  forms = [case for case in cases if case["kind"] == "forms"]
  together = [forms[i : i + FORMS_AT_ONCE] for i in range(0, len(forms), FORMS_AT_ONCE)]
  return [*([case] for case in cases if case["kind"] != "forms"), *together]


def key(case: Case) -> str:
  """What tells one measurement from another; results have further values."""
  names = ("kind", "model", "operation", "shape", "mode", "rows", "columns", "batch", "who")
  return " ".join(str(case[name]) for name in names if name in case)


def ours(cases: Sequence[Case]) -> list[str]:
  """The command of some of our own measurements."""
  return [sys.executable, str(HERE / "accelerator.py"), f"--one={json.dumps(cases)}"]


def theirs(case: Case, flags: argparse.Namespace) -> list[str]:
  """The command of one of PyTorch's."""
  return [flags.peer_python, str(HERE / "accelerator_peer.py"), str(flags.peers.resolve()), json.dumps(case)]


def run_wave(commands: Sequence[list[str]], deadline: float) -> list[list[Case]]:
  """What each command measured, `failed` with the reason as its last where it did not go to its end.

  All compile at once. Each says READY then, and waits for its input's end: so they have the device in turn.
  One that takes more than three quarters of the time that is left is ended, so that the others are measured.
  """
  left = max(deadline - time.monotonic(), 1.0)
  with contextlib.ExitStack() as stack:
    errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    processes = [
      stack.enter_context(subprocess.Popen(command, stderr=error, **pipes))
      for command, error in zip(commands, errors, strict=True)
    ]
    compiling = set(processes)

    def wait(process: subprocess.Popen) -> None:
      next((line for line in process.stdout if line == "READY\n"), None)
      compiling.discard(process)

    timers = [
      threading.Timer(0.75 * left, lambda: [p.kill() for p in tuple(compiling)]),
      threading.Timer(left, lambda: [p.kill() for p in processes]),
    ]
    for timer in timers:
      stack.callback(timer.cancel)
      timer.start()
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as threads:
      list(threads.map(wait, processes))
    return [finish(p, error) for p, error in zip(processes, errors, strict=True)]


def finish(process: subprocess.Popen, errors) -> list[Case]:
  """Lets the process measure, and takes its results."""
  process.stdin.close()
  lines = list(process.stdout)
  found = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
  if process.wait() == 0 and found:
    return found
  if process.returncode == -signal.SIGKILL:
    return [*found, {"failed": "time"}]
  errors.seek(0)
  reason = (errors.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1][:300]
  return [*found, {"failed": reason}]


def read(record: pathlib.Path) -> dict[str, Case]:
  """Results so far, the last of each."""
  if not record.exists():
    return {}
  found = {}
  for line in record.read_text().splitlines():
    try:
      case = json.loads(line)
    except ValueError:  # a call was stopped while it wrote
      continue
    found[key(case)] = case
  return found


def measure_here(cases: Sequence[Case]) -> None:
  """Our measurements in this process: all are compiled, then each is a line."""
  import os

  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  import jax

  device = jax.devices()[0]
  kinds = {
    "model": prepare_model,
    "crf": prepare_crf,
    "forms": accelerator_forms.prepare,
    "numbers": accelerator_numbers.prepare,
  }
  about = {"device": device.device_kind, "jax": jax.__version__}
  prepared = [kinds[case["kind"]](case) if case["kind"] in kinds else dict for case in cases]
  print("READY", flush=True)
  sys.stdin.readline()
  for measure in prepared:
    result = measure() | about
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result |= {} if peak is None else {"peak_gib": peak / 2**30}
    print("RESULT " + json.dumps(result), flush=True)


def prepare_model(case: Case) -> Callable[[], Case]:
  """Compiles a training step, or uint8 images → label maps; what is returned measures it."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from step import MMSEG

  import jaxseg
  from jaxseg import sharding
  from jaxseg.train import create_state, make_loss, make_optimizer
  from jaxseg.train.step import jit_step, make_step

  name, shape = case["model"], (case["batch"], case["rows"], case["columns"])
  classes = 19 if name.startswith("cgnet") else 21 if "deeplab" in name else 150
  variant = MMSEG.get(name, {})
  model = jaxseg.create_model(
    name,
    num_classes=classes,
    **{part: dict(dtype="bfloat16") | variant.get(part, {}) for part in ("encoder", "decoder")},
  )
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*shape, 3), np.uint8)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
  # Drawn here: to compile `init` for the device takes as long as what is measured.
  variables = jax.tree.map_with_path(lambda path, leaf: drawn(path, leaf, rng), shapes)
  if case["mode"] == "infer":

    def predict(variables, image):
      normal = (image.astype(jnp.float32) - 120.0) / 58.0
      logits = model.apply(variables, normal, train=False)["logits"]
      # As a user would without our own strips: the yardstick of what evaluation does is its own case.
      return jaxseg.resize_logits(logits, shape[1:]).argmax(-1).astype(jnp.uint8)

    arguments = jax.device_put((variables, image))
    lowered = jax.jit(predict).lower(*arguments)
    compiled, seconds = timed(lowered.compile)
    keep_program(case, compiled)
    return lambda: rates(case, lambda: compiled(*arguments), seconds)
  weights = {"logits": 1.0} | ({} if model.aux_decoder is None else {"aux_logits": 0.4})
  tx = make_optimizer(dict(name="adamw", learning_rate=6e-5, weight_decay=0.01), variables["params"])
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  with jax.default_device(jax.devices("cpu")[0]):
    state = create_state(model, variables, tx)
  state = sharding.place(state, mesh)
  step = jit_step(make_step(make_loss(dict(weights=weights)), tx), mesh, state)
  normal = (image.astype(np.float32) - 120.0) / 58.0
  label = rng.integers(0, classes, shape, np.int32)
  batch = sharding.to_global({"image": normal, "label": label}, mesh)
  random = jax.random.key(0)
  compiled, seconds = timed(step.lower(state, batch, random).compile)
  keep_program(case, compiled)
  holder = [state]

  def run():
    holder[0], scalars = compiled(holder[0], batch, random)
    return scalars

  return lambda: rates(case, run, seconds) | {"loss": float(run()["loss"])}


def trace_folder(case: Case) -> pathlib.Path:
  """For the profile of a model and its compiled program."""
  return pathlib.Path(case["trace"]) / f"{case['model']}_{case['mode']}{case['batch']}"


def keep_program(case: Case, compiled) -> None:
  """Writes the program whose instructions a profile names."""
  if "trace" in case:
    trace_folder(case).mkdir(parents=True, exist_ok=True)
    (trace_folder(case) / "program.txt").write_text(compiled.as_text())


def drawn(path, leaf, rng):
  """Some weights of a model: kernels as large as their inputs ask for, norms that do nothing."""
  import numpy as np

  name = path[-1].key
  if name in ("scale", "var"):
    return np.ones(leaf.shape, leaf.dtype)
  if len(leaf.shape) < 2:  # others than biases and means are slopes, and scales of a branch
    return np.full(leaf.shape, 0.0 if name in ("bias", "mean") else 0.1, leaf.dtype)
  values = rng.standard_normal(leaf.shape)
  if name == "bases":  # of a factorisation without negative values
    return (np.abs(values) / np.linalg.norm(values, axis=-2, keepdims=True)).astype(leaf.dtype)
  return (values / np.prod(leaf.shape[:-1]) ** 0.5).astype(leaf.dtype)


def timed(compile_) -> tuple[Any, float]:
  """What was compiled, and the seconds."""
  began = time.perf_counter()
  return compile_(), time.perf_counter() - began


def prepare_crf(case: Case) -> Callable[[], Case]:
  """The lattice's ten steps with the published kernels, 21 classes."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  import jaxseg

  rng = np.random.default_rng(0)
  shape = (case["rows"], case["columns"])
  image = rng.integers(0, 256, (*shape, 3)).astype(np.float32)
  unary = jnp.asarray(rng.uniform(0, 3, (*shape, 21)), jnp.float32)
  kernels = ((3.0, None, 3.0), (60.0, 10.0, 4.0))
  run = jax.jit(lambda u, i: jaxseg.crf.mean_field(u, i, kernels, steps=10, method="lattice"))
  compiled, seconds = timed(run.lower(unary, jnp.asarray(image)).compile)
  return lambda: rates(case | {"batch": 1}, lambda: compiled(unary, jnp.asarray(image)), seconds)


def rates(case: Case, run, compile_seconds: float) -> Case:
  """Runs after a warm-up, all dispatched before the last is waited for; rounds of half a second."""
  import jax

  jax.block_until_ready(run())
  _, single = timed(lambda: jax.block_until_ready(run()))
  count = max(min(case["runs"], math.ceil(0.5 / single)), 2)
  rounds = []
  for _ in range(3):
    began = time.perf_counter()
    out = None
    for _ in range(count):
      out = run()
    jax.block_until_ready(out)
    rounds.append((time.perf_counter() - began) / count)
  median = sorted(rounds)[1]
  if "trace" in case:
    with jax.profiler.trace(str(trace_folder(case))):
      for _ in range(3):
        jax.block_until_ready(run())
  return {
    "ms": 1e3 * median,
    "spread": max(rounds) / min(rounds),
    "images_per_second": case["batch"] / median,
    "compile_seconds": compile_seconds,
  }


if __name__ == "__main__":
  main()
