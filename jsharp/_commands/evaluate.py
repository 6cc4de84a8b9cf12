"""Measures trained learners on any data, ways and shots, without training again.

    python -m jsharp.evaluate --model=RUN --way=20 --shot=5
    python -m jsharp.evaluate --model=A,B --dataset=image_folder --data_dir=photographs
    python -m jsharp.evaluate --model=A,B,C --table

Settings that are not given are those of the run's own test. Every evaluation is written
into its run's directory, as `RUN/evaluations/NAME.json`, and nothing else in the run
changes. Evaluations of a learner that comes with jsharp are written to
`evaluations/LEARNER/`. With several learners, and with `--table`, tables compare them:
learners by evaluations, and for each evaluation the paired differences from the first
learner.

Exit codes: 0 done; 2 bad flags, learner or data.
"""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from absl import flags

from jsharp import _files
from jsharp._flags import Choice, Given, Group, Program, call, message, refuse
from jsharp._terminal import say, tell
from jsharp.options import (
  Check,
  Options,
  Role,
  at_least,
  between,
  interval,
  option,
)

if TYPE_CHECKING:
  from jsharp.data import Dataset, ImageSource
  from jsharp.data.tasks import Kind, Tasks
  from jsharp.learners import Learner
  from jsharp.training.options import Testing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models(Options):
  """Which learners to measure, and how to name and print the evaluations."""

  role: ClassVar[Role] = Role.TESTING

  model: tuple[str, ...] = option(
    help="The learners, separated by commas: run directories, directories written by "
    "jsharp.save, or names of learners that come with jsharp."
  )
  step: int | None = option(
    None,
    "Measure a run's parameters at this meta-step, if that checkpoint was kept. "
    "Default: the parameters with the best validation.",
    check=at_least(0),
  )
  eval_name: str | None = option(
    None,
    "Name of the evaluation. Default: a name made from its data and tasks.",
    check=Check(
      lambda name: not name.startswith(".") and not set(name) & set("/\\:"),
      "must be a file name without folders, such as wide.",
    ),
  )
  table: bool = option(
    False, "Measure nothing; print the tables of existing evaluations."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured(Options):
  """The tasks that learners are measured on; None means as in the run's test."""

  role: ClassVar[Role] = Role.TESTING

  way: int | None = option(None, "Classes per task.", check=at_least(2))
  min_way: int | None = option(
    None,
    "Tasks of varying way with unbalanced support sets: from --min_way to --way "
    "classes. With --dataset=domains each domain and their mean are reported too.",
    check=at_least(2),
  )
  shot: int | None = option(
    None, "Support examples per class and task.", check=at_least(1)
  )
  query_shot: int | None = option(
    None,
    "Query examples per class and task. Under --policy=transductive they are one "
    "normalisation batch, so this number changes the result.",
    check=at_least(1),
  )
  support_label_noise: float | None = option(
    None, "Fraction of wrong labels in the support sets.", check=between(0, 1)
  )
  rotation: tuple[float, ...] | None = option(
    None,
    "Rotate all images of a task by the same angle in degrees, uniform from LOW to "
    "HIGH.",
    check=interval("must be LOW,HIGH with LOW <= HIGH, such as -20,20."),
  )
  shear: tuple[float, ...] | None = option(
    None,
    "Shear all images of a task by the same amount in columns per row, uniform from "
    "LOW to HIGH.",
    check=interval("must be LOW,HIGH with LOW <= HIGH, such as -0.2,0.2."),
  )
  scale: tuple[float, ...] | None = option(
    None,
    "Scale all images of a task by the same factor, uniform from LOW to HIGH.",
    check=interval("must be LOW,HIGH with LOW <= HIGH, such as 0.8,1.2."),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring(Options):
  """How learners are measured on the tasks."""

  role: ClassVar[Role] = Role.TESTING

  policy: Literal["transductive", "support_statistics", "per_query"] = option(
    "transductive",
    "Whose statistics normalise a query example. transductive: those of the whole "
    "query set, as in the papers; support_statistics: those of the support set; "
    "per_query: those of the support set and the example itself.",
  )
  num_eval_inner_steps: int | None = option(
    None, "Inner steps. Default: the learner's own number.", check=at_least(0)
  )
  eval_tasks: int | None = option(
    None,
    "Number of tasks, always the same ones. The interval shrinks with its square root. "
    "Default: as in the run's test, or the papers' 600.",
    check=at_least(2, "an interval needs at least 2 tasks; the papers use 600."),
  )
  eval_seed: int | None = option(
    None, "Seed of the tasks. Default: as in the run's test, or 0.", check=at_least(0)
  )
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, as in training; private to you. Empty: no cache.",
    role=Role.MACHINE,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place(Options):
  """The location of the data, and the split."""

  role: ClassVar[Role] = Role.MACHINE

  data_dir: str | None = option(
    None,
    "Directory with the files of the dataset. Default: that of the run, unless "
    "--dataset is given.",
  )
  split: Literal["test", "val", "train"] = option(
    "test", "Split whose classes tasks are drawn from.", role=Role.TESTING
  )


PROGRAM = Program(
  "evaluate",
  (
    Group("learners", {"models": Models}),
    Group(
      "data",
      {
        "data": Choice(
          "dataset",
          "dataset",
          "The dataset to measure on: omniglot, miniimagenet, tieredimagenet, "
          "cifar_fs, fc100, cub, characters (drawn by jsharp itself, needs no files), "
          "image_folder (any split/class/image or "
          "class/image), tfds:NAME or your own as module:Class. Default: that of the "
          "run.",
          None,
        ),
        "place": Place,
      },
    ),
    Group("tasks", {"tasks": Measured}),
    Group("measuring", {"measuring": Measuring}),
  ),
  {},
  "python -m jsharp.evaluate measures trained learners on any data.",
)


class Subject(NamedTuple):
  """A learner to measure.

  Attributes:
    name: its name, as given.
    learner: the learner.
    home: the directory of its evaluations.
    digest: the digest of its parameters and description.
    tasks: the tasks of the run's test; None if unknown.
    testing: the settings of the run's test; likewise.
    data: the dataset of the run; likewise.
    data_dir: the directory of the run's data; likewise.
  """

  name: str
  learner: "Learner"
  home: pathlib.Path
  digest: str
  tasks: "Tasks | None"
  testing: "Testing"
  data: "ImageSource | None"
  data_dir: str | None


def main() -> None:
  """Runs the program with the command line of this process; does not return."""
  sys.exit(start(sys.argv[1:], flags.FLAGS))


def start(arguments: Sequence[str], values: flags.FlagValues) -> int:
  """Runs the program with a command line; returns the exit code."""
  return call(PROGRAM, arguments, values, _measure)


def _measure(given: Given) -> int:
  parts = given.build()
  models: Models = parts["models"]
  try:
    if not models.table:
      from jsharp.training import use_compilation_cache

      use_compilation_cache(parts["measuring"].compilation_cache_dir)
      subjects = [_subject(name, models.step) for name in models.model]
      for subject in subjects:
        _one(subject, given, parts)
    records = {name: list(_records(name)) for name in models.model}
  except OSError as error:
    return refuse(PROGRAM.name, message(error))
  if models.table and not any(records.values()):
    return refuse(
      PROGRAM.name,
      f"{', '.join(records)}: no evaluations yet; leave out --table to make one",
    )
  if models.table or len(records) > 1:
    tell(tables(records))
  return 0


def _subject(name: str, step: int | None) -> Subject:
  from jsharp import tree
  from jsharp.learners import Learner, evaluations_of, load
  from jsharp.training import description_of
  from jsharp.training.options import Testing
  from jsharp.training.runs import FewShotRun

  learner = load(name, step=step)
  if not isinstance(learner, Learner):
    raise ValueError(
      f"--model={name} is an ordinary classifier or a policy, which is measured in "
      "training; name a few-shot learner of images"
    )
  if not tree.is_finite(learner.params):
    raise ValueError(
      f"--model={name}: its parameters are not finite, since its training diverged; "
      "name another learner or, with --step, an earlier checkpoint"
    )
  if learner.description.problem != "classification":
    raise ValueError(f"--model={name} solves a regression; name a classifier of images")
  run = description_of(name)
  return Subject(
    name=name,
    learner=learner,
    home=evaluations_of(name),
    digest=_digest(learner),
    tasks=run.tasks if isinstance(run, FewShotRun) else None,
    testing=run.testing if isinstance(run, FewShotRun) else Testing(),
    data=run.test_data or run.data
    if isinstance(run, FewShotRun)
    else learner.description.source,
    data_dir=_data_dir(run) if isinstance(run, FewShotRun) else None,
  )


def _digest(learner: Any) -> str:
  """The digest of a learner's description and parameters."""
  from jsharp import _leaf_archive
  from jsharp.learners import to_json

  text = json.dumps(to_json(learner.description), sort_keys=True)
  digest = hashlib.sha256(text.encode())
  for path, array in _leaf_archive.named_leaves(learner.params).items():
    digest.update(path.encode() + array.tobytes())
  return digest.hexdigest()[:16]


def _data_dir(run: Any) -> str | None:
  placement = run.placement
  if run.test_data is None:
    return placement.data_dir
  return placement.test_data_dir or placement.data_dir


def _one(subject: Subject, given: Given, parts: Mapping[str, Any]) -> None:
  """Measures one learner and writes the evaluation."""
  import numpy as np

  from jsharp._files import write_json
  from jsharp.evaluation import (
    environment,
    measure_learner,
    over_domains,
    protocol_card,
    summarise,
  )
  from jsharp.training.devices import execution_for

  measuring: Measuring = parts["measuring"]
  dataset, about, source = _dataset(subject, given, parts)
  tasks = _tasks(subject, parts["tasks"])
  kind = tasks.test()
  subject.learner.check_way(kind.shape["way"])
  kind.check(dataset)
  num_tasks = measuring.eval_tasks or subject.testing.eval_tasks
  seed = measuring.eval_seed
  if seed is None:
    seed = subject.testing.eval_seed
  protocol = {
    "data": about,
    "task": kind.shape
    | {
      name: getattr(tasks, name)
      for name in ("min_way", "support_label_noise", "rotation", "shear", "scale")
      if getattr(tasks, name)
    },
    "tasks": {"eval_tasks": num_tasks, "eval_seed": seed},
  }
  given_steps = measuring.num_eval_inner_steps
  own_steps = subject.learner.num_eval_steps
  how = {
    "policy": measuring.policy,
    "num_eval_inner_steps": own_steps if given_steps is None else given_steps,
    "given": given_steps,
  }
  models: Models = parts["models"]
  name = models.eval_name or _called(source, about, protocol, how, models.step)
  path = subject.home / f"{name}.json"
  asked = {
    "learner": {"digest": subject.digest, "step": models.step},
    "protocol": _plain(protocol),
    "measured": _plain(how),
  }
  if path.exists():
    found = _read(path)
    if all(found.get(key) == value for key, value in asked.items()):
      say(f"evaluate: {path} already has this evaluation")
      tell(protocol_card(_for_card(found)))
      return
    raise ValueError(
      f"{path} is a different evaluation; pass another --eval_name, or remove that file"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  if not os.access(path.parent, os.W_OK):  # Checked before minutes of computation.
    raise PermissionError(errno.EACCES, "cannot write an evaluation", str(path.parent))
  say(f"evaluate: {subject.name} on {num_tasks} tasks of {about['name']}")
  on_device = dataset.on_device()

  def measured(kind: "Kind") -> Mapping[str, Any]:
    metrics = measure_learner(
      subject.learner,
      kind,
      on_device,
      num_tasks=num_tasks,
      seed=seed,
      policy=measuring.policy,
      num_steps=measuring.num_eval_inner_steps,
      execution=execution_for(),
    )
    if lost := int((~np.isfinite(metrics["loss"])).sum()):
      raise ValueError(
        f"{subject.name}: adaptation ends in NaN or infinity on {lost} of {num_tasks} "
        "tasks, so nothing is written; pass a smaller --num_eval_inner_steps"
      )
    return metrics

  metrics = measured(kind)
  figures: dict[str, Any] = summarise(metrics)
  domains = [
    {**one.name, **summarise(measured(one))} for one in tasks.by_domain(dataset)
  ]
  if domains:
    figures |= over_domains(domains) | {"test_variations": domains}
  algorithm = subject.learner.description.algorithm.name
  record = {
    "name": name,
    "model": subject.name,
    "algorithm": algorithm,
    **asked,
    "figures": figures,
    "per_task": {
      key: np.asarray(values, np.float64).tolist() for key, values in metrics.items()
    },
    **environment(),
  }
  write_json(path, record)
  tell(protocol_card(_for_card(record)))
  tell(str(path))


def _dataset(
  subject: Subject, given: Given, parts: Mapping[str, Any]
) -> "tuple[Dataset, dict[str, Any], ImageSource]":
  """The images, in the learner's shape, and facts about them."""
  from jsharp.data.fitting import fit_to

  place: Place = parts["place"]
  source = parts["data"] or subject.data
  if source is None:
    raise ValueError(
      f"--dataset is missing, and it is not known what {subject.name} was tested on; "
      "pass --dataset"
    )
  own = parts["data"] is None
  data_dir = place.data_dir or (subject.data_dir if own else None)
  dataset = source.load(data_dir, only=place.split)[place.split]
  about = {
    "name": source.name,
    "folder": _folder(source, data_dir),
    "split": place.split,
    "classes": dataset.num_classes,
    "fingerprint": dataset.fingerprint(),
  }
  dataset, changes = fit_to(
    dataset, subject.learner.description.looks, light_ink=source.light_ink
  )
  if changes:
    about["images"] = changes
  if dataset.origin:
    about["prepared"] = dataset.origin
  return dataset, about, source


def _folder(source: "ImageSource", data_dir: str | None) -> str | None:
  if not source.files or data_dir is None:
    return None
  return pathlib.Path(data_dir).expanduser().resolve().name


def _tasks(subject: Subject, asked: Measured) -> "Tasks":
  from jsharp.data.tasks import Tasks

  tasks = subject.tasks or Tasks(query_shot=15)
  own = {
    name: value
    for name, value in dataclasses.asdict(asked).items()
    if value is not None
  }
  query_shot = own.pop("query_shot", tasks.eval_query_shot)
  return tasks.replace(
    **own,
    eval_query_shot=query_shot,
    **dict.fromkeys(
      (
        "train_way",
        "train_shot",
        "eval_way",
        "eval_shot",
        "eval_support_label_noise",
        "eval_rotation",
        "eval_shear",
        "eval_scale",
      )
    ),
  )


def _called(
  source: "ImageSource",
  about: Mapping[str, Any],
  protocol: Mapping[str, Any],
  how: Mapping[str, Any],
  step: int | None,
) -> str:
  """A name made from what was measured, different for other tasks or settings."""
  words = [about["folder"] if source.holds_any and about["folder"] else source.name]
  if about["split"] != "test":
    words.append(about["split"])
  task = protocol["task"]
  fewest = f"{task['min_way']}to" if "min_way" in task else ""
  words += [f"{fewest}{task['way']}way", f"{task['shot']}shot", how["policy"]]
  if step is not None:
    words.append(f"step{step}")
  text = json.dumps(_plain([protocol, how["policy"], how["given"]]), sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:6]
  return "-".join([*words, digest]).replace(":", "-").replace("/", "-")


def _plain(value: Any) -> Any:
  return json.loads(json.dumps(value))


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    record = _files.read_table(path)
    record["per_task"]["accuracy"], record["figures"]["test_accuracy"]
    record["learner"]["step"], record["learner"]["digest"]
    return record
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is not an evaluation ({error}); remove it, or restore it from a copy"
    ) from error


def _records(name: str) -> Iterator[dict[str, Any]]:
  """The evaluations of a learner's current parameters; others are reported."""
  from jsharp.learners import evaluations_of, load

  directory = evaluations_of(name)
  names = _files.names_in(directory)
  digests: dict[int | None, str | None] = {}
  for path in (directory / entry for entry in names if entry.endswith(".json")):
    record = _read(path)
    step = record["learner"]["step"]
    if step not in digests:
      try:
        digests[step] = _digest(load(name, step=step))
      except (OSError, ValueError):
        if step is None:
          raise
        digests[step] = None  # The checkpoint is gone, so its digest is unknown.
    if digests[step] in (None, record["learner"]["digest"]):
      yield record
    else:
      say(
        f"evaluate: {path} belongs to other parameters than those of {name} now; it is "
        "ignored. Remove it"
      )


def _for_card(record: Mapping[str, Any]) -> dict[str, Any]:
  """Converts an evaluation to a result for `protocol_card`."""
  figures = dict(record["figures"])
  policy = record["measured"]["policy"]
  if policy != "transductive":  # The card expects the two policies of a run's result.
    for end in ("", "_ci95"):
      figures[f"test_accuracy_inductive{end}"] = figures.pop(f"test_accuracy{end}")
  protocol = record["protocol"]
  return {
    "experiment": record["name"],
    **figures,
    "num_eval_tasks": protocol["tasks"]["eval_tasks"],
    "protocol": {
      "learner": {"name": record["model"], "algorithm": record["algorithm"]},
      "task": protocol["task"],
      "data": protocol["data"],
      "measured": {**record["measured"], "given": None},
    },
  }


def tables(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Tables of learners by evaluations, and of paired differences from the first.

  Args:
    records: the evaluations of each learner, by its name.

  Returns:
    Markdown. Learners are compared if they were measured on the same tasks.
  """
  from jsharp.evaluation import compare, markdown

  columns = list(dict.fromkeys(_column(r) for found in records.values() for r in found))
  lines = [
    "| learner | " + " | ".join(columns) + " |",
    "|---" * (len(columns) + 1) + "|",
  ]
  for name, found in records.items():
    cells = {_column(record): _figure(record) for record in found}
    lines.append(f"| {name} | " + " | ".join(cells.get(c, "") for c in columns) + " |")
  for column in columns:
    rows = {
      name: [record["per_task"]["accuracy"]]
      for name, found in records.items()
      for record in found
      if _column(record) == column
    }
    if len(rows) > 1:
      compared = compare(rows, baseline=next(iter(rows)))
      lines += ["", f"{column}:", "", markdown(compared)]
  return "\n".join(lines)


def _column(record: Mapping[str, Any]) -> str:
  """The heading that evaluations on the same tasks share."""
  protocol, policy = record["protocol"], record["measured"]["policy"]
  data, task = protocol["data"], protocol["task"]
  text = json.dumps([{**data, "images": None}, task, protocol["tasks"]], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:4]
  where = data["folder"] or data["name"]
  fewest = f"{task['min_way']}- to " if "min_way" in task else ""
  words = [where, f"{fewest}{task['way']}-way {task['shot']}-shot", policy]
  if (given := record["measured"]["given"]) is not None:
    words.append(f"{given} steps")
  if (step := record["learner"]["step"]) is not None:
    words.append(f"at step {step}")
  return f"{' '.join(words)} ({digest})"


def _figure(record: Mapping[str, Any]) -> str:
  figures = record["figures"]
  mean, half = (100 * figures[f"test_accuracy{end}"] for end in ("", "_ci95"))
  return f"{mean:.2f} ± {half:.2f}"
