"""Mesh and batch arithmetic; equality over several devices is in tests/train/test_devices.py."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxseg import sharding
from tests import golden


def test_mesh_has_three_auto_axes():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "spatial": 1}
  assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
  ("axes", "sentence"),
  [
    ({"fsdp": 2}, "fsdp=2 times spatial=1 is 2, which does not divide the 1 devices"),
    ({"data": 4}, "needs 4 devices and there are 1; set data=-1 or data=1"),
    ({"spatial": 0}, "mesh axis spatial is 0, expected at least 1"),
    ({"data": -2}, "mesh axis data is -2, expected at least 1 or -1"),
  ],
)
def test_axes_that_do_not_fit(axes, sentence):
  with pytest.raises(ValueError, match=sentence):
    sharding.make_mesh(devices=jax.devices()[:1], **axes)


def abstract_mesh(**axes):
  return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(("batch", "remedy"), [(6, "use 4 or 8"), (3, "use 4"), (0, "use 4")])
def test_batch_that_cannot_be_spread(batch, remedy):
  mesh = abstract_mesh(data=2, fsdp=2, spatial=2)
  with pytest.raises(ValueError, match=f"a batch of {batch} cannot .* {remedy}$"):
    sharding.check_batch(batch, mesh)


def test_batch_that_can_be_spread():
  sharding.check_batch(8, abstract_mesh(data=2, fsdp=2, spatial=2))


def test_state_is_split_along_the_largest_axis_that_divides():
  mesh = abstract_mesh(data=1, fsdp=4, spatial=1)
  tree = {
    "kernel": np.zeros((3, 3, 64, 128)),
    "odd": np.zeros((3, 3, 8, 1001)),
    "none": np.zeros((3, 1001, 7)),
    "small": np.zeros(64),
    "step": np.zeros(()),
  }
  specs = {name: s.spec for name, s in sharding.state_sharding(tree, mesh, min_elements=100).items()}
  spec = jax.sharding.PartitionSpec
  assert specs == {
    "kernel": spec(None, None, None, "fsdp"),
    "odd": spec(None, None, "fsdp"),
    "none": spec(),
    "small": spec(),
    "step": spec(),
  }


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_device_holds_little_more_than_its_share_of_every_model(parts):
  mesh = abstract_mesh(data=1, fsdp=parts, spatial=1)
  for file in sorted(golden.FOLDER.glob("*.txt")):
    leaves = [line.split() for line in file.read_text().splitlines()]
    shapes = {
      path: np.broadcast_to(np.float32(0), [] if shape == "()" else [int(n) for n in shape.split("x")])
      for path, shape, _ in leaves
    }
    params = {path: x for path, x in shapes.items() if path.startswith("params/")}
    # Adam's moments and the moving average lie as the parameters do; SGD has one moment.
    for state in ((shapes, params), (shapes, params, params), (shapes, params, params, params)):
      placed = sharding.state_sharding(state, mesh)
      held = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))), state, placed)
      whole = sum(x.size for x in jax.tree.leaves(state))
      assert sum(jax.tree.leaves(held)) <= 1.15 / parts * whole, (file.stem, len(state))


def test_to_global_keeps_numbers_and_leaves_names_on_the_host():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  batch = {
    "image": np.zeros((2, 4, 4, 3), np.uint8),
    "label": np.ones((2, 4, 4), np.int32),
    "id": np.array(["a", "b"], object),
  }
  arrays = sharding.to_global(batch, mesh)
  assert sorted(arrays) == ["image", "label"]
  np.testing.assert_array_equal(arrays["label"], batch["label"])
  assert arrays["image"].sharding == sharding.batch_shardings(batch, mesh)["image"]


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as a mesh asks for."""

  id: int
  process_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


@dataclasses.dataclass(frozen=True)
class Chip(Device):
  """As much of a TPU chip as a mesh asks for."""

  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0
  slice_index: int = 0


def chips_of(kind, *sizes, slice_index=0):
  """The chips of a slice, host by host as JAX lists them: x fastest."""
  places = itertools.product(*(range(n) for n in reversed(sizes)))
  return [
    Chip(i + slice_index * math.prod(sizes), i // 4, "tpu", kind, place[::-1], 0, slice_index)
    for i, place in enumerate(places)
  ]


@pytest.mark.parametrize(
  ("kind", "sizes"),
  [
    ("TPU v4", (2, 2, 4)),
    ("TPU v4", (4, 4, 4)),
    ("TPU v5", (2, 2, 2)),
    ("TPU v5", (1, 1, 4)),
    ("TPU v5 lite", (4, 4, 1)),
    ("TPU v6 lite", (2, 4, 1)),
    ("TPU v6 lite", (16, 16, 1)),
  ],
)
def test_every_mesh_on_every_slice(kind, sizes):
  """Each chip once, whatever of the grid of chips an axis has to be cut from."""
  chips = chips_of(kind, *sizes)
  count = len(chips)
  for inner in (n for n in range(1, count + 1) if count % n == 0):
    for spatial in (n for n in range(1, inner + 1) if inner % n == 0):
      shape = (count // inner, inner // spatial, spatial)
      arranged = sharding._arranged(shape, chips)
      assert arranged.shape == shape and sorted(chip.id for chip in arranged.flat) == list(range(count))
  if sizes == (4, 4, 4):
    # A group of two are neighbours.
    pairs = sharding._arranged((32, 1, 2), chips).reshape(-1, 2)
    hops = [sum(abs(a - b) for a, b in zip(*(chip.coords for chip in pair), strict=True)) for pair in pairs]
    assert set(hops) == {1}


def test_chips_that_are_no_block_of_a_slice():
  """In their own order; and two slices, within each of which a group stays."""
  chips = chips_of("TPU v5 lite", 4, 4, 1)
  some = sharding._arranged((1, 3, 1), [chips[i] for i in (0, 1, 6)])
  assert [chip.id for chip in some.flat] == [0, 1, 6]
  for kind, sizes, count, shape in (
    ("TPU v5 lite", (4, 8, 1), 20, (1, 2, 10)), ("TPU v6 lite", (8, 16, 1), 80, (1, 5, 16)),
  ):  # fmt: skip
    some = sharding._arranged(shape, chips_of(kind, *sizes)[:count])
    assert sorted(chip.id for chip in some.flat) == list(range(count))
  both = chips + chips_of("TPU v5 lite", 4, 4, 1, slice_index=1)
  groups = sharding._arranged((4, 4, 2), both).reshape(4, 8)
  assert [{chip.slice_index for chip in group} for group in groups] == [{0}, {0}, {1}, {1}]
  assert sorted(chip.id for chip in groups.flat) == list(range(32))
  # No other way: one group over both.
  assert sharding._arranged((1, 32, 1), both).shape == (1, 32, 1)


def mesh_of(processes, *shape):
  """A mesh whose devices belong to `processes`, in the order of the mesh."""
  devices = np.array([Device(i, process) for i, process in enumerate(processes)]).reshape(shape)
  return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
  ("processes", "shape", "rows"),
  [
    ([0, 0, 1, 1], (4, 1, 1), [(0, 1, 2, 3), (4, 5, 6, 7)]),
    ([0, 0, 1, 1], (1, 2, 2), [(0, 1, 2, 3), (4, 5, 6, 7)]),
    # One image over two hosts, and over all four of a job.
    ([0, 1, 2, 3], (2, 1, 2), [(0, 1, 2, 3), (0, 1, 2, 3), (4, 5, 6, 7), (4, 5, 6, 7)]),
    ([0, 1, 2, 3], (1, 1, 4), [tuple(range(8))] * 4),
    # As the links between chips may order them.
    ([1, 0, 0, 1], (4, 1, 1), [(2, 3, 4, 5), (0, 1, 6, 7)]),
    # A host whose devices reach into a second image.
    ([0, 0, 0, 1, 1, 1, 1, 1], (4, 1, 2), [(0, 1, 2, 3), (2, 3, 4, 5, 6, 7)]),
  ],
)
def test_a_process_reads_the_images_that_its_devices_hold(processes, shape, rows):
  mesh = mesh_of(processes, *shape)
  assert [sharding.rows_to_read(8, mesh, process=i) for i in range(max(processes) + 1)] == rows


@pytest.mark.parametrize("images", [0, 3])
def test_images_of_a_process_that_cannot_be_spread(images):
  """In a job of several they are not the batch, of which the others have the rest."""
  batch = {"image": np.zeros((images, 4, 4, 3), np.uint8)}
  with pytest.raises(
    ValueError, match=f"this process gave {images} images for its 2 device groups .* multiple of 2"
  ):
    sharding.to_global(batch, mesh_of([0, 0, 1, 1], 4, 1, 1))
  with pytest.raises(ValueError, match=f"a batch of {images} cannot be spread evenly over 4 device groups"):
    sharding.to_global(batch, mesh_of([0, 0, 0, 0], 4, 1, 1))


def test_image_rows_lie_over_spatial_where_they_divide():
  mesh = abstract_mesh(data=2, fsdp=2, spatial=4)
  batch = {
    "image": np.zeros((4, 64, 50, 3)),
    "label": np.zeros((4, 66, 50)),
    "box": np.zeros((4, 4)),
    "view0": np.zeros((4, 64, 50, 3)),
  }
  specs = {name: tuple(s.spec) for name, s in sharding.batch_shardings(batch, mesh).items()}
  whole = (sharding.BATCH_AXES,)
  assert specs == {"image": (*whole, "spatial"), "label": whole, "box": whole, "view0": whole}
  # A classifier's label, one class or shares of the classes an image, has no rows.
  assert tuple(sharding.batch_shardings({"label": np.zeros((4, 8))}, mesh)["label"].spec) == whole


def test_place_leaves_the_callers_arrays_alive():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  mine = {"x": jax.numpy.arange(4.0)}
  placed = sharding.place(mine, mesh)
  jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(placed)
  np.testing.assert_array_equal(mine["x"], np.arange(4.0))
