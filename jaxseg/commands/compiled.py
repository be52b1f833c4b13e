"""The folder of compiled programs, so that the same run need not be compiled again when it goes on."""

import contextlib
import hashlib
import importlib
import pathlib
import platform
import warnings
import zlib

import jax
import ml_collections

from jaxseg.errors import UserError

DEFAULT_FOLDER = "~/.cache/jaxseg/compiled"
OFF = "off"

_MARK = "last-swept"
_SUFFIX = "-cache"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def use_cache(config: ml_collections.ConfigDict) -> str:
  """Switches JAX's persistent compilation cache on for this process, as `config.compilation_cache` says.

  For programs such as train.py: a library that is imported leaves its user's settings alone. A folder that
  JAX was given already (JAX_COMPILATION_CACHE_DIR, `jax_compilation_cache_dir`) stays, unless the config
  names one.

  Args:
    config: of the run.

  Returns:
    The folder; "" for none.

  Raises:
    UserError: the folder that the config names cannot be written.
  """
  asked = config.get("compilation_cache", "")
  if asked == OFF:
    jax.config.update("jax_enable_compilation_cache", False)
    return ""
  given = jax.config.jax_compilation_cache_dir
  folder = asked or given or str(pathlib.Path(DEFAULT_FOLDER).expanduser() / _machine())
  # An entry that cannot be read is compiled again, which needs no warning.
  warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
  if "://" not in folder:
    try:
      _sweep(pathlib.Path(folder))
    except OSError as error:
      if asked:
        reason = error.strerror or error
        raise UserError(
          f"config.compilation_cache is {asked!r}, which cannot be written ({reason}); name another folder,"
          f" or {OFF!r}"
        ) from None
      return ""  # a read-only home, a full disk: without a cache a run is only slower
  jax.config.update("jax_compilation_cache_dir", folder)
  return folder


def _machine() -> str:
  """Programs for a CPU are of its very kind, and a home may be shared by several."""
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    about = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    digest = hashlib.sha256("\n".join(sorted(set(about))).encode()).hexdigest()[:8]
    return f"{platform.machine()}-{digest}"
  return platform.machine()


def _sweep(folder: pathlib.Path) -> None:
  """Removes half entries, which JAX does not write whole at once: a kill leaves them, and they would stay.

  Only what is newer than the last look is looked at. Of a file that another process is writing, that process
  keeps what it has compiled, and the next one compiles again.
  """
  folder.mkdir(parents=True, exist_ok=True)
  mark = folder / _MARK
  since = mark.stat().st_mtime - 1 if mark.exists() else 0.0
  mark.touch()
  for entry in folder.glob(f"*{_SUFFIX}"):
    with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
      if entry.stat().st_mtime >= since and not _is_whole(entry.read_bytes()):
        entry.unlink()


def _is_whole(data: bytes) -> bool:
  if not data.startswith(_ZSTD_MAGIC):
    stream = zlib.decompressobj()
    try:
      stream.decompress(data)
    except zlib.error:
      return False
    return stream.eof
  for name in ("compression.zstd", "zstandard"):  # one of them wrote it
    with contextlib.suppress(ImportError):
      decompress = importlib.import_module(name).decompress
      try:
        decompress(data)
      except Exception:  # each has an error of its own
        return False
      return True
  return True
