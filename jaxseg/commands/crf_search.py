"""`jaxseg crf-search`: the CRF's w1, σα and σβ by the DeepLab papers' search on a validation split.

Each image goes through the network once; its output is kept on disk. Each setting's counts on
each image are a line of `search.jsonl`, written when they are known: the same command goes on
where the last one stopped, and a larger grid or more images take what is there.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Array, Float
from tqdm import tqdm

from jaxseg import data
from jaxseg.commands import outputs, target
from jaxseg.commands.crf_log import SearchLog
from jaxseg.commands.target import TrainedModel
from jaxseg.config import validate
from jaxseg.config.rule import make_inference_rule
from jaxseg.console import print_line
from jaxseg.crf import Refiner, Search, Settings, refined_grid
from jaxseg.crf.search import GRIDS, Grid, best_of, count, try_settings
from jaxseg.data.source import Source
from jaxseg.errors import UserError
from jaxseg.evaluation.refined import Scores, make_scores, unary_of
from jaxseg.models import align_corners_of

_TOP = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The flags of `jaxseg crf-search`."""
  target.add_flags(parser)
  parser.add_argument("--images", type=int, default=100, help="spread over the split; default: %(default)s")
  parser.add_argument("--rounds", type=int, default=2, help="each finer than the last; default: %(default)s")
  parser.add_argument(
    "--grid", choices=sorted(GRIDS), default="v2", help="first round of that paper; default: %(default)s"
  )
  for name, what in (("w1", "weights"), ("sxy", "σα in pixels"), ("srgb", "σβ in grey levels")):
    parser.add_argument(
      f"--{name}", metavar="X,Y,...", help=f"{what} of the first round, instead of --grid's"
    )


def run(flags: argparse.Namespace, changes: Sequence[tuple[str, str]]) -> list[str]:
  """Runs `jaxseg crf-search`; `changes` are the `--config.key=value` that came with the flags.

  Raises:
    UserError: as `search`, and flags that make no sense.
  """
  grid = GRIDS[flags.grid]._replace(
    **{name: _numbers(name, getattr(flags, name)) for name in Grid._fields if getattr(flags, name)}
  )
  config = target.choose_config(flags, changes)
  validate.validate(config)
  output = flags.output or (f"{flags.workdir}/crf_search" if flags.workdir else "runs/crf_search")
  outputs.try_folder(output)
  found = search(
    target.load_model(flags, config),
    config,
    output=output,
    grid=grid,
    images=flags.images,
    rounds=flags.rounds,
    other_class_names=flags.other_class_names,
  )
  w1, sxy, srgb = found.setting
  return [
    f"best in {epath.Path(output) / 'crf.json'}; evaluate it with eval.py"
    f" --config.eval.crf.w1={w1:g} --config.eval.crf.sxy={sxy:g} --config.eval.crf.srgb={srgb:g}"
  ]


def search(
  subject: TrainedModel,
  config: ml_collections.ConfigDict,
  *,
  output: epath.PathLike,
  grid: Grid,
  images: int = 100,
  rounds: int = 2,
  other_class_names: bool = False,
) -> Search:
  """Searches on images spread evenly over `config.data.eval_split`; prints tables, writes `crf.json`.

  Args:
    subject: the network.
    config: its data, and in `eval.crf` what is not searched (w2, smooth, steps, method).
    output: folder for `crf.json`, `search.jsonl` and the network's outputs (`network/`).
    grid: the first round. Every further one lies around the best so far, at half the distance,
      and beyond an end of the grid where that is best.
    images: how many; a smaller split is taken whole.
    rounds: how many.
    other_class_names: whether classes under other names will do.

  Raises:
    UserError: data of other classes than the model's, an empty grid, or a folder with the search of
      another model, split or CRF.
  """
  if images < 1 or rounds < 1:
    raise UserError(f"--images is {images} and --rounds {rounds}; both must be at least 1")
  if jax.process_count() > 1:
    raise UserError(f"crf-search runs in one process, and this job has {jax.process_count()}")
  grid.settings()
  settings, rule = target.crf_settings(config), make_inference_rule(config.eval)
  info = data.dataset_info(config.data)
  target.check_channels(subject, config)
  target.check_classes(subject, info, other_names=other_class_names)
  if info.multi_label:
    raise UserError("the CRF gives each pixel one class; there is none to search with data.multi_label")
  source = data.open_split(config.data, config.data.eval_split)
  indices = sorted({int(i) for i in np.linspace(0, len(source) - 1, min(images, len(source)))})
  facts = {
    "weights": _fingerprint(subject.variables),
    "data": config.data.name,
    "split": config.data.eval_split,
    "of": len(source),
    "classes": info.num_classes,
    "ignore_label": config.loss.ignore_label,
    "rule": dataclasses.asdict(rule),
    **{name: getattr(settings, name) for name in ("w2", "smooth", "steps", "method")},
  }
  output = epath.Path(output)
  log = SearchLog(output, facts)
  corners = align_corners_of(subject.model, given=config.loss.get("align_corners"))
  scores = make_scores(
    subject.model, subject.variables, preprocess=subject.preprocess, rule=rule, align_corners=corners
  )
  _run_network(scores, source, indices, output / "network")
  examples = _Examples(source, output / "network", corners, config.loss.ignore_label)
  facts = {"source": subject.name, "step": subject.step, **facts, "images": len(indices)}
  found, tried = None, []
  for number in range(1, rounds + 1):
    _try(grid, indices, examples, log, settings, name=f"round {number}/{rounds}")
    tried = list(dict.fromkeys([*tried, *grid.settings()]))
    totals = {setting: log.total(indices, setting) for setting in tried}
    found = best_of(totals, log.total(indices, None), w2=settings.w2, smooth=settings.smooth)
    print_line("\n".join(table(found)))
    _write(output / "crf.json", _summary(found, {**facts, "rounds": number}))
    axes = zip(grid, found.setting, strict=True)
    grid = Grid(*(refined_grid((*values, best), best, points=1, beyond=True) for values, best in axes))
  return found


def _numbers(name: str, text: str) -> tuple[float, ...]:
  try:
    return tuple(float(word) for word in text.split(","))
  except ValueError:
    raise UserError(f"--{name} is {text!r}; expected numbers with commas between, such as 3,4,5") from None


def table(found: Search) -> list[str]:
  """The best few settings, best first, and the network alone."""
  best = sorted(found.tried.items(), key=lambda item: -np.nan_to_num(item[1]))[:_TOP]
  lines = ["     w1     sxy    srgb    mIoU"]
  lines += [f"{w1:7.4g} {sxy:7.4g} {srgb:7.4g}  {miou:.4f}" for (w1, sxy, srgb), miou in best]
  return lines + [f"without a CRF            {found.without:.4f}"]


@dataclasses.dataclass(frozen=True)
class _Examples:
  """Image number → (unary, image, label)."""

  source: Source
  outputs: epath.Path
  align_corners: bool
  ignore_label: int

  def __call__(self, index: int) -> tuple[Float[Array, "h w k"], np.ndarray, np.ndarray]:
    example = self.source[index]
    with (self.outputs / f"{index:06d}.npy").open("rb") as file:
      scores = np.load(file)
    label = np.asarray(example["label"])
    unary = unary_of(scores, label.shape, align_corners=self.align_corners)
    return unary, np.asarray(example["image"]), label


def _run_network(scores: Scores, source: Source, indices: Sequence[int], outputs: epath.Path) -> None:
  """Writes the network's output on each image that has none yet."""
  outputs.mkdir(parents=True, exist_ok=True)
  missing = [index for index in indices if not (outputs / f"{index:06d}.npy").exists()]
  with tqdm(
    total=len(indices), initial=len(indices) - len(missing), unit="image", desc="network", disable=None
  ) as bar:
    for index in missing:
      # Written beside and renamed: a kill never leaves half an output.
      part = outputs / f"{index:06d}.part"
      with part.open("wb") as file:
        np.save(file, np.asarray(scores(source[index]["image"]), np.float32))
      part.replace(outputs / f"{index:06d}.npy")
      bar.update()


def _try(
  grid: Grid,
  indices: Sequence[int],
  examples: _Examples,
  log: SearchLog,
  settings: Settings,
  *,
  name: str,
) -> None:
  """Counts every setting of the grid on every image, but what the log has."""
  wanted = grid.settings()
  refiner = Refiner(steps=settings.steps, method=settings.method)
  done = sum((image, setting) in log for image in indices for setting in wanted)
  print_line(
    f"{name}: {len(wanted)} settings on {len(indices)} images" + (f", {done} pairs known" if done else "")
  )
  with tqdm(total=len(wanted) * len(indices), initial=done, desc=name, disable=None) as bar:
    for number, index in enumerate(indices, start=1):
      todo = [setting for setting in wanted if (index, setting) not in log]
      if not todo and (index, None) in log:
        continue
      unary, image, label = examples(index)
      if (index, None) not in log:
        log.add(index, None, count(-unary, label, ignore_label=examples.ignore_label))
      rules = {"w2": settings.w2, "smooth": settings.smooth, "ignore_label": examples.ignore_label}
      for setting, matrix in try_settings(unary, image, label, todo, refiner=refiner, **rules):
        log.add(index, setting, matrix)
        bar.update()
      if bar.disable:
        print_line(f"{name}: image {number}/{len(indices)}")


def _fingerprint(variables: Any) -> str:
  """Tells weights apart: a checkpoint called "best" may be another one tomorrow."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _summary(found: Search, facts: dict[str, Any]) -> dict[str, Any]:
  names = ("w1", "sxy", "srgb")
  ranked = sorted(found.tried.items(), key=lambda item: -np.nan_to_num(item[1]))
  return {
    **facts,
    "best": dict(zip(names, found.setting, strict=True)),
    "mIoU": _plain(found.miou),
    "mIoU_without_crf": _plain(found.without),
    "tried": [{**dict(zip(names, setting, strict=True)), "mIoU": _plain(miou)} for setting, miou in ranked],
  }


def _write(path: epath.Path, values: dict[str, Any]) -> None:
  part = path.with_name(path.name + ".part")
  part.write_text(json.dumps(values, indent=1) + "\n")
  part.replace(path)


def _plain(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
