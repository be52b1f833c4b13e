"""Reads weight files one after the other, as named on stdin, and says of each what came of it.

A process of its own, so that a file which crashes, hangs or fills memory is seen as such. Every
program start, connection and opened-for-writing file is noticed by an audit hook.
"""

import hashlib
import json
import resource
import sys
import time

import numpy as np

import jaxseg
from jaxseg.errors import UserError
from jaxseg.pretrained import tree

_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "exec", "compile")
_LIMIT = 1 << 30
_seen: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
  writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
  if writes or event in _EVENTS:
    _seen.append(f"{event} {str(arguments)[:80]}")


def _values(variables) -> str:
  digest = hashlib.sha256()
  for path, leaf in sorted(tree.flat(variables).items()):
    digest.update(path.encode() + np.asarray(leaf, np.float32).tobytes())
  return digest.hexdigest()


def main() -> None:
  jaxseg.from_pretrained(sys.argv[1])  # what is imported and traced once is no file's doing
  size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (size + _LIMIT, size + _LIMIT))
  sys.addaudithook(_audit)
  print("ready", flush=True)
  for line in sys.stdin:
    _seen.clear()
    start = time.process_time()  # other work on the machine is no file's doing
    result = {}
    try:
      result["values"] = _values(jaxseg.from_pretrained(line.rstrip("\n")).variables)
    except UserError as error:
      result["sentence"] = str(error)
    except BaseException as error:  # any other exception is what the test looks for
      result["raised"] = f"{type(error).__name__}: {error}"[:300]
    # Importing a module of ours late compiles it; a file has no say in that.
    result["ran"] = [event for event in _seen if not event.startswith(("exec", "compile"))]
    result["seconds"] = time.process_time() - start
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
