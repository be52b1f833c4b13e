"""A folder with a page that segments images in the browser, by ONNX Runtime Web; nothing is uploaded."""

import base64
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request

import numpy as np

from jaxseg.errors import UserError
from jaxseg.export import onnx
from jaxseg.export.program import Program

RUNNER = onnx.RUNNER
PAGE = pathlib.Path(__file__).parent / "page"

_VERSION = "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{_VERSION}.tgz"
# Of the package: the library, and the runtime that it loads.
_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def write(program: Program, path: pathlib.Path) -> pathlib.Path:
  """Writes index.html, the model, its classes, and ONNX Runtime Web with its licence; gives the model's path.

  Raises:
    UserError: ONNX Runtime Web cannot be fetched.
  """
  path.mkdir()
  vendor = path / "onnxruntime-web"
  vendor.mkdir()
  with tarfile.open(fileobj=io.BytesIO(_package())) as package:
    for name in _FILES:
      (vendor / name).write_bytes(package.extractfile(f"package/dist/{name}").read())
  shutil.copyfile(PAGE / "onnxruntime-web.LICENSE", vendor / "LICENSE")
  for name in ("index.html", "page.js", "page.css"):
    shutil.copyfile(PAGE / name, path / name)
  net = program.net
  about = {
    "model": net.arch,
    "classes": list(net.classes),
    "palette": np.asarray(net.palette).tolist(),
    "size": None if program.symbolic else list(program.shape[1:3]),
    "licence": net.licence,
  }
  (path / "model.json").write_text(json.dumps(about, indent=1) + "\n")
  return onnx.write(program, path / "model.onnx")


def _package() -> bytes:
  """The published npm package: by npm, which knows proxies and mirrors, or straight from its registry."""
  npm = shutil.which("npm")
  data = b""
  if npm is not None:
    with tempfile.TemporaryDirectory() as folder:
      words = [npm, "pack", f"onnxruntime-web@{_VERSION}", "--silent"]
      subprocess.run(words, cwd=folder, capture_output=True, check=False)
      data = b"".join(file.read_bytes() for file in pathlib.Path(folder).glob("*.tgz"))
  if not data:
    try:
      with urllib.request.urlopen(_ADDRESS, timeout=60) as answer:
        data = answer.read()
    except (urllib.error.URLError, OSError) as error:
      raise UserError(
        f"onnxruntime-web {_VERSION} cannot be fetched from the npm registry ({error}); install npm, which"
        " knows your proxy or mirror, or run this where the registry is reachable"
      ) from None
  if base64.b64encode(hashlib.sha512(data).digest()).decode() != _SHA512:
    raise UserError(
      f"what the npm registry gives for onnxruntime-web {_VERSION} has another checksum than the package had"
      " when it was looked at; nothing of it was used"
    )
  return data
