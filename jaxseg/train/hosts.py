"""What the processes of a job say to each other: values to compare, and a folder that all have to see.

They say it through the key-value store of `jax.distributed`, so that nothing is compiled and no device need
be there. In a job of one process everything here does nothing.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxseg.errors import UserError
from jaxseg.train import job as job_lib

_WAIT_MILLISECONDS = 5_000  # of one call to the store: Ctrl-C is seen in between
_SHOWN_DIFFERENCES = 4
_SEEN_SECONDS = 30.0  # that a network file system may take to show a file that another host has made


def gather(name: str, text: str = "") -> list[str]:
  """Every process's `text`, in their order; all of them call it, at the same place of the program.

  Waits as long as it takes: a process that will not come ends the job (`job.py`).
  """
  job = job_lib.current()
  if job is None:
    return [text]
  job.gathered += 1
  key = f"jaxseg/gather/{job.gathered}/{name}"
  if job.place.index:
    job.client.key_value_set(f"{key}/{job.place.index}", text)
    return json.loads(_get(job, f"{key}/all"))
  texts = [text] + [_get(job, f"{key}/{i}") for i in range(1, job.place.count)]
  job.client.key_value_set(f"{key}/all", json.dumps(texts))
  return texts


def _get(job: Any, key: str) -> str:
  while True:
    try:
      return job.client.blocking_key_value_get(key, _WAIT_MILLISECONDS)
    except RuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def check_same(values: Mapping[str, Any]) -> None:
  """Compares what has to be the same in every process: {what it is called: a value that JSON can hold}.

  Raises:
    UserError: on every process, with what differs between process 0 and this one (or the first that does).
  """
  mine = json.dumps(values, sort_keys=True, default=str)
  digests = gather("digests", hashlib.sha256(mine.encode()).hexdigest())
  differ = [i for i, digest in enumerate(digests) if digest != digests[0]]
  if not differ:
    return
  everyone = [json.loads(text) for text in gather("values", mine)]
  index = job_lib.current().place.index
  other = index if index in differ else differ[0]
  raise UserError(
    f"the processes of the job do not agree: {_differences(everyone[0], everyone[other], other)}; give the"
    " same command, files and version on every host"
  )


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> str:
  keys = [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]
  texts = [
    f"{key} is {_shown(first, key)} on process 0 and {_shown(other, key)} on process {number}"
    for key in keys[:_SHOWN_DIFFERENCES]
  ]
  more = len(keys) - len(texts)
  return ", ".join(texts) + (f", and {more} more" if more else "")


def _shown(values: Mapping[str, Any], key: str) -> str:
  return repr(values[key]) if key in values else "missing"


def check_shared(folder: epath.PathLike) -> None:
  """Every process sees what process 0 writes in `folder`, which exists there and is writable.

  Raises:
    UserError: on every process, naming those that do not.
  """
  job = job_lib.current()
  if job is None:
    return
  first = job.place.index == 0
  name = gather("probe", f".shared-{uuid.uuid4().hex}")[0]
  probe = epath.Path(folder) / name
  if first:
    probe.write_text("every process of the job has to see this file")
  gather("probe written")
  blind = [i for i, seen in enumerate(gather("probe seen", str(_appears(probe)))) if seen != "True"]
  if first:
    probe.unlink()
  if blind:
    raise UserError(
      f"workdir {str(folder)!r} of process 0 is not the one of process"
      f"{'es' * (len(blind) > 1)} {', '.join(map(str, blind))}: they do not see what it writes; choose a"
      " --workdir that all hosts share, on a bucket (gs://) or a network file system"
    )


def _appears(path: epath.Path) -> bool:
  deadline = time.monotonic() + _SEEN_SECONDS
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.5)
  return True
