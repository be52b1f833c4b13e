"""Miniatures of data sets as their authors lay them out: few pictures, every id and file kind that counts."""

import json
import pathlib

import numpy as np
import scipy.io
from PIL import Image

from jaxseg.data import isaid, pascal_context, voc

# Split → [(id, picture, expected label)], in order; the picture is what Pillow reads from the file.
Truth = dict[str, list[tuple[str, np.ndarray, np.ndarray]]]
SIZE = (24, 32)


def picture(path: pathlib.Path, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
  """Writes a smooth picture, in the format of its suffix; as Pillow reads it."""
  rng = np.random.default_rng(seed)
  blocks = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3))
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.kron(blocks, np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)).save(path)
  return np.asarray(Image.open(path).convert("RGB"))


def raw_ids(seed: int, ids, size: tuple[int, int] = SIZE) -> np.ndarray:
  """Every id of `ids` at least once, where there is room."""
  rng = np.random.default_rng(seed)
  values = np.resize(rng.permutation(np.asarray(list(ids))), size[0] * size[1])
  return rng.permutation(values).reshape(size).astype(np.uint8)


def grey(path: pathlib.Path, ids: np.ndarray) -> None:
  """A grey PNG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(ids.astype(np.uint8)).save(path)


def palette_png(path: pathlib.Path, ids: np.ndarray) -> None:
  """A palette PNG whose colours are not the ids."""
  path.parent.mkdir(parents=True, exist_ok=True)
  mask = Image.fromarray(ids.astype(np.uint8)).convert("L")
  mask.putpalette([255 - v for v in range(256) for _ in range(3)])
  mask.save(path)


def colored(path: pathlib.Path, ids: np.ndarray, colors: dict) -> None:
  """An RGB PNG in the colours of `colors`, RGB → id."""
  table = np.zeros((256, 3), np.uint8)
  for color, i in colors.items():
    table[i] = color
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(table[ids]).save(path)


def matlab(path: pathlib.Path, content: dict) -> None:
  """A MATLAB 5 file, compressed as SBD's are."""
  path.parent.mkdir(parents=True, exist_ok=True)
  scipy.io.savemat(path, content, do_compression=True)


def write_all(
  root: pathlib.Path, members: dict, *, image: str, mask: str, ids, rule: dict, put=grey
) -> Truth:
  """`members` is split → (folder, names); `image` and `mask` are patterns of {folder} and {name}.

  `rule` is raw id → class, 255 for all that it does not have.
  """
  table = np.full(256, 255, np.uint8)
  table[list(rule)] = list(rule.values())
  truth: Truth = {}
  for split, (folder, names) in members.items():
    truth[split] = []
    for seed, name in enumerate(names):
      size = SIZE if seed % 2 == 0 else SIZE[::-1]
      shown = picture(root / image.format(folder=folder, name=name), seed, size)
      raw = raw_ids(seed, ids, size)
      put(root / mask.format(folder=folder, name=name), raw)
      truth[split].append((name, shown, table[raw]))
  return truth


def names_file(path: pathlib.Path, names) -> None:
  """A list of names, one a line."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{name}\n" for name in names))


def ade20k(root: pathlib.Path) -> Truth:
  """ADEChallengeData2016."""
  members = {"train": ("training", ["ADE_train_00000001", "ADE_train_00000002"])}
  members["val"] = ("validation", ["ADE_val_00000001"])
  return write_all(
    root / "ADEChallengeData2016",
    members,
    image="images/{folder}/{name}.jpg",
    mask="annotations/{folder}/{name}.png",
    ids=range(151),
    rule={raw: raw - 1 for raw in range(1, 151)},
  )


CITYSCAPES_RULE = {
  7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
  28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def cityscapes(root: pathlib.Path) -> Truth:
  """LeftImg8bit and gtFine, with the files that lie beside the masks."""
  truth: Truth = {}
  for split, city, count in (("train", "aachen", 2), ("train", "ulm", 1), ("val", "lindau", 1)):
    found = write_all(
      root,
      {split: (f"{split}/{city}", [f"{city}_{i:06d}_000019" for i in range(count)])},
      image="leftImg8bit/{folder}/{name}_leftImg8bit.png",
      mask="gtFine/{folder}/{name}_gtFine_labelIds.png",
      ids=range(34),
      rule=CITYSCAPES_RULE,
    )
    truth.setdefault(split, []).extend(found[split])
    for name, _, label in found[split]:
      grey(root / f"gtFine/{split}/{city}/{name}_gtFine_labelTrainIds.png", label)
  return truth


# The eleven categories without pixels are 12, 26, 29, ...: written out, as the module counts them itself.
COCO_CATEGORIES = [
  c for c in range(1, 183) if c not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
]  # fmt: skip


def coco_stuff_164k(root: pathlib.Path) -> Truth:
  """Pictures beside stuffthingmaps/."""
  members = {"train": ("train2017", ["000000000009", "000000000025"]), "val": ("val2017", ["000000000139"])}
  return write_all(
    root,
    members,
    image="{folder}/{name}.jpg",
    mask="stuffthingmaps/{folder}/{name}.png",
    ids=[c - 1 for c in COCO_CATEGORIES] + [255],
    rule={c - 1: i for i, c in enumerate(COCO_CATEGORIES)},
  )


def matlab_map(path: pathlib.Path, ids: np.ndarray) -> None:
  """A mask of COCO-Stuff 10k, with what else lies in these files."""
  matlab(path, {"S": ids, "names": np.array(["unlabeled"], object), "captions": np.array(["a"], object)})


def coco_stuff_10k(root: pathlib.Path) -> Truth:
  """One folder of pictures, one of MATLAB files, two lists; not in alphabetical order."""
  members = {"train": ("", ["COCO_train2014_000000000077", "COCO_train2014_000000000009"])}
  members["test"] = ("", ["COCO_train2014_000000000063"])
  for split, (_, names) in members.items():
    names_file(root / f"imageLists/{split}.txt", names)
  return write_all(
    root,
    members,
    image="images/{name}.jpg",
    mask="annotations/{name}.mat",
    ids=[0, *COCO_CATEGORIES],
    rule={c: i for i, c in enumerate(COCO_CATEGORIES)},
    put=matlab_map,
  )


VOC_IDS = [*range(21), 255]
VOC_RULE = {i: i for i in range(21)}


def voc_pairs(
  root: pathlib.Path, members: dict, *, folder="SegmentationClass", suffix=".png", put=palette_png
):
  """Pictures and masks of VOC below `root`; `members` is split → names."""
  return write_all(
    root,
    {split: (folder, names) for split, names in members.items()},
    image="JPEGImages/{name}.jpg",
    mask="{folder}/{name}" + suffix,
    ids=VOC_IDS,
    rule=VOC_RULE,
    put=put,
  )


def voc_devkit(root: pathlib.Path) -> Truth:
  """VOCdevkit/VOC2012, with the lists of the release."""
  inner = root / "VOCdevkit/VOC2012"
  truth = voc_pairs(inner, {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]})
  truth["trainval"] = sorted(truth["train"] + truth["val"], key=lambda example: example[0])
  for split, examples in truth.items():
    names_file(inner / f"ImageSets/Segmentation/{split}.txt", [name for name, _, _ in examples])
  return truth


def pascal_context_png(root: pathlib.Path) -> Truth:
  """SegmentationClassContext/ and its lists."""
  inner = root / "VOCdevkit/VOC2010"
  members = {"train": ("", ["2008_000003", "2008_000002"]), "val": ("", ["2008_000007"])}
  for split, (_, names) in members.items():
    names_file(inner / f"ImageSets/SegmentationContext/{split}.txt", names)
  return write_all(
    inner,
    members,
    image="JPEGImages/{name}.jpg",
    mask="SegmentationClassContext/{name}.png",
    ids=range(60),
    rule={i: i - 1 for i in range(1, 60)},
  )


def isaid_pictures(root: pathlib.Path, *, shapes=((896, 1000), (900, 896))) -> Truth:
  """Whole pictures and masks in colours; the truth is that of the whole pictures."""
  truth: Truth = {}
  for split, name, shape in (("train", "P0000", shapes[0]), ("val", "P0003", shapes[1])):
    shown = picture(root / split / "images" / f"{name}.png", 1, shape)
    blocks = raw_ids(2, range(16), (28, 32))  # noise of this size would take long to compress
    raw = np.kron(blocks, np.ones((40, 40), np.uint8))[: shape[0], : shape[1]]
    colored(root / split / f"Semantic_masks/images/{name}_instance_color_RGB.png", raw, isaid.COLORS)
    truth[split] = [(name, shown, raw)]
  return truth


def isaid_tiles(root: pathlib.Path) -> Truth:
  """Tiles as the converter of mmsegmentation leaves them: BMP pictures and palette masks, all called .png."""
  members = {
    "train": ("train", ["P0000_0_896_0_896", "P0000_0_896_512_1408"]),
    "val": ("val", ["P3_0_896_0_896"]),
  }
  truth = write_all(
    root,
    members,
    image="img_dir/{folder}/{name}.png",
    mask="ann_dir/{folder}/{name}_instance_color_RGB.png",
    ids=[*range(16), 255],
    rule={i: i for i in range(16)},
    put=palette_png,
  )
  for path in root.glob("img_dir/*/*.png"):
    shown = Image.open(path)
    shown.load()
    shown.save(path, format="BMP")
  return truth


def runs(mask: np.ndarray) -> str:
  """COCO's compressed run lengths of a mask of zeros and ones, by their definition."""
  flat = mask.flatten(order="F")
  edges = np.flatnonzero(np.diff(flat)) + 1
  lengths = np.diff([0, *edges.tolist(), flat.size]).tolist()
  counts = ([0] if flat[0] else []) + lengths
  text = ""
  for i, count in enumerate(counts):
    value, more = count - counts[i - 2] if i > 2 else count, True
    while more:
      group, value = value & 31, value >> 5
      more = value != (-1 if group & 16 else 0)
      text += chr(group + 32 * more + 48)
  return text


def pascal_context_json(root: pathlib.Path) -> Truth:
  """PASCAL in Detail's JSON, later regions over earlier ones; no PNG."""
  truth: Truth = {"train": [], "val": []}
  content: dict = {"images": [], "annos_segmentation": [], "categories": []}
  for key, (phase, name) in enumerate(
    (("train", "2008_000002"), ("val", "2008_000003"), ("test", "2008_000005"))
  ):
    shown = picture(root / f"JPEGImages/{name}.jpg", key)
    height, width = SIZE
    image = {"image_id": key, "file_name": f"{name}.jpg", "phase": phase, "height": height, "width": width}
    content["images"].append(image)
    label = np.full(SIZE, 255, np.uint8)
    for seed, category in enumerate((2, 458, 284)):
      region = (np.random.default_rng(seed + key).random(SIZE) < 0.4).astype(np.uint8)
      region[4:12, 8:20] = seed % 2
      encoded = {"size": list(SIZE), "counts": runs(region)}
      part = {"id": 10 * key + seed, "image_id": key, "category_id": category, "segmentation": encoded}
      content["annos_segmentation"].append(part)
      label[region == 1] = pascal_context.IDS_459.index(category)
    if phase in truth:
      truth[phase].append((name, shown, label))
  (root / "trainval_merged.json").write_text(json.dumps(content))
  return truth


def sbd(root: pathlib.Path, names: dict) -> Truth:
  """Further masks of VOC as SBD distributes them, beside VOCdevkit/; `names` is list → names."""

  def put(path: pathlib.Path, ids: np.ndarray) -> None:
    ids = np.where(ids == 255, 0, ids)  # SBD has no border
    matlab(path, {"GTcls": {"Segmentation": ids, "Boundaries": np.zeros((20, 1))}})

  everything = sorted({name for members in names.values() for name in members})
  dataset = root / "benchmark_RELEASE/dataset"
  for split, members in names.items():
    names_file(dataset / f"{split}.txt", members)
  cls = "../../benchmark_RELEASE/dataset/cls"
  truth = voc_pairs(root / "VOCdevkit/VOC2012", {"all": everything}, folder=cls, suffix=".mat", put=put)
  return {"all": [(name, shown, np.where(label == 255, 0, label)) for name, shown, label in truth["all"]]}


def voc_colors(root: pathlib.Path) -> Truth:
  """Masks in VOC's colours, and no list at all."""
  truth = voc_pairs(root, {"trainval": ["a", "b"]}, put=lambda path, ids: colored(path, ids, voc.COLORS))
  return truth
