"""Both methods against the definition, pydensecrf's stored results, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.crf import lattice_sizes, mean_field
from jaxseg.crf.exact import gaussian_matmul
from jaxseg.crf.inputs import check_arrays
from jaxseg.crf.permutohedral import sort_packed, sort_plain
from tests.crf.conftest import KERNELS, dense_mean_field


def test_exact_is_the_definition(case):
  got = mean_field(*case, KERNELS, steps=4)
  np.testing.assert_allclose(got, dense_mean_field(*case, KERNELS, 4), atol=1e-5)


def test_no_steps_is_softmax(case):
  np.testing.assert_allclose(mean_field(*case, KERNELS, 0), jax.nn.softmax(-case[0], axis=-1), atol=1e-6)


def test_penalties_of_minus_identity_are_potts(case):
  full = [(sxy, srgb, -w * np.eye(3, dtype=np.float32)) for sxy, srgb, w in KERNELS]
  np.testing.assert_allclose(mean_field(*case, full, 3), mean_field(*case, KERNELS, 3), atol=1e-5)


def test_asymmetric_penalties_are_the_definition(case):
  mu = np.asarray([[0.0, 2.0, 0.5], [0.3, 0.0, 1.0], [1.5, 0.2, 0.0]])
  kernels = [(s, c, mu) for s, c, _ in KERNELS]
  got = mean_field(*case, kernels, 3)
  np.testing.assert_allclose(got, dense_mean_field(*case, kernels, 3), atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_batch_and_jit_equal_single_images(case, method):
  unary, image = case
  unaries, images = np.stack([unary, unary[::-1]]), np.stack([image, image[:, ::-1]])
  one_by_one = np.stack([mean_field(u, i, KERNELS, 3, method) for u, i in zip(unaries, images, strict=True)])
  batch = jax.jit(lambda u, i: mean_field(u, i, KERNELS, 3, method))(unaries, images)
  np.testing.assert_allclose(batch, one_by_one, atol=2e-6)
  assert batch.shape == unaries.shape


def test_zero_srgb_and_none_are_position_only(case):
  kernels = np.asarray([[3.0, 0.0, 3.0]])
  np.testing.assert_array_equal(mean_field(*case, kernels, 2), mean_field(*case, [(3.0, None, 3.0)], 2))


def test_tiles_need_not_divide_the_pixels(monkeypatch):
  """Padding pixels weigh nothing: 100 pixels in tiles of 32 rows and 48 columns."""
  monkeypatch.setattr("jaxseg.crf.exact.ROWS", 32)
  monkeypatch.setattr("jaxseg.crf.exact.COLUMNS", 48)
  rng = np.random.default_rng(1)
  place, values = rng.normal(size=(100, 5)).astype(np.float32), rng.normal(size=(100, 4)).astype(np.float32)
  kernel = np.exp(-0.5 * ((place[:, None] - place) ** 2).sum(-1))
  np.testing.assert_allclose(
    gaussian_matmul(jnp.asarray(place), jnp.asarray(values)), kernel @ values, atol=1e-5
  )


@pytest.mark.parametrize("size", ["90x120", "240x320"])
def test_lattice_equals_pydensecrf(shared, size):
  stored = np.load(shared / "crf" / f"crf-1-{size}.npz")
  got = mean_field(stored["unary"], stored["image"], stored["kernels"], int(stored["steps"]), "lattice")
  want = stored["lattice"]
  same = np.argmax(got, -1) == want.argmax(-1)
  flipped = stored["unary"].argmin(-1) != want.argmax(-1)
  assert flipped.sum() > 1000
  assert same.mean() >= 0.9999
  assert same[flipped].mean() >= 0.999
  assert np.abs(got - want).mean() <= 1e-5


def test_exact_equals_the_stored_float64_result(shared):
  stored = np.load(shared / "crf" / "crf-1-90x120.npz")
  got = mean_field(stored["unary"], stored["image"], stored["kernels"], int(stored["steps"]), "exact")
  assert np.abs(got - stored["exact"]).max() <= 1e-4


def _loss(method, unary, image, weights):
  """A scalar of everything that can be learned, and of a float image."""

  def loss(unary, compat, sxy, srgb, image):
    kernels = [(2.0, None, compat[0]), (sxy, srgb, compat[1])]
    return jnp.sum(weights * mean_field(unary, image, kernels, 2, method))

  mu = np.asarray([[0.0, 2.0, 0.5], [0.3, 0.0, 1.0], [1.5, 0.2, 0.0]])
  at = (unary.astype(np.float64), (np.asarray(1.5), mu), np.asarray([9.1, 7.3]), np.asarray(31.7))
  return loss, (*map(lambda x: jax.tree.map(jnp.asarray, x), at), jnp.asarray(image, jnp.float64))


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_gradients_are_finite_differences(case, method):
  unary, image = case[0][:5, 2:8], case[1][:5, 2:8]
  rng = np.random.default_rng(2)
  with jax.enable_x64(True):
    weights = jnp.asarray(rng.normal(size=unary.shape))
    loss, at = _loss(method, unary, image, weights)
    loss = jax.jit(loss)
    gradients = jax.jit(jax.grad(loss, argnums=range(5)))(*at)
    names = ["unary", "compat", "sxy", "srgb", "image"]
    for number, name in enumerate(names):
      direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), at[number])
      slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients[number], direction)))

      def moved(by, number=number, direction=direction):
        shifted = jax.tree.map(lambda x, d: x + by * d, at[number], direction)
        return float(loss(*at[:number], shifted, *at[number + 1 :]))

      difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
      assert abs(difference) > 1e-4, name
      np.testing.assert_allclose(float(slope), difference, rtol=1e-5, err_msg=name)


def test_eager_gradient_equals_the_jitted_one(case):
  """Outside `jit` the lattice is sized by counting; inside, for the worst case."""
  loss = lambda u: jnp.sum(mean_field(u, case[1], KERNELS, 2, "lattice")[..., 0] ** 2)  # noqa: E731
  np.testing.assert_allclose(jax.grad(loss)(case[0]), jax.jit(jax.grad(loss))(case[0]), atol=1e-6)


def test_a_capacity_too_small_is_an_error_that_names_the_needed(case):
  needed = lattice_sizes(case[1], KERNELS)
  with pytest.raises(ValueError, match=f"kernel 1.*has {needed[1]} vertices.*capacity={needed[1]}"):
    mean_field(*case, KERNELS, 2, "lattice", capacity=(needed[0], needed[1] - 1))
  with pytest.raises(ValueError, match="one for each of 2 kernels"):
    mean_field(*case, KERNELS, 2, "lattice", capacity=(100,))


def test_under_jit_only_the_image_that_overflows_is_nan(case):
  """A capacity of exactly what one image needs is enough for it, and not for a busier one."""
  unary, image = case
  needed = lattice_sizes(image, KERNELS)
  busy = np.random.default_rng(3).integers(0, 256, image.shape).astype(np.uint8)
  assert lattice_sizes(busy, KERNELS)[1] > needed[1]
  run = jax.jit(lambda u, i: mean_field(u, i, KERNELS, 3, "lattice", capacity=needed))
  got = run(np.stack([unary, unary]), np.stack([image, busy]))
  np.testing.assert_allclose(got[0], mean_field(unary, image, KERNELS, 3, "lattice"), atol=1e-6)
  assert np.isnan(got[1]).all()


def test_the_two_sorts_agree():
  """The packed int64 sort that CPUs take, and the three-operand sort of other backends."""
  rng = np.random.default_rng(4)
  high, low = (jnp.asarray(rng.integers(0, bound, 1000), jnp.int32) for bound in (5, 70_000))
  packed = sort_packed(high, low, jnp.asarray(70_000, jnp.int32))
  plain = sort_plain(high, low, jnp.asarray(70_000, jnp.int32))
  for a, b in zip(packed, plain, strict=True):
    np.testing.assert_array_equal(a, b)
  assert (np.diff(np.asarray(plain[0]).astype(np.int64) * 70_000 + np.asarray(plain[1])) >= 0).all()


BAD = {
  "sizes": (lambda u, i: (u, i[:, 1:], KERNELS), r"image has shape \(9, 10, 3\).*\(9, 11, 3\)"),
  "batch": (lambda u, i: (u[None], i, KERNELS), "image has shape"),
  "infinite": (lambda u, i: (np.where(u == u.max(), np.inf, u), i, KERNELS), "not finite.*clip"),
  "unit image": (lambda u, i: (u, i / np.float32(255), KERNELS), "0..255"),
  "normalised image": (lambda u, i: (u, (i - np.float32(120)) / 58, KERNELS), "un-normalised"),
  "nan image": (lambda u, i: (u, np.full(i.shape, np.nan, np.float32), KERNELS), "0..255"),
  "no kernels": (lambda u, i: (u, i, ()), "kernels is empty"),
  "two entries": (lambda u, i: (u, i, [(3, 3)]), "kernel 0 has 2 entries"),
  "negative width": (lambda u, i: (u, i, [(3, None, 3), (-4, 3, 3)]), "kernel 1: sxy is -4"),
  "negative colour": (lambda u, i: (u, i, [(4, -3, 3)]), "kernel 0: srgb is -3"),
  "three widths": (lambda u, i: (u, i, [((4, 4, 4), 3, 3)]), "kernel 0: sxy has shape"),
  "compat shape": (lambda u, i: (u, i, [(4, 3, np.ones((2, 2)))]), "3x3"),
  "compat nan": (lambda u, i: (u, i, [(4, 3, float("nan"))]), "compat"),
  "steps": (lambda u, i: (u, i, KERNELS, -1), "steps is -1"),
  "method": (lambda u, i: (u, i, KERNELS, 1, "fast"), "method is 'fast'.*exact, lattice"),
  "too narrow": (lambda u, i: (u, i, [(1e-6, 1e-6, 1)], 1, "lattice"), "too narrow"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(case, name):
  make, sentence = BAD[name]
  with pytest.raises(ValueError, match=sentence):
    mean_field(*make(*case))


def test_rank_is_one_sentence(case):
  """Checked below `mean_field`, whose annotation says the same in tests, but not in production."""
  with pytest.raises(ValueError, match="expected h w k"):
    check_arrays(case[0][..., 0], case[1])
