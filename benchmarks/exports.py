"""Measures sizes, times and errors of exported learners.

    python -m benchmarks.exports --models=omniglot-maml,omniglot-protonet

Each learner learns five characters that jsharp draws, from one drawing of each, and is
then exported in every form of docs/export.md. Each export is loaded and its predictions
are compared with those of the classifier. Needs the extra `onnx`. The learners take
28x28 gray images.
"""

import pathlib
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

import jsharp
from benchmarks import tables
from jsharp import data
from jsharp.learners import FewShotClassifier, Learner

_MODELS = flags.DEFINE_list("models", None, "Learners to load.", required=True)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of each measurement.")

_WAY = 5
_MANY = 64

Program = Callable[[np.ndarray], Any]
"""`program(images) -> probabilities`."""


def adapting(path: pathlib.Path, examples: np.ndarray) -> Program:
  """A program that learns the classes again in every call."""
  from jax import export

  program = export.deserialize(bytearray(path.read_bytes()))
  labels = np.arange(len(examples), dtype=np.int32)
  return jax.jit(lambda images: program.call(examples, labels, images))


def fitted(path: pathlib.Path, examples: np.ndarray) -> Program:
  """A JAX program that classifies images among the classes it was fitted to."""
  from jax import export

  return jax.jit(export.deserialize(bytearray(path.read_bytes())).call)


def onnx(path: pathlib.Path, examples: np.ndarray) -> Program:
  """A model in ONNX Runtime."""
  import onnxruntime

  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  return lambda images: session.run(None, {"images": images})[0]


def measured(
  write: Callable[[pathlib.Path], None],
  read: Callable[[pathlib.Path, np.ndarray], Program],
  examples: np.ndarray,
  images: np.ndarray,
  expected: np.ndarray,
) -> list[str]:
  """The cells of one form's row."""
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory, "exported")
    begin = time.perf_counter()
    write(path)
    written = time.perf_counter()
    program = read(path, examples)
    found = np.asarray(program(images))
    end = time.perf_counter()

    def each(batch: np.ndarray) -> str:
      np.asarray(program(batch))
      rate = tables.calls_per_second(lambda: np.asarray(program(batch)), _SECONDS.value)
      return f"{1000 / rate:.1f}"

    return [
      f"{path.stat().st_size / 1024:.0f}",
      f"{written - begin:.1f}",
      f"{end - written:.1f}",
      each(images[:1]),
      each(images),
      f"{np.abs(found - expected).max():.0e}",
    ]


def writers(
  learner: Learner, classifier: FewShotClassifier
) -> dict[str, tuple[Callable[[pathlib.Path], None], Callable[..., Program]]]:
  """The forms of docs/export.md: how each is written and read."""
  return {
    "adapt and predict, JAX": (lambda path: learner.export(path, way=_WAY), adapting),
    "fitted, JAX": (classifier.export, fitted),
    "fitted, ONNX": (classifier.to_onnx, onnx),
  }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  drawings = data.characters.load()["test"].images.reshape(100, 20, 28, 28, 1)
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, "
    f"{jax.devices()[0].device_kind}; {_WAY}-way 1-shot"
  )
  tables.begin_table(
    (
      "learner",
      "form",
      "KiB",
      "written in, s",
      "read and first answer, s",
      "1 image, ms",
      f"{_MANY} images, ms",
      "apart",
    )
  )
  for name in _MODELS.value:
    learner = jsharp.load(name)
    if not isinstance(learner, Learner):
      raise app.UsageError(f"--models: {name} is not a few-shot learner")
    classifier = learner.classifier().fit(drawings[:_WAY, 0], list(range(_WAY)))
    examples = drawings[:_WAY, 0].astype(np.float32) / 255
    pixels = drawings[:_WAY, 1:].reshape(-1, 28, 28, 1)[:_MANY]
    images = pixels.astype(np.float32) / 255
    expected = classifier.predict_proba(pixels)
    for form, (write, read) in writers(learner, classifier).items():
      cells = measured(write, read, examples, images, expected)
      print(f"| {' | '.join((pathlib.Path(name).name, form, *cells))} |", flush=True)


if __name__ == "__main__":
  app.run(main)
