"""Weight files as they were published: file name → record.

Names and checksums (in mmsegmentation's and torchvision's names, the eight digits before the
ending) are those of the publishers' model tables. The authors of SegNeXt and SegFormer publish on file hosts;
their names are as users of the files write them, without a checksum.
"""

import dataclasses
import hashlib
import pathlib

from jaxseg.errors import UserError
from jaxseg.pretrained import deeplab, resnet, vgg
from jaxseg.pretrained.records import MMSEG_CGNET_CITYSCAPES, MMSEG_LICENCE, Record
from jaxseg.pretrained.segformer import MMSEG_LICENCE as MIT_LICENCE
from jaxseg.pretrained.segformer import NVIDIA_LICENCE, NVIDIA_SOURCE
from jaxseg.pretrained.segnext import LICENCE as SEGNEXT_LICENCE
from jaxseg.pretrained.segnext import SOURCE as SEGNEXT_SOURCE
from jaxseg.types import Preprocess

_MMSEG = "https://download.openmmlab.com/mmsegmentation/v0.5"
_IMAGENET = Preprocess()

# Stem → date and checksum. What comes before "_cityscapes" or "_ade20k" is the config's name.
_CGNET = {
  "cgnet_680x680_60k_cityscapes": "20201101_110253-4c0b2f2d",
  "cgnet_512x1024_60k_cityscapes": "20201101_110254-124ea03b",
}
_SEGNEXT = {
  "segnext_mscan-t_1x16_512x512_adamw_160k_ade20k": "20230210_140244-05bd8466",
  "segnext_mscan-s_1x16_512x512_adamw_160k_ade20k": "20230214_113014-43013668",
  "segnext_mscan-b_1x16_512x512_adamw_160k_ade20k": "20230209_172053-b6f6c70c",
  "segnext_mscan-l_1x16_512x512_adamw_160k_ade20k": "20230209_172055-19b14b63",
}
_SEGFORMER = {
  "segformer_mit-b0_512x512_160k_ade20k": "20210726_101530-8ffa8fda",
  "segformer_mit-b1_512x512_160k_ade20k": "20210726_112106-d70e859d",
  "segformer_mit-b2_512x512_160k_ade20k": "20210726_112103-cbd414ac",
  "segformer_mit-b3_512x512_160k_ade20k": "20210726_081410-962b98d2",
  "segformer_mit-b4_512x512_160k_ade20k": "20210728_183055-7f509d7d",
  "segformer_mit-b5_512x512_160k_ade20k": "20210726_145235-94cedf59",
  "segformer_mit-b5_640x640_160k_ade20k": "20210801_121243-41d2845b",
  "segformer_mit-b0_8x1_1024x1024_160k_cityscapes": "20211208_101857-e7f88502",
  "segformer_mit-b1_8x1_1024x1024_160k_cityscapes": "20211208_064213-655c7b3f",
  "segformer_mit-b2_8x1_1024x1024_160k_cityscapes": "20211207_134205-6096669a",
  "segformer_mit-b3_8x1_1024x1024_160k_cityscapes": "20211206_224823-a8f8a177",
  "segformer_mit-b4_8x1_1024x1024_160k_cityscapes": "20211207_080709-07f6c333",
  "segformer_mit-b5_8x1_1024x1024_160k_cityscapes": "20211206_072934-87a052ec",
}
# Encoders that the authors trained on ImageNet, under mmsegmentation's names.
_MSCAN = {
  "mscan_t": "20230227-119e8c9f",
  "mscan_s": "20230227-f33ccdf2",
  "mscan_b": "20230227-3ab7d230",
  "mscan_l": "20230227-cef260d4",
}
_MIT = {
  "mit_b0": "20220624-7e0fe6dd",
  "mit_b1": "20220624-02e5a6a1",
  "mit_b2": "20220624-66e8bf70",
  "mit_b3": "20220624-13b1141c",
  "mit_b4": "20220624-d588d980",
  "mit_b5": "20220624-658746d9",
}
_NVIDIA = (
  *(f"segformer.b{i}.512x512.ade.160k" for i in range(5)),
  "segformer.b5.640x640.ade.160k",
  *(f"segformer.b{i}.1024x1024.city.160k" for i in range(6)),
  "segformer.b0.512x1024.city.160k",
  "segformer.b0.640x1280.city.160k",
  "segformer.b0.768x768.city.160k",
)
_SEGNEXT_AUTHORS = tuple(
  f"segnext_{size}_{data}_160k"
  for data in ("512x512_ade", "1024x1024_city")
  for size in ("tiny", "small", "base", "large")
)
_TORCHVISION = {
  "deeplabv3_resnet50_coco-cd0a2569": deeplab.TORCHVISION.record(21),
  "deeplabv3_resnet101_coco-586e9e4e": deeplab.TORCHVISION.record(21),
  "resnet50-0676ba61": resnet.TORCHVISION_BACKBONE.record(1000),
  "resnet101-63fe2227": resnet.TORCHVISION_BACKBONE.record(1000),
  "vgg16-397923af": vgg.TORCHVISION_VGG.record(1000),
  # Caffe's weights under torchvision's names: grey levels less Caffe's mean colour.
  "vgg16_features-amdegroot-88682ab5": dataclasses.replace(
    vgg.TORCHVISION_VGG.record(1000), preprocess=Preprocess(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0))
  ),
}


def _dataset(stem: str) -> str | None:
  return "cityscapes" if "city" in stem else "ade20k" if "ade" in stem else None


def _files() -> dict[str, Record]:
  files = {}
  for stems, folder, preprocess, licence in (
    (_CGNET, "cgnet", MMSEG_CGNET_CITYSCAPES, MMSEG_LICENCE),
    (_SEGNEXT, "segnext", _IMAGENET, MMSEG_LICENCE),
    (_SEGFORMER, "segformer", _IMAGENET, MIT_LICENCE),
    (_MSCAN, "pretrain/segnext", _IMAGENET, SEGNEXT_LICENCE),
    (_MIT, "pretrain/segformer", _IMAGENET, NVIDIA_LICENCE),
  ):
    for stem, version in stems.items():
      name = f"{stem}_{version}.pth"
      place = folder if folder.startswith("pretrain") else f"{folder}/{stem}"
      checksum = version.rsplit("-", 1)[-1]
      files[name] = Record(preprocess, _dataset(stem), licence, f"{_MMSEG}/{place}/{name}", checksum)
  for stems, licence, source in (
    (_NVIDIA, NVIDIA_LICENCE, NVIDIA_SOURCE),
    (_SEGNEXT_AUTHORS, SEGNEXT_LICENCE, SEGNEXT_SOURCE),
  ):
    files |= {f"{stem}.pth": Record(_IMAGENET, _dataset(stem), licence, source) for stem in stems}
  for stem, record in _TORCHVISION.items():
    source = f"https://download.pytorch.org/models/{stem}.pth"
    checksum = stem.rsplit("-", 1)[-1]
    files[f"{stem}.pth"] = dataclasses.replace(record, source=source, checksum=checksum)
  return files


# Published file name → record.
FILES = _files()


def find(path: pathlib.Path, *, strict: bool = True) -> Record | None:
  """The record of a published file, by its checksum or, where none is known, by its name.

  Args:
    path: of the file.
    strict: refuse another file of a published name; it has no record otherwise.

  Raises:
    UserError: the file has a published name whose checksum is known, and is another file.
  """
  if not path.is_file():
    return FILES.get(path.name)
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if found := next((r for r in FILES.values() if r.checksum and digest.startswith(r.checksum)), None):
    return found
  record = FILES.get(path.name)
  if record and record.checksum:
    if not strict:
      return None
    raise UserError(
      f"{path} has the name of a published file whose SHA-256 begins with {record.checksum}, its own"
      f" begins with {digest[:8]}; download it again, or if it is meant to be another: rename it, or give"
      " preprocess="
    )
  return record
