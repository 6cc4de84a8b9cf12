"""Passes images that one thread gathers ahead of time to another."""

import threading
from collections.abc import Callable, Hashable

import numpy as np

STEPS_AHEAD = 2
"""Number of steps gathered beyond the last one that has begun."""


class Gathered:
  """Images on a shelf; `images` is None if gathering them failed."""

  def __init__(self, step: int):
    self.step = step
    self.done = threading.Event()
    self.images: np.ndarray | None = None


class Shelf:
  """Images of upcoming steps, put there by one thread and taken by callbacks.

  Args:
    first: the first step whose images are needed.
    entries: the initial contents, by key.
  """

  def __init__(self, first: int, entries: dict[Hashable, Gathered]):
    self._entries = entries
    self._begun = first - 1  # The last step that is known to have asked.
    self._missed: set[Hashable] = set()
    self._changed = threading.Condition()
    self._closed = False

  def take(self, key: Hashable) -> np.ndarray | None:
    """Removes and returns a key's images; None if the caller has to gather them."""
    with self._changed:
      entry = self._entries.pop(key, None)
      if entry is None:
        self._missed.add(key)
        return None
      self._begun = max(self._begun, entry.step)
      self._changed.notify_all()
    entry.done.wait()
    return entry.images

  def put(self, key: Hashable, step: int, gather: Callable[[], np.ndarray]) -> bool:
    """Gathers images unless they are there or the caller of `take` was faster.

    Returns:
      Whether that caller was.
    """
    with self._changed:
      if key in self._missed:
        self._missed.discard(key)
        self._begun = max(self._begun, step)
        return True
      if self._closed or key in self._entries:
        return False
      entry = self._entries[key] = Gathered(step)
    try:
      entry.images = gather()
    finally:
      entry.done.set()
    return False

  def wait_for_room(self, step: int) -> int | None:
    """Waits until a step may be gathered, and returns that step.

    Args:
      step: the one that is next, unless it has begun.

    Returns:
      The step; None once the shelf is closed.
    """
    with self._changed:
      self._changed.wait_for(lambda: self._closed or step <= self._begun + STEPS_AHEAD)
      if self._closed:
        return None
      # Two devices may be at two steps; for those before nobody will come.
      late = [k for k, e in self._entries.items() if e.step < self._begun - 1]
      for key in late:
        del self._entries[key]
      return max(step, self._begun + 1)

  def skip_to(self, step: int) -> None:
    """Declares that all steps before this one have begun."""
    with self._changed:
      self._begun = max(self._begun, step - 1)

  @property
  def closed(self) -> bool:
    """Whether the shelf is closed, so that nothing more may be put there."""
    return self._closed

  def close(self) -> None:
    """Closes the shelf, which ends the thread that fills it."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
