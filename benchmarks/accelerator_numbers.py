"""How far a device's logits and gradients are from a CPU's in float32, for `accelerator.py --what=numbers`.

Differences are ‖device − cpu‖ / ‖cpu‖: of the logits, and of the gradients of a training step's loss without
dropout by all parameters of at most 20,000 numbers (biases, norms, depthwise kernels, narrow layers), which
come from every layer. "default" is float32 as XLA multiplies it unless told otherwise (TF32 on GPUs, one pass
of bfloat16 on TPUs), "highest" what `JAX_DEFAULT_MATMUL_PRECISION=highest` gives.
"""

import pathlib
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]
MODES = ("default", "highest")
_SMALL = 20_000


def prepare(case: Case) -> Callable[[], Case]:
  """Computes on the CPU, or takes what `references` keeps, and compiles; what is returned compares."""
  import jax
  import numpy as np
  from accelerator import drawn

  import jaxseg
  from jaxseg.train import make_loss

  rng = np.random.default_rng(0)
  shape = (case["batch"], case["rows"], case["columns"])
  image = rng.standard_normal((*shape, 3), np.float32)
  label = rng.integers(0, 19, shape)
  model = jaxseg.create_model(case["model"], num_classes=19, **_without_dropout(case["model"]))
  criterion = make_loss(dict(weights={"logits": 1.0}))

  def results(variables, image, label):
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
      rngs = {"dropout": jax.random.key(0)}
      out, _ = model.apply({"params": params, **rest}, image, train=True, rngs=rngs, mutable=list(rest))
      return criterion(out, label)[0]

    gradients = [g for g in jax.tree.leaves(jax.grad(loss)(params)) if g.size <= _SMALL]
    return model.apply(variables, image, train=False)["logits"], gradients

  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image[:1], train=False))
  variables = jax.tree.map_with_path(lambda path, leaf: drawn(path, leaf, rng), shapes)

  def on_cpu():
    with jax.default_matmul_precision("highest"):
      arguments = jax.device_put((variables, image, label), jax.devices("cpu")[0])
      return jax.device_get(jax.jit(results)(*arguments))

  logits, gradients = _kept(case, on_cpu)
  arguments = jax.device_put((variables, image, label))
  programs = {}
  for precision in MODES:
    with jax.default_matmul_precision(precision):
      programs[precision] = jax.jit(results).lower(*arguments).compile()

  def compare() -> Case:
    found = {}
    for name, program in programs.items():
      got_logits, got_gradients = jax.device_get(program(*arguments))
      found[name] = {
        "logits": _difference([got_logits], [logits]),
        "gradients": _difference(got_gradients, gradients),
      }
    return {"differences": found}

  return compare


def table(results: list[Case]) -> list[str]:
  """Lines of a Markdown table."""
  lines = [f"| model | {' | '.join(MODES)} |", f"|---{'|---' * len(MODES)}|"]
  for r in results:
    if "failed" in r:
      lines.append(f"| {r['model']} | failed: {r['failed']} |{' |' * (len(MODES) - 1)}")
      continue
    cells = [f"{r['differences'][m]['logits']:.1e}, {r['differences'][m]['gradients']:.1e}" for m in MODES]
    lines.append(f"| {r['model']} | {' | '.join(cells)} |")
  return lines


def _kept(case: Case, compute: Callable[[], Any]) -> tuple[Any, list[Any]]:
  """(logits, gradients) of a file, which is written where there is none."""
  import numpy as np

  if "references" not in case:
    return compute()
  path = pathlib.Path(case["references"]) / f"{case['model']}_{case['rows']}x{case['columns']}.npz"
  if not path.exists():
    logits, gradients = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, logits, *gradients)
  with np.load(path) as file:
    logits, *gradients = (file[f"arr_{i}"] for i in range(len(file)))
  return logits, gradients


def _without_dropout(name: str) -> dict[str, dict[str, Any]]:
  """Fields of both parts: without what each platform could draw in its own way."""
  import dataclasses

  import jaxseg

  model = jaxseg.create_model(name, num_classes=19)
  parts = {}
  for part in ("encoder", "decoder"):
    fields = {field.name for field in dataclasses.fields(getattr(model, part))}
    off = {k: 0.0 for k in ("drop_path_rate", "dropout_rate", "aspp_dropout_rate") if k in fields}
    parts[part] = dict(off, dtype="float32")
  return parts


def _difference(got, wanted) -> float:
  import numpy as np

  pairs = list(zip(got, wanted, strict=True))
  square = sum(np.sum((np.float64(g) - np.float64(w)) ** 2) for g, w in pairs)
  return float(np.sqrt(square / sum(np.sum(np.float64(w) ** 2) for _, w in pairs)))
