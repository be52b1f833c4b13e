"""The PyTorch half of `learning.py`: run by the peers' interpreter, in their folder.

`python learning_peer.py init FOLDER` makes a model of recipe.json's kind and writes peer_init.pth;
`train` starts from start-*.npy, reads images.npy and labels.npy, and writes peer_losses.json and
peer_final.pth. `double` does the first 50 steps in float64 and writes peer_double.json.
"""

import json
import pathlib
import sys

sys.path.insert(0, ".")

import numpy as np
import refmodels
import torch
import torch.nn.functional as F

MAKE = {
  "cgnet_m3n21": refmodels.cgnet,
  "segformer_b0": lambda classes: refmodels.segformer(0, classes),
  "segnext_tiny": lambda classes: refmodels.segnext("t", classes),
  "deeplabv3plus_resnet50": lambda classes: refmodels.dlv3p(50, classes),
}


def main() -> None:
  """See the module."""
  what, folder = sys.argv[1], pathlib.Path(sys.argv[2])
  recipe = json.loads((folder / "recipe.json").read_text())
  torch.manual_seed(0)
  model = MAKE[recipe["model"]](recipe["classes"])
  for module in model.modules():
    if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
      module.p = 0.0
    if type(module).__name__ == "DropPath":
      module.drop_prob = 0.0
  model.eval()
  with torch.no_grad():
    logits(model, torch.zeros(1, 3, 64, 64))  # the NMF's bases are made by its first call
  if what == "init":
    torch.save(model.state_dict(), folder / "peer_init.pth")
    return
  start = {path.name[6:-4]: torch.from_numpy(np.load(path)) for path in folder.glob("start-*.npy")}
  model.load_state_dict(start, strict=True)
  if what == "double":
    losses = train(model.double(), recipe, folder, steps=50)
    (folder / "peer_double.json").write_text(json.dumps(losses))
    return
  losses = train(model, recipe, folder, steps=recipe["steps"])
  (folder / "peer_losses.json").write_text(json.dumps(losses))
  torch.save(model.state_dict(), folder / "peer_final.pth")


def train(model, recipe, folder, *, steps: int) -> list[float]:
  """Losses of the first steps, in the model's own precision."""
  dtype = next(model.parameters()).dtype
  settings = dict(lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"])
  match recipe["name"]:
    case "adam":
      optimizer = torch.optim.Adam(model.parameters(), **settings)
    case "adamw":
      optimizer = torch.optim.AdamW(model.parameters(), **settings)
    case "sgd":
      optimizer = torch.optim.SGD(model.parameters(), momentum=recipe["momentum"], **settings)
  weights = torch.tensor(recipe["class_weights"], dtype=dtype) if recipe["class_weights"] else None
  mean, std = (torch.tensor(recipe[key], dtype=dtype).view(1, 3, 1, 1) for key in ("mean", "std"))
  images, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels"))
  model.train()
  losses = []
  for step, (image, label) in enumerate(zip(images[:steps], labels[:steps], strict=True)):
    for group in optimizer.param_groups:
      group["lr"] = recipe["learning_rate"] * (1 - step / recipe["steps"]) ** recipe["power"]
    x = (torch.from_numpy(np.array(image)).permute(0, 3, 1, 2).to(dtype) - mean) / std
    y = torch.from_numpy(np.array(label)).long()
    total = 0.0
    for share, out in zip((1.0, 0.4), logits(model, x), strict=False):
      out = F.interpolate(out, y.shape[1:], mode="bilinear", align_corners=False)
      total = total + share * F.cross_entropy(out, y, weight=weights, ignore_index=255)
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    losses.append(float(total.detach()))
  return losses


def logits(model, x):
  """Of the decoder and, where there is one, of the auxiliary head."""
  features = model.backbone(x)
  heads = [model.decode_head] + ([model.auxiliary_head] if model.with_auxiliary_head else [])
  return [head(features) for head in heads]


if __name__ == "__main__":
  main()
