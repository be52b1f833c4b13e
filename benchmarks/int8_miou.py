r"""The mIoU of a model beside that of its kernels in eight bits (`jaxseg export --weights=int8`).

  python benchmarks/int8_miou.py runs/quickstart/best --images=DIR --masks=DIR
  python benchmarks/int8_miou.py cgnet_cityscapes.npz --images=camvid/val --masks=camvid/valannot \
      --classes=10,2,5,0,1,8,7,4,13,11,18,12:10

Masks have the images' names. `--classes` is for masks of another data set: the model's class of each mask id,
and CLASS:ID for a further class that counts as a mask id. A pixel of a class that no id has is wrong.
"""

import argparse
import pathlib

import numpy as np
import tqdm
from PIL import Image

import jaxseg
from jaxseg.export import with_int8_weights
from jaxseg.metrics import confusion_matrix, iou_per_class

OTHER = 254


def main() -> None:
  """One line a model."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("source", help="what jaxseg.from_pretrained reads")
  parser.add_argument("--images", type=pathlib.Path, required=True)
  parser.add_argument("--masks", type=pathlib.Path, required=True)
  parser.add_argument("--classes", help="the model's class of each mask id, by commas")
  flags = parser.parse_args()
  net = jaxseg.from_pretrained(flags.source)
  nets = {"float32": net, "int8": with_int8_weights(net)}
  table = np.arange(256) if flags.classes is None else mask_ids(flags.classes)
  classes = len(net.classes) if flags.classes is None else int(table[table < OTHER].max()) + 1
  # One class more: what the model says and the masks do not have.
  matrices = dict.fromkeys(nets, np.zeros((classes + 1, classes + 1), np.int64))
  kept = []
  paths = sorted(flags.images.glob("*.*"))
  for path in tqdm.tqdm(paths):
    image = np.asarray(Image.open(path).convert("RGB"))
    mask = np.asarray(Image.open(flags.masks / f"{path.stem}.png"))
    mask = np.where(mask < classes, mask, 255).astype(np.uint8)
    found = {name: net.predict(image) for name, net in nets.items()}
    kept.append((found["float32"] == found["int8"]).mean())
    for name, label in found.items():
      label = np.minimum(table[label], classes).astype(np.uint8)
      matrices[name] = matrices[name] + np.asarray(
        confusion_matrix(label[None], mask[None], num_classes=classes + 1)
      )
  for name, matrix in matrices.items():
    print(f"{name}: mIoU {np.nanmean(iou_per_class(matrix)[:classes]):.4f}")
  print(f"{len(paths)} images; {100 * np.mean(kept):.2f} % of pixels keep their class")


def mask_ids(text: str) -> np.ndarray:
  """The mask id of each class of the model."""
  table = np.full(256, OTHER)
  for i, word in enumerate(text.split(",")):
    name, _, place = word.partition(":")
    table[int(name)] = int(place) if place else i
  return table


if __name__ == "__main__":
  main()
