"""How far a device's logits and gradients are from a CPU's in float32, for `accelerator.py --what=numbers`.

Differences are ‖device − cpu‖ / ‖cpu‖: of the logits, and of all parameters' gradients of a training step's
loss without dropout. "default" is float32 as XLA multiplies it unless told otherwise (TF32 on GPUs, one
pass of bfloat16 on TPUs), "highest" what `JAX_DEFAULT_MATMUL_PRECISION=highest` gives.
"""

from collections.abc import Callable
from typing import Any

Case = dict[str, Any]
MODES = (("float32", "default"), ("float32", "highest"), ("bfloat16", "default"))


def prepare(case: Case) -> Callable[[], Case]:
  """Computes on the CPU and compiles for the device; what is returned compares."""
  import jax
  import numpy as np

  import jaxseg
  from jaxseg.train import make_loss

  rng = np.random.default_rng(0)
  shape = (case["batch"], case["rows"], case["columns"])
  image = rng.standard_normal((*shape, 3), np.float32)
  label = rng.integers(0, 19, shape)

  criterion = make_loss(dict(weights={"logits": 1.0}))

  def functions(dtype: str):
    model = jaxseg.create_model(case["model"], num_classes=19, **_parts(case["model"], dtype))

    def logits(variables, image):
      return model.apply(variables, image, train=False)["logits"].astype(np.float32)

    def loss(params, rest, image, label):
      rngs = {"dropout": jax.random.key(0)}
      out, _ = model.apply({"params": params, **rest}, image, train=True, rngs=rngs, mutable=list(rest))
      return criterion(out, label)[0]

    def both(variables, image, label):
      params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
      return logits(variables, image), jax.grad(loss)(params, rest, image, label)

    return model, both

  model, both = functions("float32")
  cpu = jax.devices("cpu")[0]
  with jax.default_device(cpu):
    variables = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0), image[:1], train=False))())
  with jax.default_matmul_precision("highest"):
    wanted = jax.device_get(jax.jit(both)(*jax.device_put((variables, image, label), cpu)))
  arguments = jax.device_put((variables, image, label))
  programs = {}
  for dtype, precision in MODES:
    with jax.default_matmul_precision(precision):
      programs[f"{dtype} {precision}"] = jax.jit(functions(dtype)[1]).lower(*arguments).compile()

  def compare() -> Case:
    found = {}
    for name, program in programs.items():
      got = jax.device_get(program(*arguments))
      found[name] = {
        what: _difference(g, w) for what, g, w in zip(("logits", "gradients"), got, wanted, strict=True)
      }
    return {"differences": found}

  return compare


def table(results: list[Case]) -> list[str]:
  """Lines of a Markdown table."""
  modes = [" ".join(mode) for mode in MODES]
  lines = [f"| model | {' | '.join(modes)} |", f"|---{'|---' * len(modes)}|"]
  for r in results:
    if "failed" in r:
      lines.append(f"| {r['model']} | failed: {r['failed']} |{' |' * (len(modes) - 1)}")
      continue
    cells = [f"{r['differences'][m]['logits']:.1e}, {r['differences'][m]['gradients']:.1e}" for m in modes]
    lines.append(f"| {r['model']} | {' | '.join(cells)} |")
  return lines


def _parts(name: str, dtype: str) -> dict[str, dict]:
  """Fields of both parts: no dropout, which each platform could draw in its own way."""
  import dataclasses

  import jaxseg

  model = jaxseg.create_model(name, num_classes=19)
  parts = {}
  for part in ("encoder", "decoder"):
    fields = {field.name for field in dataclasses.fields(getattr(model, part))}
    off = {k: 0.0 for k in ("drop_path_rate", "dropout_rate", "aspp_dropout_rate") if k in fields}
    parts[part] = dict(off, dtype=dtype)
  return parts


def _difference(got, wanted) -> float:
  import jax
  import numpy as np

  pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
  square = sum(np.sum((np.float64(g) - np.float64(w)) ** 2) for g, w in pairs)
  return float(np.sqrt(square / sum(np.sum(np.float64(w) ** 2) for _, w in pairs)))
