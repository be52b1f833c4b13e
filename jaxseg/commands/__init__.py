"""The commands of `jaxseg`, one file each; `jaxseg.cli` imports only the one that is asked for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Command:
  """Where a command is, and what `jaxseg --help` says of it.

  Attributes:
    module: has `add_flags(parser)` and `run(flags, changes)`, which returns lines to print. A command that
      may run as several processes has `main(argv, program)` in place of `run`, which ends them together.
    help: one line.
    changes: whether it takes `--config.key=value`.
  """

  module: str
  help: str
  changes: bool = True


COMMANDS = {
  "list": Command("jaxseg.commands.list", "the models by name, with their parts", changes=False),
  "info": Command(
    "jaxseg.commands.info", "one model by part: parameters, MACs, memory, fields", changes=False
  ),
  "config": Command("jaxseg.commands.config", "a config as it would run, with its recipe card"),
  "plan": Command("jaxseg.commands.plan", "memory, work and speed of a training step, before renting chips"),
  "check-dataset": Command("jaxseg.commands.check_dataset", "what a config's data hold, and a picture"),
  "prepare-dataset": Command(
    "jaxseg.commands.prepare_dataset", "write a config's data as training reads them"
  ),
  "train": Command("jaxseg.commands.train", "train a model, or go on with a stopped run"),
  "eval": Command("jaxseg.commands.evaluate", "exact scores of a trained model, a report and a picture"),
  "predict": Command(
    "jaxseg.commands.predict", "segment photos and videos: overlays, label maps", changes=False
  ),
  "throughput": Command(
    "jaxseg.commands.throughput", "images/s and latency of inference on this device", changes=False
  ),
  "explain": Command(
    "jaxseg.commands.explain", "what an output pixel looks at: effective receptive fields", changes=False
  ),
  "robustness": Command(
    "jaxseg.commands.robustness", "scores under 16 corruptions and at other image sizes, with a plot"
  ),
  "compare": Command("jaxseg.commands.compare", "finished runs side by side", changes=False),
  "export": Command("jaxseg.commands.export", "a file or a page that runs without jaxseg", changes=False),
  "crf-search": Command("jaxseg.commands.crf_search", "the best CRF behind a network, on a validation split"),
}
