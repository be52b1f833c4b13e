"""The choice tables of `jaxseg.ops`: every form of an operation at the models' shapes, on the device at hand.

`accelerator.py --what=forms` runs it, one process for an operation at a shape. A form is timed forward, and
forward with all gradients; a form that the device refuses is a line with its reason.
"""

import math
import time
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]

# Rows (and columns), channels, kernel, rate: SegNeXt-T's MSCA and feed-forward, SegFormer-B0's, CGNet's.
DEPTHWISE = (
  *((h, c, k, 1) for h, c in ((128, 32), (64, 64), (32, 160)) for k in ("5x5", "1x7", "1x21", "21x1")),
  *((h, c, "3x3", 1) for h, c in ((128, 256), (64, 512), (32, 640), (16, 1024))),
  (85, 64, "3x3", 4),
)
# Rows, input and output channels, rate: DeepLab's last stage and pyramid at output strides 16 and 8.
ATROUS = (
  (32, 512, 512, 2),
  (32, 2048, 256, 6),
  (32, 2048, 256, 18),
  (64, 2048, 256, 12),
  (64, 2048, 256, 36),
)
# Rows, channels, and of the feed-forward hidden channels: SegNeXt-T's and SegNeXt-B's; SegFormer-B0's first.
MSCA = ((128, 32), (128, 64), (64, 64), (64, 128), (32, 160), (32, 320), (16, 512))
MIX_FFN = ((128, 32, 128), (128, 32, 256), (128, 64, 512), (64, 128, 1024), (32, 320, 1280), (16, 512, 2048))
BATCH_NORM = ((128, 256), (64, 128), (32, 2048))
# Queries, keys, heads, width: SegFormer-B0's first and third stage.
ATTENTION = ((16384, 256, 1, 32), (1024, 256, 5, 32))
RESIZE = ((64, 128, 256), (128, 512, 21))
# Rows, factor, classes: of SegFormer-B0, SegNeXt-T, DeepLabV3+ and CGNet.
CROSS_ENTROPY = ((128, 4, 150), (64, 8, 150), (128, 4, 21), (85, 8, 19))
TINY = {
  "depthwise": ((8, 16, "1x7", 1), (8, 16, "3x3", 2)),
  "atrous": ((8, 4, 4, 2),),
  "msca": ((16, 4),),
  "mix_ffn": ((16, 32, 128),),
  "batch_norm": ((8, 4),),
  "attention": ((16, 4, 2, 8),),
  "resize": ((4, 8, 3),),
  "cross_entropy": ((64, 2, 3),),
}
SHAPES = {
  "depthwise": DEPTHWISE,
  "atrous": ATROUS,
  "msca": MSCA,
  "mix_ffn": MIX_FFN,
  "batch_norm": BATCH_NORM,
  "attention": ATTENTION,
  "resize": RESIZE,
  "cross_entropy": CROSS_ENTROPY,
}

_ROUND = 0.1  # seconds, of which there are three

# A TPU's kernels run on a CPU too, interpreted: slowly, so that they are tested before a TPU is lent.
_RUN_KERNELS = ("tpu", "cpu")


def cases(*, tiny: bool, runs: int) -> list[Case]:
  """One case for each operation and shape."""
  batch = 2 if tiny else 16
  return [
    dict(kind="forms", operation=name, shape=list(shape), batch=batch, runs=runs)
    for name, shapes in (TINY if tiny else SHAPES).items()
    for shape in shapes
  ]


def prepare(case: Case) -> Callable[[], Case]:
  """Compiles every form; what is returned times them.

  It gives {"forms": {name: {"forward": ms, "both": ms, "difference": d} or {"failed": reason}},
  "chosen": today's form}. d is ‖form − first‖ / ‖first‖ of the value or the gradient where that is largest;
  the first form is the definition.
  """
  import jax

  operation = globals()[f"_{case['operation']}"]
  arrays, forms, chosen = operation(case["batch"], *case["shape"], platform=_platform())
  compiled: dict[str, Any] = {}
  differences: dict[str, float] = {}
  first = None
  for name, function in forms.items():
    try:
      compiled[name] = {
        kind: jax.jit(f).lower(*arrays).compile()
        for kind, f in (("forward", function), ("both", _with_gradients(function)))
      }
      result = compiled[name]["both"](*arrays)
      first = result if first is None else first
      differences[name] = float(_difference(result, first))
    except Exception as error:  # what a device refuses is a result, whatever it raises
      compiled[name] = _reason(error)

  def time_them() -> Case:
    found = {}
    for name, programs in compiled.items():
      try:
        found[name] = (
          programs
          if "failed" in programs
          else {kind: _milliseconds(program, arrays, case["runs"]) for kind, program in programs.items()}
          | {"difference": differences[name]}
        )
      except Exception as error:
        found[name] = _reason(error)
    return {"forms": found, "chosen": chosen}

  return time_them


def _difference(tree, other):
  import jax
  import jax.numpy as jnp

  @jax.jit
  def run(tree, other):
    pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
    wide = [(x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in pairs]
    # The largest of the arrays': a kernel's gradient is much larger than the map's.
    return jnp.stack([jnp.linalg.norm(x - y) / (jnp.linalg.norm(y) + 1e-30) for x, y in wide]).max()

  return run(tree, other)


def _reason(error: Exception) -> dict[str, str]:
  return {"failed": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}


def table(results: list[Case]) -> list[str]:
  """Lines of a Markdown table: ms forward / with gradients, the best of each in bold (difference)."""
  lines = [
    "| operation | shape | forms: ms forward / with gradients (difference from the first) | chosen |",
    "|---|---|---|---|",
  ]
  for r in results:
    shape = f"{r['batch']} x {' '.join(map(str, r['shape']))}"
    if "failed" in r:
      lines.append(f"| {r['operation']} | {shape} | failed: {r['failed']} | |")
      continue
    timed = {name: t for name, t in r["forms"].items() if "failed" not in t}
    best = {key: min((t[key] for t in timed.values()), default=0.0) for key in ("forward", "both")}
    cells = []
    for name, t in r["forms"].items():
      if "failed" in t:
        cells.append(f"{name} failed: {t['failed']}")
      else:
        words = [f"**{t[k]:.3f}**" if t[k] == best[k] else f"{t[k]:.3f}" for k in ("forward", "both")]
        cells.append(f"{name} {' / '.join(words)} ({t['difference']:.0e})")
    lines.append(f"| {r['operation']} | {shape} | {'; '.join(cells)} | {r['chosen']} |")
  return lines


def _platform() -> str:
  import jax

  name = jax.default_backend()
  return "cuda" if name == "gpu" else name


def _with_gradients(function):
  import jax

  def run(*arrays):
    y, pull = jax.vjp(function, *arrays)
    return y, pull(y)

  return run


def _milliseconds(run, arrays, runs: int) -> float:
  """The median of three rounds after a warm-up, each dispatched before its last result is waited for."""
  import jax

  jax.block_until_ready(run(*arrays))
  began = time.perf_counter()
  jax.block_until_ready(run(*arrays))
  count = max(min(runs, math.ceil(_ROUND / (time.perf_counter() - began))), 2)
  rounds = []
  for _ in range(3):
    began = time.perf_counter()
    out = None
    for _ in range(count):
      out = run(*arrays)
    jax.block_until_ready(out)
    rounds.append(1e3 * (time.perf_counter() - began) / count)
  return sorted(rounds)[1]


def _normal(*shape: int):
  import jax.numpy as jnp
  import numpy as np

  return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), jnp.bfloat16)


def _depthwise(batch: int, h: int, c: int, kernel: str, rate: int, *, platform: str):
  from functools import partial

  from jaxseg.ops import depthwise as ops

  size = tuple(map(int, kernel.split("x")))
  padding = tuple(((k - 1) // 2 * rate,) * 2 for k in size)
  window = ops.Window((1, 1), padding, (rate, rate))
  arrays = _normal(batch, h, h, c), _normal(*size, 1, c)
  names = [name for name in ops.FORMS if name != "banded" or 1 in size]
  if platform == "tpu":
    names.remove("kernel")  # for GPUs
  forms = {name: partial(_formed, ops.depthwise_conv_as, name, window) for name in names}
  return arrays, forms, ops.choose_form(platform, arrays[0].dtype, arrays[0].shape, size, window)


def _atrous(batch: int, h: int, c: int, k: int, rate: int, *, platform: str):
  from functools import partial

  from jaxseg.ops import atrous as ops

  window, arrays = ops.Window(rate, False), (_normal(batch, h, h, c), _normal(3, 3, c, k))
  forms = {name: partial(_formed, ops.atrous_conv_as, name, window) for name in ops.FORMS}
  return arrays, forms, ops.choose_form(platform, arrays[0].dtype, (h, h), (3, 3, c, k), rate)


def _formed(operation, form: str, window, x, kernel):
  return operation(form, x, kernel, window)


def _msca(batch: int, h: int, c: int, *, platform: str):
  import jax.numpy as jnp

  from jaxseg.ops import msca as ops
  from jaxseg.ops import msca_kernel

  def weights(*size: int):
    return _normal(*size, 1, c), jnp.zeros(c)

  sizes = msca_kernel.Sizes(5, (7, 11, 21))
  square, strips = weights(5, 5), [(weights(1, n), weights(n, 1)) for n in sizes.strips]
  forms = {"convolutions": lambda x: ops.msca_reference(x, square, strips)}
  if platform in _RUN_KERNELS:
    packed, interpret = ops.pack(square, strips), platform != "tpu"
    forms["kernel"] = lambda x: msca_kernel.msca(x, packed, sizes, interpret)
  x = _normal(batch, h, h, c)
  return (x,), forms, ops.choose_form(platform, kernel=msca_kernel.fits(x.shape, x.dtype, sizes))


def _mix_ffn(batch: int, h: int, c: int, hidden: int, *, platform: str):
  import functools

  import jax
  import jax.numpy as jnp

  from jaxseg.ops import mix_ffn as ops
  from jaxseg.ops import mix_ffn_kernel

  shapes = ((c, hidden), (3, 3, 1, hidden), (hidden, c))
  weights = [(_normal(*shape) / shape[0], jnp.zeros(shape[-1])) for shape in shapes]
  forms = {"operations": ops.mix_ffn_reference}
  if platform in _RUN_KERNELS:
    forms["kernel"] = functools.partial(mix_ffn_kernel.mix_ffn, interpret=platform != "tpu")
  x = _normal(batch, h, h, c)
  kernel = mix_ffn_kernel.fits(x.shape, hidden, x.dtype)
  arrays = (x, *weights)
  if platform == "cpu":  # which has no products of 16 bits for every shape
    arrays = jax.tree.map(lambda y: y.astype(jnp.float32), arrays)
  return arrays, forms, ops.choose_form(platform, kernel=kernel)


def _batch_norm(batch: int, h: int, c: int, *, platform: str):
  import jax.numpy as jnp

  from jaxseg.ops import batch_norm as ops

  scale, bias, slope = jnp.ones(c), jnp.zeros(c), jnp.zeros(c)
  forms = {
    name: lambda x, name=name: ops.batch_norm_act_as(name, x, scale, bias, slope, epsilon=1e-5)[0]
    for name in ops.FORMS
  }
  return (_normal(batch, h, h, c),), forms, ops.CHOICE[platform]


def _attention(batch: int, n: int, m: int, heads: int, d: int, *, platform: str):
  import jax

  from jaxseg.ops import attention as ops
  from jaxseg.ops import attention_kernel

  scores = batch * heads * n * m
  parts = max(math.ceil(scores / ops.PART_SCORES), 2)
  forms = {
    "reference": ops.attention_reference,
    "parts": lambda q, k, v: ops.attention_by_parts(q, k, v, parts=parts),
  }
  query, key = _normal(batch, n, heads, d), _normal(batch, m, heads, d)
  kernel = attention_kernel.fits(query.shape, m, query.dtype)
  if platform == "cuda":
    forms["cudnn"] = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
  if platform == "tpu" and kernel:
    forms["kernel"] = attention_kernel.attention
  chosen = ops.choose_form(platform, kernel=kernel, cudnn=True)
  if chosen == "plain":
    chosen = "parts" if ops.has_many_scores(scores) else "reference"
  return (query, key, key), forms, chosen


def _resize(batch: int, before: int, after: int, c: int, *, platform: str):
  from jaxseg.ops import resize as ops

  size = (after, after)
  forms = {
    "reference": lambda x: ops.resize_reference(x, size),
    "matrices": lambda x: ops.resize_by_matrices(x, size),
    "phases": lambda x: ops.resize_by_phases(x, size),
    "gathers": lambda x: ops.resize_by_gathers(x, size),
  }
  return (_normal(batch, before, before, c),), forms, ops.CHOICE[platform]


def _cross_entropy(batch: int, h: int, factor: int, classes: int, *, platform: str):
  import functools

  import jax.numpy as jnp
  import numpy as np

  from jaxseg.ops import softmax_kernel, softmax_kernel_gpu, upsampled
  from jaxseg.ops import upsampled_cross_entropy as ops

  x = _normal(batch, h, h, classes).astype(jnp.float32)
  labels = jnp.asarray(
    np.random.default_rng(1).integers(0, classes, (batch, h * factor, h * factor)), jnp.int32
  )
  function, derivative = ops.softmax_terms()

  def strips(x):
    return upsampled.map_rows(function, x, (labels,), derivative=derivative)[0][0]

  forms = {"strips": strips}
  modules = {"tpu": softmax_kernel, "cuda": softmax_kernel_gpu}
  for name in [platform] if platform in modules else modules:
    if modules[name].fits(x.shape, labels.shape[1:], align_corners=False):
      kernel = functools.partial(modules[name].terms, interpret=platform == "cpu")
      forms[f"{name} kernel"] = lambda x, kernel=kernel: kernel(x, labels)[0]
  chosen = upsampled.choose_form(platform, kernel=f"{platform} kernel" in forms)
  return (x,), forms, chosen
