"""House rules that a machine can check: one-way imports, short files, light imports, no work on import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxseg"

# Each room may import the rooms on earlier lines, and itself; not its neighbours on the same line.
LAYERS = [
  ["errors"],
  ["types", "lazy", "chips", "classes", "console"],
  ["catalog", "bucket"],
  ["ops", "sharding"],
  ["layers"],
  ["losses", "metrics"],
  ["encoders", "decoders", "data", "pretrained", "crf", "checkpoint"],
  ["models", "macs"],
  ["evaluation"],
  ["hub"],
  ["config", "export"],
  ["train", "plan"],
  ["commands"],
  ["cli"],
  ["__main__"],
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def python_files() -> list[pathlib.Path]:
  folders = [PACKAGE, ROOT / "tests", ROOT / "configs", ROOT / "benchmarks"]
  return [f for folder in folders for f in folder.rglob("*.py")] + [ROOT / "train.py", ROOT / "eval.py"]


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: pathlib.Path) -> set[str]:
  rooms = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxseg":
      assert node.level == 0, f"{path}: relative import"
      parts = node.module.split(".")
      rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    elif isinstance(node, ast.Import):
      for alias in node.names:
        parts = alias.name.split(".")
        if parts[0] == "jaxseg":
          rooms |= set(parts[1:2])
  return rooms - {"__version__"}  # the package itself is below every room


def test_every_room_has_a_rank():
  found = {room_of(f) for f in PACKAGE.rglob("*.py")} - {"__init__"}
  assert found <= set(RANK), f"rooms without a place in the order: {sorted(found - set(RANK))}"


def test_imports_go_one_way():
  wrong = []
  for path in PACKAGE.rglob("*.py"):
    room = room_of(path)
    if room == "__init__":
      continue
    for other in imported_rooms(path) - {room}:
      if RANK.get(other, 99) >= RANK[room]:
        wrong.append(f"{path.relative_to(ROOT)} imports {other}")
  assert not wrong, "\n".join(wrong)


def test_the_rule_would_notice():
  """The check itself sees a forbidden import in every form it is written."""
  for line in ("from jaxseg.train import loop", "import jaxseg.train.loop", "from jaxseg import train"):
    tree = PACKAGE / "never_written.py"

    class Fake(type(tree)):
      def read_text(self, *args, line=line, **kwargs):
        return line

    assert imported_rooms(Fake(tree)) == {"train"}, line


# Files over 400 lines, with the reason.
LONG = {"jaxseg/pretrained/readers/unpickle.py": "one interpreter of pickles, with its budgets"}


def test_files_are_short():
  long = {str(f.relative_to(ROOT)): n for f in python_files() if (n := len(f.read_text().splitlines())) > 400}
  assert set(long) == set(LONG), long


# Names with an underscore that their library documents.
DOCUMENTED = {"os._exit"}
OURS = {"jaxseg", "configs", "tests", "benchmarks"}


def private_names(source: str) -> list[str]:
  """What a file imports or reads of other libraries under a name that begins with one underscore."""
  found, modules = [], set()
  private = lambda name: name.startswith("_") and not name.startswith("__")  # noqa: E731
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
      modules |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      if (node.module or "").split(".")[0] not in OURS:  # a class may have them of its own, a module not
        modules |= {alias.asname or alias.name for alias in node.names}
    else:
      continue
    theirs = [name for name in names if name.split(".")[0] not in OURS]
    found += [name for name in theirs if any(map(private, name.split(".")))]
  modules -= OURS
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and private(node.attr):
      root = node.value
      while isinstance(root, ast.Attribute):
        root = root.value
      if isinstance(root, ast.Name) and root.id in modules:
        found.append(ast.unparse(node))
  return found


def test_only_public_names_of_other_libraries():
  files = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
  found = {f"{f.relative_to(ROOT)}: {name}" for f in files for name in private_names(f.read_text())}
  assert not {line for line in found if line.split(": ")[1] not in DOCUMENTED}


@pytest.mark.parametrize(
  "source",
  ["from jax._src import core", "import jax._src.core", "import jax\njax.core._x", "from a import _b"],
)
def test_private_names_would_be_noticed(source):
  assert private_names(source)


def test_no_postponed_annotations():
  """Jaxtyping's shape strings need real annotations (its FAQ)."""
  wrong = [f for f in PACKAGE.rglob("*.py") if "from __future__ import annotations" in f.read_text()]
  assert not wrong, wrong


HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "cv2", "orbax", "torch", "matplotlib", "tensorboardX")


@pytest.mark.parametrize(
  "statement",
  [
    "import jaxseg",
    "import jaxseg.encoders",
    "import jaxseg.decoders",
    "import jaxseg.data",
    "import jaxseg.crf",
    "import jaxseg.losses",
    "import jaxseg.metrics",
    "import jaxseg; jaxseg.create_model('cgnet_m3n21', num_classes=19); jaxseg.list_models()",
    "import jaxseg; jaxseg.from_pretrained; jaxseg.load_pretrained; jaxseg.to_torch",
  ],
)
def test_imports_are_light(statement):
  """No backend is started, and nothing of the training stack is loaded."""
  code = (
    f"{statement}\n"
    "import sys\n"
    f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
    "assert not heavy, heavy\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge.backends_are_initialized(), 'a backend was started'\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr


def test_core_dependencies_suffice():
  """With the core alone (Flax brings Orbax and absl) models, weights, list, info work; training does not."""
  code = f"""
import sys
for name in {(*(m for m in HEAVY if m != "orbax"), "ml_collections", "tqdm", "PIL", "huggingface_hub")!r}:
  sys.modules[name] = None  # importing it raises ModuleNotFoundError
import jax, jax.numpy as jnp
import jaxseg, jaxseg.encoders, jaxseg.crf, jaxseg.losses, jaxseg.metrics, jaxseg.hub
model = jaxseg.create_model("cgnet_m3n21", num_classes=3, encoder=dict(num_blocks=(1, 1)))
jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
try:
  jaxseg.data.train_batches
except ModuleNotFoundError as error:
  print(error)
from jaxseg import cli
for words in (["--help"], ["list"], ["info", "cgnet_m3n21", "--params", "--layout=mmseg"]):
  cli.main(words)
try:
  cli.main(["train", "--config=segnext_ade20k:tiny", "--workdir=never"])
finally:
  print("asked")
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
  assert "Traceback" not in done.stderr, done.stderr
  assert "pip install 'jaxseg[train]' brings it" in done.stdout, done.stdout
  for words in (
    "usage: jaxseg COMMAND",
    "segnext_tiny ",
    "496,306 parameters",
    "decode_head.conv_seg.weight",
  ):
    assert words in done.stdout, words
  assert done.returncode == 2 and done.stdout.endswith("asked\n"), done.stderr
  assert len(done.stderr.splitlines()) == 1 and "pip install 'jaxseg[train]'" in done.stderr, done.stderr
