"""Batches of images that stay in their files and are decoded by worker processes.

`StreamedImages` replaces the array `Examples.images`. The batch of a training step is a
pure function of (seed, step): the order of the examples, the crops and everything that
the device computes from them. So the step determines the position in the data: any
process can start at any step, and neither the number of workers nor an interruption
changes a batch.

Workers read, decode and crop images, using the library grain. A thread puts their
batches on the device, a few ahead of the current step.
"""

import concurrent.futures
import gc
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jsharp._files import FileError
from jsharp._machine import num_cores
from jsharp.data import examples
from jsharp.data._encoded import Encoded
from jsharp.data._options import StreamedSource
from jsharp.data._pieces import PIECE, Pieces
from jsharp.data.examples import Augment, Examples
from jsharp.types import Batch

THREAD_NAME = "jsharp-stream"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AHEAD = 2  # Pieces that each worker prepares in advance.
_PATIENCE = 30.0


class StreamedImages:
  """Images in files, indexed by example.

  Args:
    images: the encoded images.
    rows: `[num_examples]` integers, the image of each example.
    size: height and width in pixels that crops are resized to.
    num_workers: the number of processes that decode images; 0 for threads of this
      process, None for one per core, minus one.

  Example:
    >>> images = StreamedImages([("a.png", b""), ("b.png", b"")], np.arange(2), size=8)
    >>> images[np.array([1, 1, 0])].shape
    (3, 8, 8, 3)
  """

  ndim = 4
  dtype = np.dtype(np.uint8)

  def __init__(
    self,
    images: Encoded,
    rows: np.ndarray,
    *,
    size: int,
    num_workers: int | None = None,
  ):
    self.images = images
    self.rows = np.asarray(rows, np.int32)
    self.size = size
    if num_workers is None:
      num_workers = max(1, num_cores() - 1)
    self.num_workers = num_workers

  @property
  def shape(self) -> tuple[int, ...]:
    """`(num_examples, size, size, 3)`."""
    return (len(self.rows), self.size, self.size, 3)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, chosen: Any) -> "StreamedImages":
    """Selects examples, in the order of `chosen`; nothing is read."""
    return StreamedImages(
      self.images, self.rows[chosen], size=self.size, num_workers=self.num_workers
    )

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """All images with central crops; for small numbers of images."""
    pieces = Pieces(self.images, self.rows, self.size, max(1, len(self)), None)
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
      found = list(pool.map(lambda i: pieces.one(i, 0), range(len(self))))
    crops = np.array(found, np.uint8).reshape(self.shape)
    return crops if dtype is None else crops.astype(dtype)


def load(source: StreamedSource, directory: str) -> dict[str, tuple[Examples, Any]]:
  """The splits of a streamed dataset as examples, each with its listing.

  Args:
    source: the dataset.
    directory: the directory of its files.

  Raises:
    ModuleNotFoundError: if grain is missing.
    ValueError: if the files are not as expected.
    OSError: if they are missing or cannot be read.

  Example:
    >>> from jsharp.data.imagenet import ImageNet
    >>> load(ImageNet(), "/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist. Put there one of: ...
  """
  _check_installed()
  scale = 1 / np.array(source.pixel_deviation, np.float32)
  mean = np.array(source.pixel_mean, np.float32)
  found = {}
  for split, listed in source.listed(directory).items():
    images = StreamedImages(
      listed.images,
      np.arange(len(listed.labels)),
      size=source.image_size,
      num_workers=source.num_workers,
    )
    found[split] = (Examples(images, listed.labels, mean, scale), listed)
  return found


def _check_installed() -> None:
  if importlib.util.find_spec("grain") is None:
    raise ModuleNotFoundError(
      "streaming data needs grain, which is missing; install the extra: "
      'pip install "jsharp[stream]"'
    )


class Drawn(NamedTuple):
  """A batch from the host.

  Attributes:
    data: only the images and labels of the batch, `[batch_size, ...]`, and their
      normalisation.
    chosen: `[batch_size]` int32, the numbers of the examples.
  """

  data: Examples
  chosen: Any


class Stream:
  """The batches of a training run, or all examples in order.

  Args:
    data: with `StreamedImages`.
    batch_size: examples per batch.
    num_batches: the number of batches. None for each example once, in order and with
      central crops; the last batch is padded.
    seed: the seed of the run, for `num_batches`.

  Attributes:
    data: as given.
    spec: shapes and dtypes of a batch.

  Raises:
    ValueError: if there are fewer examples than one training batch.

  Example:
    >>> images = StreamedImages([("a.png", b"")] * 5, np.arange(5), size=8)
    >>> data = Examples(images, np.arange(5, dtype=np.int32), np.zeros(3), np.ones(3))
    >>> stream = Stream(data, batch_size=2)
    >>> stream.num_batches, stream.spec.data.images.shape
    (3, (2, 8, 8, 3))
  """

  def __init__(
    self,
    data: Examples,
    *,
    batch_size: int,
    num_batches: int | None = None,
    seed: int = 0,
  ):
    images: StreamedImages = data.images
    self.data = data
    law: int | None = seed
    if num_batches is None:
      law, num_batches = None, -(-len(images) // batch_size)
    else:
      examples.steps_per_epoch(len(images), batch_size)
    self.num_batches: int = num_batches
    self._pieces = Pieces(images.images, images.rows, images.size, batch_size, law)
    self._num_workers = images.num_workers
    self.spec = jax.eval_shape(
      lambda: Drawn(
        Examples(
          jnp.zeros((batch_size, *images.shape[1:]), jnp.uint8),
          jnp.zeros((batch_size, *data.labels.shape[1:]), data.labels.dtype),
          jnp.asarray(data.mean),
          jnp.asarray(data.scale),
        ),
        jnp.zeros(batch_size, jnp.int32),
      )
    )

  def batches(self, first: int = 0) -> Iterator[Drawn]:
    """The batches from number `first` on, on the host; close the iterator at the end.

    Raises:
      ValueError: if an image cannot be decoded; the message names it.
      OSError: if a file cannot be read, or a worker died.
    """
    pieces = self._pieces
    per_batch, shape = pieces.per_batch, self.spec.data.images.shape
    made = _made(pieces, range(first, self.num_batches), self._num_workers)
    try:
      for step in range(first, self.num_batches):
        images = np.empty(shape, np.uint8)
        for part in range(per_batch):
          images[part * PIECE : (part + 1) * PIECE] = next(made)
        chosen = pieces.chosen(step)
        labels = self.data.labels[chosen]
        yield Drawn(Examples(images, labels, self.data.mean, self.data.scale), chosen)
    finally:
      made.close()
      # It is part of a reference cycle that holds shared memory, freed by grain.
      del made
      gc.collect()
      time.sleep(0.05)


def _made(pieces: Pieces, steps: range, num_workers: int) -> Any:
  """An iterator over all pieces of these steps, in order."""
  import grain

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # For grain's own flags.
  per_batch = pieces.per_batch
  numbers = grain.MapDataset.range(steps.start * per_batch, steps.stop * per_batch)
  threads = 1 if num_workers else num_cores()
  dataset = numbers.map(pieces).to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD * threads)
  )
  if num_workers:
    if not _fits_shared_memory(num_workers * PIECE * 3 * pieces.size**2):
      # Pipes are slower, but with full shared memory workers would be killed.
      options = grain.experimental.DatasetOptions(min_shm_size=2**62)
      dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=_AHEAD),
      worker_init_fn=_begin,
    )
  return iter(dataset)


def _fits_shared_memory(num_bytes: int) -> bool:
  """Whether shared memory has room for all pieces in transit, of this size each."""
  try:
    return shutil.disk_usage("/dev/shm").free > 4 * (_AHEAD + 2) * num_bytes
  except OSError:  # Shared memory is elsewhere, and not limited.
    return True


def _begin(index: int, count: int) -> None:
  """Makes a worker process end with its parent, and never use an accelerator."""
  del index, count
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:  # grain imports it; its backends stay uninitialised.
    jax.config.update("jax_platforms", "cpu")
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, name=THREAD_NAME, daemon=True).start()


class Feed:
  """Puts the batches of a stream on the device in advance.

  Args:
    stream: the stream to read.
    first: the number of the first batch.
    put: `put(batch)` puts a batch on the device.

  Example:
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (9, 6), (255, 0, 0)).save(file, "PNG")
    >>> encoded = [("red.png", file.getvalue())] * 3
    >>> images = StreamedImages(encoded, np.arange(3), size=2, num_workers=0)
    >>> labels = np.arange(3, dtype=np.int32)
    >>> data = Examples(images, labels, np.zeros(3, np.float32), np.ones(3, np.float32))
    >>> with Feed(Stream(data, batch_size=2)) as feed:
    ...   batch = feed.take()
    >>> batch.data.labels.tolist(), batch.data.images[0, 0, 0].tolist()
    ([0, 1], [255, 0, 0])
  """

  def __init__(
    self, stream: Stream, first: int = 0, *, put: Callable[[Any], Any] = jax.device_put
  ):
    self._stream = stream
    self._on_device = put
    self.step = first
    self._queue: queue.Queue[Any] = queue.Queue(maxsize=1)
    self._closed = threading.Event()
    self._thread = threading.Thread(
      target=self._work, args=(first,), name=THREAD_NAME, daemon=True
    )
    self._thread.start()

  def take(self, stopped: Callable[[], bool] = lambda: False) -> Any:
    """The next batch, on the device; None if `stopped()` becomes true meanwhile.

    Raises:
      FileError: if an image cannot be decoded.
      OSError: if a file cannot be read, or a worker died.
    """
    while True:
      if stopped():
        return None
      try:
        found = self._queue.get(timeout=0.2)
      except queue.Empty:
        if self._thread.is_alive() or not self._queue.empty():
          continue
        raise ChildProcessError(
          f"the stream of images ended before batch {self.step}"
        ) from None
      if not isinstance(found, Exception):
        self.step += 1
        return found
      if stopped():  # The same signal may have stopped the workers.
        return None
      raise found

  def close(self) -> None:
    """Ends the workers."""
    self._closed.set()
    self._thread.join(_PATIENCE)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _work(self, first: int) -> None:
    # Workers inherit this, so a signal to the whole group reaches only their parent.
    if hasattr(signal, "pthread_sigmask"):
      signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    batches = self._stream.batches(first)
    try:
      for batch in batches:
        if not self._put(self._on_device(batch)):
          return
    except Exception as error:
      self._put(_explained(error))
    finally:
      batches.close()  # type: ignore[attr-defined]

  def _put(self, found: Any) -> bool:
    while not self._closed.is_set():
      try:
        self._queue.put(found, timeout=0.2)
        return True
      except queue.Full:
        continue
    return False


def _explained(error: Exception) -> Exception:
  """The error to raise in the training loop."""
  if isinstance(error, OSError | FileError):
    return error
  if isinstance(error, ValueError):
    return FileError(str(error))
  return ChildProcessError(
    f"a process that decodes images failed ({error}). Exit code -9: it was killed, "
    "usually because memory ran out: use fewer --num_workers. -7: /dev/shm is full: "
    "enlarge it, as with docker run --shm-size=8g. The same command resumes the run"
  )


def sample_batch(
  seed: int,
  step: Any,
  drawn: Drawn,
  *,
  distort: Augment | None = None,
  augment: Augment | None = None,
  mix: Callable[[jax.Array, Batch], Batch] | None = None,
) -> Batch:
  """Normalises and augments a batch, a pure function of (seed, step, batch).

  Args:
    seed: the seed of the run.
    step: steps taken so far; may be traced.
    drawn: from a `Stream`, on the device.
    distort: as for `jsharp.data.examples.sample_batch`.
    augment: `augment(key, image) -> image`.
    mix: `mix(key, batch) -> batch`.

  Returns:
    Inputs `[batch_size, height, width, channels]` float32, targets `[batch_size]`.

  Example:
    >>> data = Examples(
    ...   jnp.ones((2, 1, 1, 1), jnp.uint8), jnp.arange(2), jnp.zeros(1), jnp.ones(1))
    >>> sample_batch(0, 7, Drawn(data, jnp.array([5, 3]))).inputs.ravel().tolist()
    [1.0, 1.0]
  """
  _, augment_key = jax.random.split(jax.random.key(seed))
  return examples.augmented(
    jax.random.fold_in(augment_key, jnp.asarray(step, jnp.int32)),
    drawn.data,
    drawn.chosen,
    distort=distort,
    augment=augment,
    mix=mix,
  )


def normalised(drawn: Drawn) -> Batch:
  """Normalises a batch without augmentation, for evaluation.

  Example:
    >>> data = Examples(
    ...   jnp.ones((2, 1, 1, 1), jnp.uint8), jnp.arange(2), jnp.ones(1), jnp.ones(1))
    >>> normalised(Drawn(data, jnp.arange(2))).inputs.ravel().tolist()
    [0.0, 0.0]
  """
  return Batch(examples.inputs_of(drawn.data, drawn.data.images), drawn.data.labels)


def some(data: Examples, most: int, *, seed: int) -> Examples:
  """At most `most` random examples, in their original order.

  At the end of a run, accuracy on training images is measured on such a subset.

  Example:
    >>> data = Examples(np.zeros((5, 1, 1, 1)), np.arange(5), None, None)
    >>> some(data, 2, seed=0).labels.tolist()
    [0, 2]
  """
  if most >= len(data.labels):
    return data
  return examples.hold_out(data, most, seed=seed)[1]
