"""Makes a finished run one of the learners that come with jsharp.

    python -m benchmarks.ship --run=RUN --name=omniglot-maml \
      --data="Omniglot (Lake et al. 2015)" --use="Characters of any script."

Copies `config.json` and `model.safetensors` to `jsharp/shipped/NAME/` and writes the
model card next to them from the run's record: its training data, its accuracy by task,
the command and the commit. Results of `python -m jsharp.evaluate` on the run are
on the card too.
"""

import json
import pathlib
import re
import shlex
import textwrap
from typing import Any

from absl import app, flags

import jsharp
from jsharp.evaluation import protocol_card
from jsharp.learners import Learner

_RUN = flags.DEFINE_string("run", None, "Directory of the run.", required=True)
_NAME = flags.DEFINE_string("name", None, "Name to load it by.", required=True)
_USE = flags.DEFINE_string("use", None, "Intended use and limits.", required=True)
_DATA = flags.DEFINE_string("data", None, "Training data.", required=True)

_SHIPPED = pathlib.Path(jsharp.__file__).parent / "shipped"
_PLACES = re.compile(r"^--(data_dir|run_dir|test_data_dir|compilation_cache_dir)=.*")


def command(words: list[str]) -> str:
  """A command line without machine-specific paths."""
  kept = []
  for word in words:
    if match := _PLACES.match(word):
      if match[1] == "data_dir":
        kept.append("--data_dir=DIRECTORY")
    else:
      kept.append(word)
  start = kept.index("-m")
  return shlex.join(["python", *kept[start:]])


def measured(run: pathlib.Path) -> str:
  """A line for each evaluation of a run."""
  lines = []
  for path in sorted((run / "evaluations").glob("*.json")):
    record = json.loads(path.read_text())
    protocol, figures = record["protocol"], record["figures"]
    task, mean = protocol["task"], 100 * figures["test_accuracy"]
    lines.append(
      f"- {protocol['data']['name']}, {task['way']}-way {task['shot']}-shot, "
      f"{task['query_shot']} query images a class, {record['measured']['policy']}: "
      f"{mean:.2f} ± {100 * figures['test_accuracy_ci95']:.2f} % "
      f"({protocol['tasks']['eval_tasks']} tasks)"
    )
  return "".join(f"{line}\n" for line in lines) + "\n" * bool(lines)


def card(
  learner: Learner,
  result: dict[str, Any],
  name: str,
  data: str,
  use: str,
  evaluations: str,
) -> str:
  """The model card as Markdown."""
  about, protocol = learner.description, result["protocol"]
  height, width, channels = about.input_shape
  colour = "gray" if channels == 1 else "colour"
  size = sum(leaf.size for leaf in _leaves(learner.params))
  heads = "Any number of classes."
  if not about.algorithm.any_way:
    heads = f"Up to {about.num_outputs} classes."
  shown = {key: value for key, value in result.items() if "per_second" not in key}
  figures = protocol_card(
    {**shown, "experiment": name, "protocol": {"task": protocol["task"]}}
  )
  what = (type(about.algorithm).__doc__ or "").strip()
  summary = f"""{what} Network: {about.network.name},
    {size:,} numbers. It sees {height}x{width} {colour} images. {heads}"""
  source = f"""{data}. Its splits have different classes: the learner had seen none of
    those that it was tested on."""
  return f"""# {name}

{_filled(summary)}

    import jsharp

    classifier = jsharp.load("{name}").classifier()
    classifier.fit(examples, labels)
    classifier.predict(images)

## Meant for

{_filled(use)}

## Trained on

{_filled(source)}

## Accuracy

{_indented(figures)}

Means over {result["num_eval_tasks"]} test tasks with their 95 % interval; one training
seed. Inductive: each image by itself.

{evaluations}## Made by

    {command(shlex.split(protocol["command"]))}

Commit {protocol["git_commit"]}, Python {protocol["versions"]["python"]}, jax
{protocol["versions"]["jax"]}.

Licence: that of jsharp.
"""


def _leaves(params: Any) -> list[Any]:
  import jax

  return jax.tree.leaves(params)


def _filled(text: str) -> str:
  return textwrap.fill(" ".join(text.split()), 88)


def _indented(text: str) -> str:
  return "\n".join(f"    {line}" for line in text.splitlines())


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  run, target = pathlib.Path(_RUN.value), _SHIPPED / _NAME.value
  learner = jsharp.load(run)
  if not isinstance(learner, Learner):
    raise app.UsageError(f"--run={run} is no run of few-shot learning")
  result = json.loads((run / "result.json").read_text())
  jsharp.save(learner, target)
  text = card(learner, result, _NAME.value, _DATA.value, _USE.value, measured(run))
  (target / "README.md").write_text(text)
  print(text)


if __name__ == "__main__":
  app.run(main)
