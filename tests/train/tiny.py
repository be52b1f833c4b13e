"""A model that compiles in a blink, with all that a step must carry: BatchNorm, dropout, a buffer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Tiny(nn.Module):
  """Two convolutions, stride 2; `aux` adds a second supervised map, `rate` dropout."""

  num_classes: int = 3
  width: int = 8
  rate: float = 0.0
  aux: bool = False

  @nn.compact
  def __call__(self, image, *, train: bool):
    x = nn.Conv(self.width, (3, 3), strides=2, padding=1, name="conv")(image)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
    x = nn.relu(x)
    x = x * self.variable("buffers", "gain", lambda: jnp.full((self.width,), 2.0)).value
    x = nn.Dropout(self.rate, deterministic=not train, name="dropout")(x)
    outputs = {"logits": nn.Conv(self.num_classes, (1, 1), name="classifier")(x)}
    if self.aux:
      outputs["aux_logits"] = nn.Conv(self.num_classes, (1, 1), name="aux")(x)
    return outputs


def variables(model, seed=0):
  """Initial variables, by a compiled init."""
  return jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(jax.random.key(seed))


def batch(seed=0, size=4, pixels=16, num_classes=3):
  """A batch whose label can be read off the image, with some pixels ignored."""
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((size, pixels // 4, pixels // 4, 3)).astype(np.float32)
  image = image.repeat(4, 1).repeat(4, 2)
  label = np.argmax(image[..., :num_classes], -1).astype(np.int32)
  label[rng.random(label.shape) < 0.1] = 255
  return {"image": image, "label": label}
