"""Shared fixtures: the folder of reference material, and a compilation cache for the run."""

import gc
import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Two thirds of a test's time was XLA compiling. Without LLVM's optimisation, and without the emitters that
# pass each fusion through MLIR, the gradients of MiT-B0 compile in a tenth of the processor's time. Values
# are those of the operations all the same; what is timed (benchmarks/) is compiled in full.
_FLAGS = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # JAX 0.12 ends at a flag that it no longer knows
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

import jax  # noqa: E402
import pytest  # noqa: E402

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The reference folder beside the checkout; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f"reference folder {SHARED.name}/ is not beside the checkout")
  return SHARED


@pytest.fixture(scope="module", autouse=True)
def small_heap():
  """Drops programs and traces of a module behind it: the collector would go through them again and again."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture
def quick_depthwise(monkeypatch):
  """TPUs' and GPUs' form of depthwise convolutions: that of CPUs, taps written out, XLA compiles for minutes.

  For tests of something else; tests/ops compares the forms, and parity is compared with the CPU's.
  """
  from jaxseg.ops import depthwise  # not before the type checks of --jaxtyping-packages are on

  monkeypatch.setattr(depthwise, "choose_form", lambda *arguments: "lax")
