"""Measures the accuracy and the time of few-shot classification of photographs.

    python -m benchmarks.naming --images=DIRECTORY --models=RUN,RUN --shot=5

`DIRECTORY` has a folder of photographs per class. Each task draws `--way` classes and
`--shot` examples of each; the rest of their photographs, at most `--most` per class,
are classified separately. With `--classes=a,b,c` all tasks have these classes.

All learners are measured on the same tasks. The baseline is the nearest neighbour of
each photograph among the examples, by Euclidean distance between pixels at the image
size of the first learner. Intervals are over tasks; with one task, over photographs.

Times are of the first learner's first and second task in this process: the first
compiles. They include the reading of files.
"""

import pathlib
import platform
import time

import jax
import numpy as np
from absl import app, flags

import jsharp
from benchmarks import tables
from jsharp.data import pictures
from jsharp.learners import FewShotClassifier, Learner

_IMAGES = flags.DEFINE_string("images", None, "Directory class/*.", required=True)
_MODELS = flags.DEFINE_list("models", None, "Learners to load.", required=True)
_CLASSES = flags.DEFINE_list("classes", None, "Classes of every task; drawn if None.")
_WAY = flags.DEFINE_integer("way", 5, "Classes per task.", lower_bound=2)
_SHOT = flags.DEFINE_integer("shot", 5, "Examples per class.", lower_bound=1)
_MOST = flags.DEFINE_integer("most", 100, "Most photographs to classify per class.")
_TASKS = flags.DEFINE_integer("tasks", 50, "Number of tasks.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the tasks.")


class Nearest:
  """The class of the nearest example, by pixels."""

  def __init__(self, looks: pictures.Looks):
    self._looks = looks

  def fit(self, images: list[pathlib.Path], labels: list[str]) -> "Nearest":
    """Keeps the examples."""
    self._rows = self._read(images)
    self._labels = np.array(labels)
    return self

  def predict(self, images: list[pathlib.Path]) -> np.ndarray:
    """The class of the nearest example of each image."""
    rows = self._read(images)
    distance = (
      np.square(rows).sum(1)[:, None]
      - 2 * rows @ self._rows.T
      + np.square(self._rows).sum(1)[None]
    )
    return self._labels[distance.argmin(axis=1)]

  def _read(self, images: list[pathlib.Path]) -> np.ndarray:
    return pictures.read(images, self._looks).reshape(len(images), -1).astype(float)


def draw(
  classes: dict[str, list[pathlib.Path]], rng: np.random.Generator
) -> tuple[list[pathlib.Path], list[str], list[pathlib.Path], list[str]]:
  """Examples with their classes, then photographs to name with theirs."""
  names = _CLASSES.value or rng.choice(list(classes), _WAY.value, replace=False)
  examples, known, rest, truth = [], [], [], []
  for name in names:
    order = rng.permutation(len(classes[name]))
    chosen = [classes[name][i] for i in order[: _SHOT.value + _MOST.value]]
    examples += chosen[: _SHOT.value]
    rest += chosen[_SHOT.value :]
    known += [str(name)] * _SHOT.value
    truth += [str(name)] * (len(chosen) - _SHOT.value)
  return examples, known, rest, truth


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  paths, labels = pictures.class_folders(_IMAGES.value)
  classes: dict[str, list[pathlib.Path]] = {}
  for path, label in zip(paths, labels, strict=True):
    classes.setdefault(label, []).append(path)
  named: dict[str, FewShotClassifier | Nearest] = {}
  for name in _MODELS.value:
    learner = jsharp.load(name)
    if not isinstance(learner, Learner):
      raise app.UsageError(f"--models: {name} is not a few-shot learner")
    if not named:
      named["nearest neighbour"] = Nearest(learner.description.looks)
    named[name] = learner.classifier()
  print(
    f"{len(paths)} photographs of {len(classes)} classes; Python "
    f"{platform.python_version()}, jax {jax.__version__}, "
    f"{jax.devices()[0].device_kind}"
  )
  rng = np.random.default_rng(_SEED.value)
  right: dict[str, list[np.ndarray]] = {name: [] for name in named}
  seconds: dict[str, list[tuple[float, float, int]]] = {name: [] for name in named}
  for _ in range(_TASKS.value):
    examples, known, rest, truth = draw(classes, rng)
    for name, classifier in named.items():
      begin = time.perf_counter()
      classifier.fit(examples, known)
      fitted = time.perf_counter()
      found = classifier.predict(rest)
      end = time.perf_counter()
      right[name].append(found == np.array(truth))
      seconds[name].append((fitted - begin, end - fitted, len(rest)))
  tables.begin_table(
    ("learner", "accuracy, %", "first fit, s", "second fit, s", "per name, ms")
  )
  for name, results in right.items():
    values = np.array([result.mean() for result in results])
    if len(results) == 1:
      values = results[0].astype(float)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    fits = [fit for fit, _, _ in seconds[name]]
    later = seconds[name][1:] or seconds[name]
    each = 1000 * sum(s for _, s, _ in later) / sum(n for _, _, n in later)
    cells = (
      pathlib.Path(name).name,
      f"{100 * values.mean():.2f} ± {100 * half:.2f}",
      f"{fits[0]:.2f}",
      f"{fits[1]:.2f}" if len(fits) > 1 else "",
      f"{each:.1f}",
    )
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
  app.run(main)
