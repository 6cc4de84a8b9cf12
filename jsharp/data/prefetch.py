"""Gathers images from host memory while the device computes earlier steps.

A separate program on the CPU finds out which images a step needs: the sampler, run on
images that only record the requested rows. Everything computed from the images is dead
code in it.

The callback of a training step uses the gathered images. If they are not ready, it
gathers them itself, so results do not depend on the prefetch. It waits only for a
gather already running on a Python thread, never for a JAX program, which might be
waiting for the callback's own thread.

With an accelerator, the rows of a step are computed when its turn comes. If the
training step itself runs on the CPU, it may occupy all threads that a program could run
on, so the rows of a dispatch are computed before it starts.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from jsharp.data._shelf import STEPS_AHEAD, Gathered, Shelf
from jsharp.data.host import HostImages, RowRecorder

THREAD_NAME = "jsharp-prefetch"

Rows = list[tuple[HostImages, np.ndarray]]


class Prefetch:
  """Gathers the images of the next steps; does nothing for other data.

  Args:
    sample_tasks: `sample_tasks(step, data) -> tasks`, pure. If tasks are drawn only in
      the algorithm's `step`, its attribute `reads` must be a function of the same
      arguments that reads the same images.
    data: the pytree that `sample_tasks` reads, with or without `HostImages`.
    parts: `(index, count)` for each device of this process, the part of the tasks that
      it draws; empty for one device.

  Attributes:
    active: whether images are gathered in advance.

  Example:
    >>> import jax.numpy as jnp
    >>> images = HostImages(np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1))
    >>> sample_tasks = lambda step, images: images[step + jnp.arange(2)]
    >>> prefetch = Prefetch(sample_tasks, images)
    >>> with prefetch.steps(0, 3):
    ...   [jax.jit(sample_tasks)(step, images).ravel().tolist() for step in range(3)]
    [[0, 1], [1, 2], [2, 3]]
    >>> Prefetch(lambda step, data: data, np.ones(2)).active
    False
  """

  def __init__(
    self,
    sample_tasks: Callable[..., Any],
    data: Any,
    parts: Sequence[tuple[int, int]] = (),
  ):
    self._reads = getattr(sample_tasks, "reads", sample_tasks)
    self._parts = parts
    self._images = [x for x in jax.tree.leaves(data, is_leaf=_on_host) if _on_host(x)]
    self._recorded: Rows = []
    self._entries: dict[Hashable, Gathered] = {}
    self._next = 0
    self._program: Any = None
    # Without jit, images are gathered on demand.
    is_compiled = not jax.config.jax_disable_jit  # type: ignore[attr-defined]
    if self._images and is_compiled:
      try:
        self._program, self._arrays = self._compile(data)
        if not self._rows_of(0):
          raise ValueError("sample_tasks reads no images")
      except Exception as error:
        self._give_up(error)

  @property
  def active(self) -> bool:
    """Whether images are gathered in advance."""
    return self._program is not None

  def _compile(self, data: Any) -> tuple[Any, Any]:
    cpu = jax.local_devices(backend="cpu")[0]
    recorders = jax.tree.map(
      lambda x: RowRecorder(x, self._recorded) if _on_host(x) else x,
      data,
      is_leaf=_on_host,
    )
    arrays = jax.tree.map(
      lambda x: jax.device_put(
        x.addressable_data(0) if isinstance(x, jax.Array) else x, cpu
      ),
      recorders,
    )

    def program(step: Any, index: Any, data: Any) -> Any:
      if self._parts:
        self._reads(step, data, part=(index, self._parts[0][1]))
      else:
        self._reads(step, data)
      return step + 1  # Computed, so that it is there when the program is done.

    with jax.default_device(cpu):
      zero = np.int32(0)
      return jax.jit(program).lower(zero, zero, arrays).compile(), arrays

  @contextlib.contextmanager
  def steps(self, first: int, num_steps: int) -> Iterator[None]:
    """Gathers in advance while steps `first` to `first + num_steps - 1` are taken.

    Images gathered for later steps are kept for a call that starts there. An exception
    in the block, or `clear`, discards them.
    """
    if not self.active or any(images.shelf for images in self._images):
      yield
      return
    if not any(entry.step == first for entry in self._entries.values()):
      self.clear()
      self._next = first
    self._next = min(self._next, first + STEPS_AHEAD)
    known = None
    if jax.default_backend() == "cpu":
      steps = range(self._next, first + num_steps + STEPS_AHEAD)
      try:
        known = {step: self._rows_of(step) for step in steps}
      except Exception as error:
        self._give_up(error)
        known = {}
    shelf = Shelf(first, self._entries)
    thread = threading.Thread(
      target=self._work, args=(shelf, known), name=THREAD_NAME, daemon=True
    )
    try:
      for images in self._images:
        images.shelf = shelf
      thread.start()
      yield
    except BaseException:
      self.clear()
      raise
    finally:
      shelf.close()
      for images in self._images:
        images.shelf = None
      if thread.ident is not None:
        thread.join()

  def clear(self) -> None:
    """Discards gathered images."""
    self._entries = {}

  def _work(self, shelf: Shelf, known: dict[int, Rows] | None) -> None:
    behind = 0
    try:
      while (step := shelf.wait_for_room(self._next)) is not None:
        if known is not None and step not in known:
          return
        late = [
          shelf.put(images.key(rows), step, functools.partial(images.gather, rows))
          for images, rows in (self._rows_of(step) if known is None else known[step])
        ]
        # If training is ahead of this thread, skip forward.
        behind = 2 * behind + 1 if known is None and any(late) else 0
        if behind > 1:
          shelf.skip_to(step + 1 + behind // 2)
        if not shelf.closed:
          self._next = step + 1
    except Exception as error:
      self._give_up(error)

  def _rows_of(self, step: int) -> Rows:
    """The rows that a step will request, on the devices of this process."""
    self._recorded.clear()
    for index, _ in self._parts or [(0, 1)]:
      jax.block_until_ready(
        self._program(np.int32(step), np.int32(index), self._arrays)
      )
    return list(self._recorded)

  def _give_up(self, error: Exception) -> None:
    self._program, self._entries = None, {}
    logging.warning(
      "prefetching stopped, images are gathered on demand from now on: %s: %s",
      type(error).__name__,
      error,
    )


def _on_host(leaf: Any) -> bool:
  return isinstance(leaf, HostImages)
