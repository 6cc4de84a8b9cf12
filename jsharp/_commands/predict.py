"""Classifies images by a few examples of each class, from the command line.

    python -m jsharp.predict --model=RUN --support=examples --images=photographs

`examples/` has one folder per class with a few images of it; `photographs/` is a
directory of images, with or without subfolders. Standard output has one line per image,
as a table, CSV or JSON; everything else goes to standard error.

If every image is in a folder named after one of the classes, the accuracy is reported
too.

Exit codes: 0 done; 2 bad flags, learner or images.
"""

import csv
import dataclasses
import io
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from absl import flags

from jsharp._files import composed
from jsharp._flags import Given, Group, Program, call, message, refuse
from jsharp._terminal import say, silence
from jsharp.options import Options, Role, at_least, option

if TYPE_CHECKING:
  import numpy as np

  from jsharp.learners import FewShotClassifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction(Options):
  """The images to classify, the examples and the learner."""

  role: ClassVar[Role] = Role.TESTING

  model: str = option(
    help="The learner: a run directory, a directory written by jsharp.save, or the "
    "name of a learner that comes with jsharp."
  )
  support: str = option(
    help="Directory of the examples, with one folder per class, named after the class, "
    "of any number of images."
  )
  images: tuple[str, ...] | None = option(
    None,
    "Images to classify: files, or directories that are searched for images. Words "
    "that are not flags are images too.",
  )
  format: Literal["table", "csv", "json"] = option(
    "table", "Format of the standard output."
  )
  top: int = option(
    3, "Classes shown for each image, the most probable first.", check=at_least(1)
  )
  policy: Literal["inductive", "transductive"] = option(
    "inductive",
    "inductive: each image is predicted alone, normalised by the examples. "
    "transductive: all images are one normalisation batch.",
  )
  num_steps: int | None = option(
    None,
    "Inner steps on the examples. Default: the learner's own number at test.",
    check=at_least(0),
  )
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, as in training; private to you. Empty: no cache.",
    role=Role.MACHINE,
  )


PROGRAM = Program(
  "predict",
  (Group("classifying images", {"prediction": Prediction}),),
  {},
  "python -m jsharp.predict classifies images by a few examples of each class.",
)


class Names(NamedTuple):
  """Predicted classes of images.

  Attributes:
    paths: the paths of the images.
    classes: the classes.
    probabilities: `[num_images, way]`, in the order of `classes`.
  """

  paths: "list[pathlib.Path]"
  classes: list[str]
  probabilities: "np.ndarray"

  def best(self, top: int) -> list[list[tuple[str, float]]]:
    """The most probable classes of each image, with their probabilities."""
    order = (-self.probabilities).argsort(axis=1, kind="stable")[:, :top]
    return [
      [(self.classes[i], float(row[i])) for i in chosen]
      for row, chosen in zip(self.probabilities, order, strict=True)
    ]


def main() -> None:
  """Runs the program with the command line of this process; does not return."""
  sys.exit(start(sys.argv[1:], flags.FLAGS))


def start(arguments: Sequence[str], values: flags.FlagValues) -> int:
  """Runs the program with a command line; returns the exit code."""
  return call(PROGRAM, arguments, values, _name, takes_words=True)


def _name(given: Given) -> int:
  asked: Prediction = given.build()["prediction"]
  places = [*(asked.images or ()), *given.rest]
  if not places:
    raise ValueError("--images is missing: name files or directories of images")
  try:
    paths = found(places)
    names, seconds = _named(asked, paths)
    _print(written(names, asked.format, asked.top))
  except OSError as error:
    return refuse(PROGRAM.name, message(error))
  say(seconds)
  if truth := accuracy(names):
    say(truth)
  return 0


def found(places: Sequence[str]) -> list[pathlib.Path]:
  """The given image files, and those in given directories, sorted by path.

  Args:
    places: paths.

  Returns:
    The paths, each once.

  Raises:
    FileNotFoundError: if one does not exist, or a directory has no images.
  """
  from jsharp.data import pictures

  paths: dict[pathlib.Path, None] = {}
  for place in places:
    paths |= dict.fromkeys(pictures.files(place, recursive=True))
  return list(paths)


def _named(asked: Prediction, paths: list[pathlib.Path]) -> tuple[Names, str]:
  """Predicted classes for images, and a line about the time it took."""
  from jsharp.data import pictures

  classifier = _classifier(asked)
  # Images are read, and errors reported, before anything is compiled.
  images = pictures.read(paths, classifier.learner.description.looks)
  say(f"{PROGRAM.name}: adapting; the first time compiles, which takes seconds")
  begin = time.perf_counter()
  classifier.fit(asked.support)
  adapted = time.perf_counter()
  probabilities = classifier.predict_proba(images)
  end = time.perf_counter()
  classes = [str(name) for name in classifier.classes_]
  say(
    f"{PROGRAM.name}: {classifier!r} from {asked.model}: {', '.join(classes)}",
  )
  seconds = (
    f"{PROGRAM.name}: adapted to {classifier.num_examples} examples in "
    f"{adapted - begin:.1f} s, named {len(paths)} images in {end - adapted:.1f} s, "
    "both with compilation"
  )
  return Names(paths, classes, probabilities), seconds


def _classifier(asked: Prediction) -> "FewShotClassifier":
  from jsharp.core.execution import Execution
  from jsharp.learners import Learner, load
  from jsharp.training import use_compilation_cache

  use_compilation_cache(asked.compilation_cache_dir)
  # It runs only a few times, so quick compilation matters most.
  execution = Execution(inner_steps="scanned", convolution="direct")
  learner = load(asked.model, execution=execution)
  if not isinstance(learner, Learner):
    raise ValueError(
      f"--model={asked.model} is an ordinary classifier of fixed classes, or a policy, "
      "and cannot learn new classes from --support; name a few-shot learner"
    )
  return learner.classifier(asked.policy, asked.num_steps)


def written(names: Names, form: str, top: int) -> str:
  """Formats predicted classes as text.

  Args:
    names: the predicted classes.
    form: "table", "csv" or "json".
    top: classes per image.

  Returns:
    The text, with a line break at its end.

  Example:
    >>> import numpy as np
    >>> names = Names([pathlib.Path("a.png")], ["cat", "dog"], np.array([[0.2, 0.8]]))
    >>> print(written(names, "csv", 1), end="")
    file,name,probability
    a.png,dog,0.8
  """
  best = names.best(top)
  if form == "json":
    entries = [
      {
        "file": str(path),
        "name": chosen[0][0],
        "probability": chosen[0][1],
        "top": [{"name": name, "probability": share} for name, share in chosen],
      }
      for path, chosen in zip(names.paths, best, strict=True)
    ]
    return json.dumps(entries, indent=2) + "\n"
  if form == "csv":
    return _csv(names, best)
  rows = [
    [_shown(path), *(f"{_shown(name)} {100 * share:.1f} %" for name, share in chosen)]
    for path, chosen in zip(names.paths, best, strict=True)
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    for row in rows
  )
  return "".join(f"{line.rstrip()}\n" for line in lines)


def _shown(name: object) -> str:
  """A name on one line, with unprintable characters escaped."""
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
    for c in str(name)
  )


def _csv(names: Names, best: list[list[tuple[str, float]]]) -> str:
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  head = ["file", "name", "probability"]
  for place in range(2, len(best[0]) + 1):
    head += [f"name_{place}", f"probability_{place}"]
  writer.writerow(head)
  for path, chosen in zip(names.paths, best, strict=True):
    cells: list[Any] = [path]
    for pair in chosen:
      cells += pair
    writer.writerow(cells)
  return buffer.getvalue()


def accuracy(names: Names) -> str | None:
  """The accuracy, if every image's folder is named after a class; otherwise None."""
  import numpy as np

  truth = [composed(path.parent.name) for path in names.paths]
  if not set(truth) <= set(names.classes):
    return None
  best = names.probabilities.argmax(axis=1)
  right = np.array(
    [names.classes[i] == name for i, name in zip(best, truth, strict=True)]
  )
  share = right.mean()
  line = f"{PROGRAM.name}: {right.sum()} of {len(right)} match the name of their folder"
  if len(right) < 2:
    return line
  half = 1.96 * right.std(ddof=1) / np.sqrt(len(right))
  return f"{line}: {100 * share:.1f} ± {100 * half:.1f} %"


def _print(text: str) -> None:
  """Prints text; ends quietly if the reader has closed the pipe, as `head` does.

  Raises:
    OSError: if printing fails for another reason, such as a full disk.
  """
  try:
    sys.stdout.write(text)
    sys.stdout.flush()
  except OSError as error:
    silence(sys.stdout)
    if not isinstance(error, BrokenPipeError):
      what = f"cannot print the result ({error.strerror}); print it elsewhere"
      raise type(error)(error.errno, what) from error
