"""The stack and the memo that a pickle's instructions work on, with their checks."""

import pickle
import struct
from typing import Any, BinaryIO

import numpy as np

from jsharp.data import _pickle_arrays

# mini-ImageNet has 60 000 images. Protocol 0 takes 19 instructions, 2 containers and 6
# places in the memo for each numpy scalar in a list of labels.
MAX_INSTRUCTIONS = 1_200_000
MAX_CONTAINERS = 250_000
MAX_MEMO = 400_000
MAX_NESTING = 16
MAX_LINE = 4096
SMALL = 64
"""Bytes of a text that a stream remembers."""

_KEYS = (str, bytes, int, float, type(None), np.generic)
_CONTAINERS = (list, tuple, dict)


class RefusedError(Exception):
  """A pickle does what no file of data does."""


class _Mark:
  """Where the items of a container begin on the stack."""


MARK = _Mark()


class Machine:
  """The stack, the memo and the file, each behind its checks.

  Args:
    file: at the pickle's beginning, in binary mode.
    size: bytes in the file.
    scale: how many times as many objects there may be as in mini-ImageNet.
  """

  def __init__(self, file: BinaryIO, size: int, scale: int = 1):
    self._scale = scale
    self._file = file
    self._left = size
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._num_containers = 0
    self._maker = _pickle_arrays.Maker(size)
    self.push = self._stack.append

  def check_left(self, count: int) -> None:
    if not 0 <= count <= self._left:
      raise EOFError(f"{count} bytes announced, {self._left} left")

  def read(self, count: int) -> bytes:
    self.check_left(count)
    data = self._file.read(count)
    if len(data) != count:
      raise EOFError("the file has become shorter")
    self._left -= count
    return data

  def unpack(self, form: str) -> Any:
    return struct.unpack(form, self.read(struct.calcsize(form)))[0]

  def line(self, limit: int | None = MAX_LINE) -> bytes:
    data = self._file.readline(self._left if limit is None else limit)
    if not data.endswith(b"\n"):
      raise EOFError("a line without an end")
    self._left -= len(data)
    return data[:-1]

  def push_container(self, item: Any) -> None:
    self._num_containers += 1
    most = MAX_CONTAINERS * self._scale
    if self._num_containers > most:
      raise RefusedError(f"has more than {most} containers")
    self.push(item)

  def pop(self) -> Any:
    """The uppermost item, which has to be data."""
    return _data(self._stack.pop())

  def pop_to_mark(self) -> list[Any]:
    """The items above the last mark."""
    items = []
    while (item := self._stack.pop()) is not MARK:
      items.append(_data(item))
    return items[::-1]

  def result(self) -> Any:
    content = self.pop()
    if self._stack:
      raise pickle.UnpicklingError("it ends in the middle of something")
    _check_nesting(content)
    return content

  def put(self, index: int) -> None:
    most = MAX_MEMO * self._scale
    if not 0 <= index <= most:
      raise RefusedError(f"numbers an object beyond {most}")
    if self._stack[-1] is MARK:
      raise pickle.UnpicklingError("no object where one is numbered")
    self._memo[index] = self._stack[-1]

  def memoize(self) -> None:
    self.put(len(self._memo))

  def get(self, index: int) -> None:
    item = self._memo[index]
    is_built = isinstance(item, _pickle_arrays.Unfinished) and item.result is not None
    self.push(item.result if is_built else item)

  def name(self, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
      raise pickle.UnpicklingError("a name that is no text")
    found = self._maker.find(module, name)
    if found is None:
      asked = ascii(f"{module[:60]}.{name[:60]}")[1:-1]
      raise RefusedError(f"asks for {asked}")
    self.push(found)

  def name_of_stack(self) -> None:
    name, module = self.pop(), self.pop()
    self.name(module, name)

  def call(self) -> None:
    arguments, function = self.pop(), self._stack.pop()
    if type(arguments) is not tuple or not callable(function):
      raise pickle.UnpicklingError("no function where one is called")
    self.push(function(*arguments))

  def build(self) -> None:
    state, item = self.pop(), self._stack.pop()
    if not isinstance(item, _pickle_arrays.Unfinished) or item.result is not None:
      raise pickle.UnpicklingError("no array where one is built")
    item.result = item.finish(state)
    self.push(item.result)

  def tuple_of(self, count: int) -> None:
    items = [self.pop() for _ in range(count)]
    self.push_container(tuple(items[::-1]))

  def extend(self, items: list[Any]) -> None:
    if type(self._stack[-1]) is not list:
      raise pickle.UnpicklingError("no list where one is filled")
    self._stack[-1].extend(items)

  def update(self, items: list[Any]) -> None:
    target = self._stack[-1]
    if type(target) is not dict or len(items) % 2:
      raise pickle.UnpicklingError("no dict where one is filled")
    for key, value in zip(items[::2], items[1::2], strict=True):
      if not isinstance(key, _KEYS):
        raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
      target[key] = value

  def new_dict(self) -> None:
    items = self.pop_to_mark()
    self.push_container({})
    self.update(items)


class Stream(Machine):
  """A machine for one long list, which gives its items away as they come.

  It remembers names, dtypes and short texts alone. So it holds no more than the items
  that the pickle adds at once, which are a thousand in what Python writes.
  """

  def __init__(self, file: BinaryIO, size: int):
    super().__init__(file, size)
    self._items: list[Any] = []
    self._num_memoized = 0

  def take(self) -> list[Any]:
    """The items that have come since the last call."""
    items, self._items = self._items, []
    return items

  def extend(self, items: list[Any]) -> None:
    if len(self._stack) != 1 or type(self._stack[0]) is not list:
      super().extend(items)
      return
    self._items += items
    self._num_containers = 0

  def put(self, index: int) -> None:
    if not self._stack or self._stack[-1] is MARK:
      raise pickle.UnpicklingError("no object where one is numbered")
    if _is_small(self._stack[-1]):
      if len(self._memo) > MAX_MEMO:
        raise RefusedError(f"numbers more than {MAX_MEMO} objects")
      self._memo[index] = self._stack[-1]
    else:
      self._memo.pop(index, None)

  def memoize(self) -> None:
    self.put(self._num_memoized)
    self._num_memoized += 1

  def get(self, index: int) -> None:
    if index not in self._memo:
      raise pickle.UnpicklingError("an object that is used twice")
    super().get(index)


def _is_small(item: Any) -> bool:
  """Whether a stream remembers an object: it is not, and will not be, an image."""
  if isinstance(item, str | bytes):
    return len(item) <= SMALL
  if isinstance(item, _pickle_arrays.Unfinished):
    return not item.is_array
  return not isinstance(item, (*_CONTAINERS, np.ndarray))


def _data(item: Any) -> Any:
  """The item, unless it is a mark, a function or has not been built yet."""
  if item is MARK or isinstance(item, _pickle_arrays.Unfinished) or callable(item):
    raise pickle.UnpicklingError("no data where data are used")
  return item


def _check_nesting(content: Any) -> None:
  """Refuse containers that hold themselves or go deeper than `MAX_NESTING`."""
  heights: dict[int, int] = {}  # 0 on the way down
  todo = [content] if type(content) in _CONTAINERS else []
  while todo:
    item = todo[-1]
    if heights.get(id(item)):
      todo.pop()
      continue
    values = item.values() if type(item) is dict else item
    inner = [value for value in values if type(value) in _CONTAINERS]
    if id(item) not in heights:
      heights[id(item)] = 0
      todo += (value for value in inner if id(value) not in heights)
      is_deep = any(heights.get(id(value)) == 0 for value in inner)
    else:
      height = 1 + max((heights[id(value)] for value in inner), default=0)
      heights[id(item)] = height
      is_deep = height > MAX_NESTING
    if is_deep:
      raise RefusedError(f"nests containers deeper than {MAX_NESTING}")
