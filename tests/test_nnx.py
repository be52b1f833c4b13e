"""A training step through `flax.nnx.bridge.ToNNX` is the Linen one."""

import jax
import numpy as np
import optax
from flax import nnx

import jaxseg
from jaxseg.losses import cross_entropy
from tests.hub.small import TINY


def test_a_training_step_through_the_bridge_equals_the_linen_one():
  model = jaxseg.create_model("cgnet_m3n21", num_classes=3, encoder=TINY)
  images = np.random.default_rng(0).normal(size=(2, 2, 32, 32, 3)).astype(np.float32)
  labels = np.random.default_rng(1).integers(0, 3, (2, 2, 32, 32))
  variables = model.init(jax.random.key(0), images[0], train=False)
  tx = optax.sgd(0.1, momentum=0.9)

  bridge = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images[0], train=False)
  _fill(bridge, variables)
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
      own = {"params": params, "batch_stats": variables["batch_stats"]}
      out, changed = model.apply(own, image, train=True, mutable=["batch_stats"])
      return cross_entropy(out["logits"], label), changed

    (loss, changed), gradients = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = tx.update(gradients, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state, loss

  opt_state = tx.init(variables["params"])
  for image, label in zip(images, labels, strict=True):
    variables, opt_state, loss = linen_step(variables, opt_state, image, label)
    np.testing.assert_allclose(nnx_step(bridge, optimizer, image, label), loss, rtol=1e-6)
  collections = nnx.bridge.nnx_attrs_to_linen_vars(nnx.to_pure_dict(nnx.state(bridge)))
  print(collections.keys())


def _fill(bridge, variables):
  pass
