"""The train state, and the training step: pure, and compiled once for a mesh."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxseg.errors import UserError
from jaxseg.sharding import BATCH_AXES, batch_shardings, put, replicated, state_sharding
from jaxseg.train.loss import LossFn
from jaxseg.train.optimizer import frozen_norms, frozen_paths, keep_statistics, path_of
from jaxseg.types import Batch


class TrainState(flax.struct.PyTreeNode):
  """Step, parameters, the model's other collections, and the optimizer's state.

  Attributes:
    step: updates made so far.
    params: what the optimizer changes.
    model_state: collection → tree for everything else ("batch_stats", "buffers").
    opt_state: the optimizer's.
    apply_fn: the model's `apply`; not part of the tree, and so not of a checkpoint.
    tx: the optimizer; the same.
    ema: the parameters' exponential moving average, of their shapes; None when none is kept.
  """

  step: Any  # int32 scalar; Any, like the rest, since trees of shapes and shardings take this form too
  params: Any
  model_state: dict[str, Any]
  opt_state: Any
  apply_fn: Callable = flax.struct.field(pytree_node=False)
  tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
  ema: Any = None

  @property
  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {"params": self.params, **self.model_state}

  @property
  def eval_variables(self) -> dict[str, Any]:
    """What is evaluated and shipped: the moving average's parameters where there is one."""
    return {**self.variables, "params": self.params if self.ema is None else self.ema}


def create_state(
  model: nn.Module, variables: Mapping[str, Any], tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
  """The state before the first step, of `model.init`'s variables.

  Args:
    model: whose `apply` the step calls.
    variables: what `model.init(key, image, train=False)` gives, or weights of that structure.
    tx: what `make_optimizer` gives.
    ema: keep a moving average of the parameters, for a step with an `ema_decay`; it starts as a copy.

  Raises:
    UserError: variables without parameters.
  """
  if "params" not in variables:
    raise UserError(
      f"variables hold {sorted(variables)} and no 'params';"
      " pass what model.init(key, image, train=False) gives"
    )
  params = variables["params"]
  return TrainState(
    step=_zero(),
    params=params,
    model_state={name: tree for name, tree in variables.items() if name != "params"},
    opt_state=tx.init(params),
    apply_fn=model.apply,
    tx=tx,
    ema=jax.tree.map(jnp.copy, params) if ema else None,
  )


def _zero() -> Array:
  return jnp.zeros((), jnp.int32)


Scalars = dict[str, Array]
Step = Callable[[TrainState, Batch, Array], tuple[TrainState, Scalars]]
Prepare = Callable[[Batch, Array], Batch]


def make_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  prepare: Prepare | None = None,
  streams: Sequence[str] = ("dropout",),
  frozen: Sequence[str] = (),
  ema_decay: float = 0.0,
  accumulate: int = 1,
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
    frozen: what `make_optimizer` was given: a parameter that one of these regexes fullmatches gets no
      gradient, and a BatchNorm whose parameters all match uses and keeps its stored statistics.
    ema_decay: d of the moving average ema ← d·ema + (1 − d)·params after each update, for a state that was
      created with `ema=True`; 0 for none.
    accumulate: micro-batches into which a batch is cut, one after the other, for its gradients' mean; it must
      divide the batch. The loss is the mean of theirs and BatchNorm sees one at a time, as with iter_size
      in Caffe; without BatchNorm, and with as many labelled pixels in each, the update is that of the
      whole batch.

  Scalars: loss; loss/MAP for each supervised map, before its weight; grad_norm, of all
  gradients before clipping; finite, whether loss and every gradient are; params_finite, whether every
  parameter and statistic is after the update.

  Raises:
    UserError: a value out of its range; when traced, a pattern that matches nothing, a batch that
      `accumulate` does not divide, or a state that has no average for `ema_decay`, or one for none.
  """
  if not 0.0 <= ema_decay < 1.0:
    raise UserError(f"ema_decay is {ema_decay}, expected a share in [0, 1), such as 0.999; 0 keeps none")
  if accumulate < 1:
    raise UserError(f"accumulate is {accumulate}, expected at least 1 micro-batch a step")

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Scalars]:
    _check_average(state, ema_decay)
    key = jax.random.fold_in(key, state.step)
    prepare_key, model_key = jax.random.split(key)
    if prepare is not None:
      batch = prepare(batch, prepare_key)
    still = frozen_paths(state.params, frozen)
    norms = frozen_norms(state.params, still)

    def gradients(model_state, batch, key):
      rngs = dict(zip(streams, jax.random.split(key, max(len(streams), 1)), strict=False))

      def objective(params):
        params = _hold(params, still)
        with keep_statistics(norms) if norms else contextlib.nullcontext():
          outputs, changed = state.apply_fn(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs=rngs,
            mutable=list(model_state),
          )
        loss, parts = loss_fn(outputs, batch["label"])
        return loss, (parts, changed)

      (loss, (parts, changed)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
      return (loss, parts, grads), {**model_state, **changed}

    if accumulate == 1:
      (loss, parts, grads), model_state = gradients(state.model_state, batch, model_key)
    else:
      (loss, parts, grads), model_state = _accumulated(
        gradients, state.model_state, batch, model_key, accumulate
      )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    grad_norm = optax.tree.norm(grads)
    scalars = {"loss": loss, **{f"loss/{key}": part for key, part in parts.items()}}
    # A norm is finite only when every gradient is.
    scalars |= {"grad_norm": grad_norm, "finite": jnp.isfinite(loss) & jnp.isfinite(grad_norm)}
    params = optax.apply_updates(state.params, updates)
    if still:
      params = jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if path_of(path) in still else new, params, state.params
      )
    state = state.replace(step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state)
    scalars |= {"params_finite": _all_finite((params, model_state))}
    if ema_decay:
      # From the difference, which is 0 to the bit where nothing moved.
      average = jax.tree.map(lambda old, new: old + (1.0 - ema_decay) * (new - old), state.ema, params)
      state = state.replace(ema=average)
    return state, scalars

  return step


def _all_finite(tree: Any) -> Array:
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _hold(params: Any, still: frozenset[str]) -> Any:
  """`params` with no derivative for those that stay, so that none is computed."""
  if not still:
    return params
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jax.lax.stop_gradient(x) if path_of(path) in still else x, params
  )


def _accumulated(gradients: Callable, model_state: Any, batch: Batch, key: Array, count: int) -> Any:
  """`gradients` of `count` parts of the batch in turn: means of what they give, and the last model state."""
  parts = {name: _parts(x, count) for name, x in batch.items()}

  def add(carry, part):
    total, model_state = carry
    index, part = part
    given, model_state = gradients(model_state, part, jax.random.fold_in(key, index))
    return (jax.tree.map(jnp.add, total, given), model_state), None

  first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
  shapes = jax.eval_shape(lambda *args: gradients(*args)[0], model_state, first, key)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (total, model_state), _ = jax.lax.scan(add, (zeros, model_state), (jnp.arange(count), parts))
  return jax.tree.map(lambda x: x / count, total), model_state


def _parts(x: Array, count: int) -> Array:
  """Part i is every `count`-th row from i on, so that each device has rows of its own in each part."""
  if x.shape[0] % count:
    raise UserError(f"a batch of {x.shape[0]} cannot be cut into accumulate={count} parts of one size")
  parts = jnp.moveaxis(jnp.reshape(x, (x.shape[0] // count, count, *x.shape[1:])), 1, 0)
  if set(BATCH_AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
    others = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    parts = jax.lax.with_sharding_constraint(parts, PartitionSpec(None, BATCH_AXES, *others))
  return parts


def _check_average(state: TrainState, ema_decay: float) -> None:
  if ema_decay and state.ema is None:
    raise UserError(f"ema_decay is {ema_decay}, but the state has no average; create_state(..., ema=True)")
  if not ema_decay and state.ema is not None:
    raise UserError("the state keeps an average, but the step has no ema_decay; give make_step one")


def jit_step(step: Step, mesh: Mesh, state: TrainState, *, min_elements: int | None = None) -> Step:
  """`step` compiled for the mesh: it donates its state, and compiles once for each batch shape.

  Args:
    step: what `make_step` gives.
    mesh: see `jaxseg.sharding.make_mesh`.
    state: the state it will be given, or its shapes; place it with `jaxseg.sharding.place`, which
      also keeps the caller's own arrays from being donated.
    min_elements: what `place` was given.

  The step's batch is what `jaxseg.sharding.to_global` gives; in one process also arrays of the host.
  """
  shardings = state_sharding(state, mesh, min_elements=min_elements)
  whole = replicated(mesh)
  compiled = jax.jit(
    step,
    # The batch as it comes: which rows can be split, its shapes say.
    in_shardings=(shardings, None, whole),
    out_shardings=(shardings, whole),
    donate_argnums=0,
  )

  def run(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Scalars]:
    placed = put(dict(batch), batch_shardings(batch, mesh))
    with jax.set_mesh(mesh):
      return compiled(state, placed, key)

  def lower(state: TrainState, batch: Mapping[str, Any], key: Any) -> jax.stages.Lowered:
    layout = batch_shardings(batch, mesh)
    shapes = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout[name]) for name, x in batch.items()
    }
    with jax.set_mesh(mesh):
      return compiled.lower(state, shapes, key)

  run.lower = lower
  return run
