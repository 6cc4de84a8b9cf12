"""Measures the benefit of centring and scaling a drawing before it is classified.

    python -m benchmarks.drawings --models=omniglot-maml --data_dir=DIRECTORY

Drawings of Omniglot's test characters, 105x105 pixels, are classified unchanged, or
after they are shifted and scaled as a person might draw them on an empty page: by up to
`--most_shift` of the page's side, and to between `--smallest` and `--largest` of their
size. Each task has `--way` classes with one example and three drawings to classify
separately. The same tasks are repeated with the drawings unchanged; with their ink
centred on the page; and also scaled to the sizes that the demo allows,
`experiments._demo_drawing.HANDS`. Here the whole picture is scaled, including the width
of its strokes; the demo keeps the width of the pen.
"""

import io
import pathlib
import zipfile

import numpy as np
from absl import app, flags
from PIL import Image

import jsharp
from benchmarks import tables
from experiments import _demo_drawing
from jsharp.data import splits
from jsharp.learners import Learner

_MODELS = flags.DEFINE_list("models", ["omniglot-maml"], "Learners of Omniglot.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Omniglot's two zips.", required=True)
_SPLIT = flags.DEFINE_enum(
  "split",
  "mixed",
  ["mixed", "vinyals"],
  "Split of the test characters; use the learners' own.",
)
_WAY = flags.DEFINE_integer("way", 5, "Classes per task.", lower_bound=2)
_TASKS = flags.DEFINE_integer("tasks", 200, "Number of tasks.", lower_bound=2)
_SHIFT = flags.DEFINE_float(
  "most_shift", 0.15, "Largest shift in x and y, as a fraction of the side."
)
_SMALLEST = flags.DEFINE_float("smallest", 0.6, "Smallest scale of a drawing.")
_LARGEST = flags.DEFINE_float("largest", 1.2, "Largest scale of a drawing.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the tasks.")

_QUERIES = 3
_HAND = _demo_drawing.HANDS["omniglot"]


def place(page: np.ndarray, x: float, y: float, scale: float) -> np.ndarray:
  """A drawing, scaled and moved.

  Args:
    page: `[side, side]` uint8, light ink on dark.
    x: target position of the ink's centre, as a fraction of the side.
    y: as `x`.
    scale: factor of the ink's size.
  """
  middle, _ = ink_of(page)
  side = len(page)
  shift = middle - np.array([x, y]) * side / scale
  matrix = (1 / scale, 0, shift[0], 0, 1 / scale, shift[1])
  return np.asarray(
    Image.fromarray(page).transform(
      page.shape, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
  )


def ink_of(page: np.ndarray) -> tuple[np.ndarray, float]:
  """The centre of the ink `[x, y]` in pixels, and its longer side as a fraction."""
  rows, columns = (np.flatnonzero(page.any(axis=axis)) for axis in (1, 0))
  low = np.array([columns[0], rows[0]])
  high = np.array([columns[-1], rows[-1]]) + 1
  return (low + high) / 2, (high - low).max() / len(page)


def centred(page: np.ndarray) -> np.ndarray:
  """The drawing with its ink centred."""
  return place(page, 0.5, 0.5, 1.0)


def centred_and_scaled(page: np.ndarray) -> np.ndarray:
  """The drawing, centred and scaled to a usual size."""
  _, length = ink_of(page)
  usual = min(max(length, _HAND.smallest), _HAND.largest)
  return place(page, 0.5, 0.5, usual / length)


METHODS = {
  "as they come": lambda page: page,
  "in the middle": centred,
  "and scaled": centred_and_scaled,
}


def read(data_dir: str) -> list[list[np.ndarray]]:
  """The drawings of the test characters, `[character][drawing]`."""
  split = splits.mixed(0) if _SPLIT.value == "mixed" else splits.vinyals()
  wanted = set(split["test"])
  found: dict[str, list[np.ndarray]] = {}
  for part in ("images_background", "images_evaluation"):
    with zipfile.ZipFile(pathlib.Path(data_dir, f"{part}.zip")) as archive:
      for name in sorted(archive.namelist()):
        character = "/".join(name.split("/")[-3:-1])
        if name.endswith(".png") and character in wanted:
          image = Image.open(io.BytesIO(archive.read(name))).convert("L")
          found.setdefault(character, []).append(255 - np.asarray(image))
  return list(found.values())


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  characters = read(_DATA_DIR.value)
  classifiers = {}
  for name in _MODELS.value:
    learner = jsharp.load(name)
    if not isinstance(learner, Learner):
      raise app.UsageError(f"--models: {name} is not a few-shot learner")
    classifiers[name] = learner.classifier()
  right: dict[tuple[str, str, str], list[float]] = {}
  rng = np.random.default_rng(_SEED.value)

  def moved(page: np.ndarray) -> np.ndarray:
    middle, _ = ink_of(page)
    x, y = middle / len(page) + rng.uniform(-_SHIFT.value, _SHIFT.value, 2)
    return place(page, x, y, rng.uniform(_SMALLEST.value, _LARGEST.value))

  for _ in range(_TASKS.value):
    chosen = rng.choice(len(characters), _WAY.value, replace=False)
    drawn = [
      [characters[c][i] for i in rng.choice(20, 1 + _QUERIES, replace=False)]
      for c in chosen
    ]
    pages = {"drawn": drawn, "moved": [[moved(p) for p in row] for row in drawn]}
    truth = np.repeat(np.arange(_WAY.value), _QUERIES)
    for (kind, rows), (method, place_) in (
      (a, b) for a in pages.items() for b in METHODS.items()
    ):
      examples = [place_(row[0]) for row in rows]
      queries = [place_(page) for row in rows for page in row[1:]]
      for name, classifier in classifiers.items():
        named = classifier.fit(examples, range(_WAY.value)).predict(queries)
        right.setdefault((name, kind, method), []).append((named == truth).mean())
  tables.begin_table(("learner", "drawings", *METHODS))
  for name in classifiers:
    for kind in ("drawn", "moved"):
      cells = []
      for method in METHODS:
        values = 100 * np.array(right[name, kind, method])
        interval = 1.96 * values.std(ddof=1) / len(values) ** 0.5
        cells.append(f"{values.mean():.2f} ± {interval:.2f}")
      print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
