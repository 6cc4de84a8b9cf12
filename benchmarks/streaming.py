"""Measures images decoded and cropped per second, and the memory that streaming takes.

Questions: how many worker processes does an accelerator need, and can a dataset larger
than memory be trained on?

    python -m benchmarks.streaming

Photographs of ImageNet's mean size, 500x375 pixels and about 110 kB as JPEG, drawn by
this program and kept in the layout `train/CLASS/`. The forms take turns for `--rounds`
rounds. Timing begins with the first batch, so it excludes the start of the workers,
which is shown separately. Memory is the resident set of this process and of its largest
worker, while `--megabytes` of decoded pixels are streamed.
"""

import pathlib
import platform
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks.tables import begin_table, spread
from jsharp.data import streams
from jsharp.data.imagenet import ImageNet
from jsharp.evaluation.report import git_commit

_WORKERS = flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of workers.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)
_BATCHES = flags.DEFINE_integer("batches", 24, "Batches per round.", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per batch.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 128, "Images per class.", lower_bound=64)
_MEGABYTES = flags.DEFINE_integer(
  "megabytes", 1000, "Decoded pixels streamed to measure memory; 0: none."
)


def write(root: pathlib.Path) -> float:
  """Two classes of photographs; returns the mean size of a file in kB."""
  draw = np.random.default_rng(0)
  sizes = []
  for split, number in (("train", _IMAGES.value), ("val", 2)):
    for name in ("a", "b"):
      folder = root / split / name
      folder.mkdir(parents=True)
      for index in range(number):
        coarse = draw.integers(0, 256, (24, 32, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.asarray(smooth) + draw.normal(0, 19, (375, 500, 3))
        path = folder / f"{index}.JPEG"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=88)
        sizes.append(path.stat().st_size / 1000)
  return float(np.mean(sizes))


def stream(root: pathlib.Path, num_workers: int, num_batches: int) -> streams.Stream:
  """The training batches of the photographs."""
  source = ImageNet(num_workers=num_workers)
  train, _ = streams.load(source, str(root))["train"]
  return streams.Stream(train, batch_size=_BATCH_SIZE.value, num_batches=num_batches)


def rate(root: pathlib.Path, num_workers: int) -> tuple[float, float]:
  """Images per second after the first batch, and seconds until the first batch."""
  start = time.perf_counter()
  with streams.Feed(stream(root, num_workers, _BATCHES.value)) as feed:
    jax.block_until_ready(feed.take())
    begun = time.perf_counter()
    for _ in range(_BATCHES.value - 1):
      jax.block_until_ready(feed.take())
    seconds = time.perf_counter() - begun
  return (_BATCHES.value - 1) * _BATCH_SIZE.value / seconds, begun - start


def resident() -> tuple[float, float]:
  """Megabytes of this process and of its largest child, as Linux counts them."""
  own = pathlib.Path("/proc/self")

  def of(folder: pathlib.Path) -> float:
    words = (folder / "statm").read_text().split()
    return int(words[1]) * 4096 / 1e6

  children = (own / f"task/{own.resolve().name}/children").read_text().split()
  for task in (own / "task").iterdir():
    children += (task / "children").read_text().split()
  return of(own), max(
    (of(pathlib.Path("/proc", child)) for child in children), default=0
  )


def report_memory(root: pathlib.Path) -> None:
  """Streams more and more images, and prints the resident memory."""
  num_workers = max(map(int, _WORKERS.value))
  each = _BATCH_SIZE.value * 224 * 224 * 3 / 1e6
  number = max(3, int(_MEGABYTES.value / each))
  marks = {number * i // 4 for i in range(5)} | {2}
  begin_table(["decoded, MB", "this process, MB", "a worker, MB"])
  with streams.Feed(stream(root, num_workers, number + 1)) as feed:
    for index in range(number + 1):
      jax.block_until_ready(feed.take())
      if index in marks and index:
        own, worker = resident()
        print(f"| {index * each:.0f} | {own:.0f} | {worker:.0f} |", flush=True)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]} is not a flag")
  commit = git_commit(pathlib.Path(__file__).parents[1])
  print(
    f"Python {platform.python_version()}, jax {jax.__version__}, numpy "
    f"{np.__version__}; {platform.machine()}, commit {commit}"
  )
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    print(f"files of {write(root):.0f} kB on average\n")
    rates: dict[str, list[tuple[float, float]]] = {n: [] for n in _WORKERS.value}
    for _ in range(_ROUNDS.value):
      for workers, found in rates.items():
        found.append(rate(root, int(workers)))
    begin_table(["workers", "images/s, median (range)", "first batch after, s"])
    for workers, found in rates.items():
      speeds, starts = zip(*found, strict=True)
      print(f"| {workers} | {spread(list(speeds), 0)} | {spread(list(starts), 1)} |")
    if _MEGABYTES.value:
      print()
      report_memory(root)


if __name__ == "__main__":
  app.run(main)
