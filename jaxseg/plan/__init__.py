"""What a training step needs and does, known before a chip is rented.

`plan_step` compiles a step ahead of time, for devices that need not be there, and counts on the
optimised program. It knows nothing of configs: `jaxseg plan` puts it together with `train.py`'s step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxseg import sharding
from jaxseg.plan.cost import Cost, count, largest
from jaxseg.plan.fit import Attempt, Largest, attempt, largest_batch
from jaxseg.plan.hlo import parse
from jaxseg.plan.meshes import advice
from jaxseg.plan.report import report, step_seconds
from jaxseg.plan.topology import Topology, open_topology

__all__ = [
  "Attempt",
  "Cost",
  "Largest",
  "Topology",
  "advice",
  "count",
  "device_bytes",
  "largest",
  "open_topology",
  "parse",
  "plan_step",
  "step_seconds",
]


def plan_step(
  lower: Callable[[int], jax.stages.Lowered],
  topology: Topology,
  mesh: Mesh,
  *,
  batch_size: int,
  image: tuple[int, int],
  state: Mapping[str, float | int] | None = None,
  about: Mapping[str, str] | None = None,
  unit: int | None = None,
  compiles: int = 0,
  dump: str = "",
  top: int = 0,
) -> list[str]:
  """Compiles a step for a mesh of the topology, and says what it takes: a line for each fact.

  Args:
    lower: batch size → the lowered step.
    topology: what `open_topology` gives.
    mesh: over (some of) its devices.
    batch_size: images a step, over all devices.
    image: rows, columns of them.
    state: what of the arguments → its bytes on one device (`device_bytes`).
    about: further facts about the step, name → text.
    unit: batches are multiples of it; None takes the groups of devices with different images.
    compiles: further compilations that may be spent on finding the largest batch.
    dump: file for the text of the first optimised program; "" writes none.
    top: how many of the instructions that move most to list.
  """
  chip = dict(memory=topology.memory, vector_memory=topology.vector_memory)
  first = attempt(lower, batch_size, **chip, dump=dump, top=top)
  unit = unit or mesh.shape["data"] * mesh.shape["fsdp"]
  largest = None
  if topology.memory:
    largest = largest_batch(
      first,
      lambda size: attempt(lower, size, **chip),
      unit=unit,
      memory=topology.memory,
      compiles=compiles,
    )
  return report(
    topology,
    mesh,
    first,
    image=image,
    state=dict(state or {}),
    about=dict(about or {}),
    largest=largest,
    batch_unit=unit,
  )


def device_bytes(tree: Any, mesh: Mesh | AbstractMesh) -> float:
  """Bytes that one device of the mesh holds of a tree of arrays (or shapes), split as training splits it."""
  leaves, shardings = jax.tree.leaves(tree), jax.tree.leaves(sharding.state_sharding(tree, mesh))
  return float(
    sum(
      np.prod(s.shard_shape(leaf.shape), dtype=float) * leaf.dtype.itemsize
      for leaf, s in zip(leaves, shardings, strict=True)
    )
  )
