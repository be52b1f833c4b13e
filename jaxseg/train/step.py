"""The training step: pure, and compiled once for a mesh."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxseg.sharding import MIN_SPLIT_ELEMENTS, batch_sharding, replicated, state_sharding
from jaxseg.train.loss import LossFn
from jaxseg.train.state import TrainState
from jaxseg.types import Batch

Scalars = dict[str, Array]
Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Scalars]]
Prepare = Callable[[Batch, Array], Batch]


def make_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  prepare: Prepare | None = None,
  streams: Sequence[str] = ("dropout", "drop_path"),
) -> Step:
  """(state, batch, key) → (state, scalars); not yet compiled, see `jit_step`.

  Randomness is a function of `key` and the step alone, so that a resumed run draws the same.
  Under a mesh the batch is global, and so are BatchNorm's statistics and the loss's mean.

  Args:
    loss_fn: what `make_loss` gives.
    tx: the optimizer whose state the train state holds.
    prepare: (batch, key) → batch with a normalised float image, on the device; None when
      the batch comes ready.
    streams: random streams that the model may draw from. "nmf" is not among them by default:
      with it, Light-Ham's bases are redrawn at every step, without it the stored ones are used.

  Scalars: loss; loss/MAP for each supervised map, before its weight; grad_norm, of all
  gradients before clipping; finite, whether loss and every gradient are.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Scalars]:
    key = jax.random.fold_in(key, state.step)
    prepare_key, model_key = jax.random.split(key)
    if prepare is not None:
      batch = prepare(batch, prepare_key)
    rngs = dict(zip(streams, jax.random.split(model_key, max(len(streams), 1)), strict=False))

    def objective(params):
      outputs, changed = state.apply_fn(
        {"params": params, **state.model_state},
        batch["image"],
        train=True,
        rngs=rngs,
        mutable=list(state.model_state),
      )
      loss, parts = loss_fn(outputs, batch["label"])
      return loss, (parts, changed)

    (loss, (parts, changed)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    scalars = {"loss": loss, **{f"loss/{key}": part for key, part in parts.items()}}
    # A norm is finite only when every gradient is.
    scalars |= {"grad_norm": grad_norm, "finite": jnp.isfinite(loss) & jnp.isfinite(grad_norm)}
    state = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state={**state.model_state, **changed},
      opt_state=opt_state,
    )
    return state, scalars

  return step


def jit_step(step: Step, mesh: Mesh, state: TrainState, *, min_elements: int = MIN_SPLIT_ELEMENTS) -> Step:
  """`step` compiled for the mesh: it donates its state, and compiles once for each batch shape.

  Args:
    step: what `make_step` gives.
    mesh: see `jaxseg.sharding.make_mesh`.
    state: the state it will be given, or its shapes; place it with `jaxseg.sharding.place`, which
      also keeps the caller's own arrays from being donated.
    min_elements: what `place` was given.
  """
  shardings = state_sharding(state, mesh, min_elements=min_elements)
  whole = replicated(mesh)
  compiled = jax.jit(
    step,
    in_shardings=(shardings, batch_sharding(mesh), whole),
    out_shardings=(shardings, whole),
    donate_argnums=0,
  )

  def run(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Scalars]:
    with jax.set_mesh(mesh):
      return compiled(state, batch, key)

  run.lower = lambda *args: _under(mesh, compiled.lower, *args)
  return run


def _under(mesh: Mesh, function: Callable, *args):
  with jax.set_mesh(mesh):
    return function(*args)
