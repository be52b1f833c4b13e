"""Shared fixtures: the folder of reference material, and a compilation cache for the run."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import pytest  # noqa: E402

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The reference folder beside the checkout; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f"reference folder {SHARED.name}/ is not beside the checkout")
  return SHARED
