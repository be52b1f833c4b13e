"""Training through `flax.nnx.bridge.ToNNX` is training in Linen: loss, parameters and statistics."""

import jax
import numpy as np
import optax
from flax import nnx, traverse_util

from jaxseg.losses import cross_entropy
from tests.hub.small import init


def test_training_steps_through_the_bridge_equal_the_linen_ones():
  model, variables = init(num_classes=3)
  images = np.random.default_rng(0).normal(size=(2, 2, 32, 32, 3)).astype(np.float32)
  labels = np.random.default_rng(1).integers(0, 3, (2, 2, 32, 32))
  tx = optax.sgd(0.1, momentum=0.9)

  def make():
    return nnx.bridge.lazy_init(nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)), images[0], train=False)

  # Shapes alone, then the values that Linen has.
  bridge = nnx.eval_shape(make)
  flat = {}
  for collection in variables.values():
    flat |= traverse_util.flatten_dict(collection)
  state = nnx.state(bridge, (nnx.Param, nnx.BatchStat))
  nnx.update(bridge, nnx.from_flat_state([(p, v.replace(flat[p])) for p, v in nnx.to_flat_state(state)]))
  nnx.update(bridge, {"to_nnx__rngs": nnx.state(nnx.Rngs(0))})
  optimizer = nnx.Optimizer(bridge, tx, wrt=nnx.Param)

  @nnx.jit
  def nnx_step(bridge, optimizer, image, label):
    def loss_fn(bridge):
      return cross_entropy(bridge(image, train=True, mutable=["batch_stats"])["logits"], label)

    loss, gradients = nnx.value_and_grad(loss_fn)(bridge)
    optimizer.update(bridge, gradients)
    return loss

  @jax.jit
  def linen_step(variables, opt_state, image, label):
    def loss_fn(params):
      own = {**variables, "params": params}
      out, changed = model.apply(own, image, train=True, mutable=["batch_stats"])
      return cross_entropy(out["logits"], label), changed

    (loss, changed), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(gradients, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state, loss

  before, opt_state = variables, tx.init(variables["params"])
  for image, label in zip(images, labels, strict=True):
    variables, opt_state, loss = linen_step(variables, opt_state, image, label)
    np.testing.assert_allclose(nnx_step(bridge, optimizer, image, label), loss, rtol=1e-6)
  found = {p: v.get_value() for p, v in nnx.to_flat_state(nnx.state(bridge, (nnx.Param, nnx.BatchStat)))}
  for name, collection in variables.items():
    for path, value in traverse_util.flatten_dict(collection).items():
      np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg="/".join(path))
      assert name == "params" or not np.array_equal(value, traverse_util.flatten_dict(before[name])[path])
