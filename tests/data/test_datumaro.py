"""docs/own_data.md: another tool's polygons, drawn as masks by Datumaro in an environment of its own."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_data.md"
SIZE = 40, 60
# Two polygons a picture: (class, left, top, right, bottom).
BOXES = [[("cat", 5, 5, 25, 30), ("dog", 30, 10, 50, 35)], [("dog", 2, 2, 20, 20), ("dog", 30, 20, 55, 38)]]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
  """An interpreter with Datumaro, installed as the page says."""
  folder = tmp_path_factory.mktemp("datumaro")
  subprocess.run([sys.executable, "-m", "venv", folder], check=True)
  done = subprocess.run(
    [folder / "bin/pip", "install", "-q", "datumaro"], capture_output=True, text=True, check=False
  )
  if done.returncode:
    pytest.skip(f"Datumaro cannot be installed here: {done.stderr[-300:]}")
  return folder / "bin/python"


def coco(folder: pathlib.Path) -> None:
  """A folder in COCO's form, as an annotation tool exports it."""
  names = ["cat", "dog"]
  (folder / "images/train").mkdir(parents=True)
  (folder / "annotations").mkdir()
  annotations = []
  for number, boxes in enumerate(BOXES, 1):
    picture = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
    Image.fromarray(picture).save(folder / f"images/train/{number}.png")
    for name, x0, y0, x1, y1 in boxes:
      polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
      annotations.append(
        dict(
          id=len(annotations) + 1,
          image_id=number,
          category_id=names.index(name) + 1,
          segmentation=[polygon],
          area=(x1 - x0) * (y1 - y0),
          bbox=[x0, y0, x1 - x0, y1 - y0],
          iscrowd=0,
        )
      )
  images = [dict(id=n, file_name=f"{n}.png", height=SIZE[0], width=SIZE[1]) for n in (1, 2)]
  categories = [dict(id=n, name=name, supercategory="") for n, name in enumerate(names, 1)]
  text = json.dumps(dict(images=images, annotations=annotations, categories=categories))
  (folder / "annotations/instances_train.json").write_text(text)


CONVERT = """
import sys
from datumaro.components.dataset import Dataset
source, form, out = sys.argv[1:]
Dataset.import_from(source, "coco").export(out, form, save_media=True)
"""


@pytest.mark.full
@pytest.mark.parametrize("form", ["coco", "cvat", "label_me"])
def test_polygons_become_masks_of_their_classes(python, tmp_path, form):
  source = tmp_path / "coco"
  coco(source)
  if form != "coco":
    subprocess.run([python, "-c", CONVERT, source, form, tmp_path / form], check=True)
    source = tmp_path / form
  (script,) = re.findall(r"```py\n(import pathlib.*?datumaro.*?)```", PAGE.read_text(), flags=re.S)
  (tmp_path / "to_folder.py").write_text(script)
  made = tmp_path / "made"
  subprocess.run([python, tmp_path / "to_folder.py", form, source, made], check=True)
  names = (made / "classes.txt").read_text().split()
  assert names[0] == "background" and set(names) >= {"cat", "dog"}
  for number, boxes in enumerate(BOXES, 1):
    (path,) = (made / "masks").rglob(f"{number}.png")
    mask = np.asarray(Image.open(path))
    assert mask.shape == SIZE and set(np.unique(mask)) == {0, *(names.index(b[0]) for b in boxes)}
    for name, x0, y0, x1, y1 in boxes:
      assert (mask[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] == names.index(name)).all()
