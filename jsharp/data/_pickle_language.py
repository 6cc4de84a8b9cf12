"""An interpreter of the part of the pickle language that data need.

`pickle.Unpickler` trusts the file: ten bytes can make it allocate gigabytes for its
memo, and a pickle chooses the state of the objects it builds. Here every instruction
checks its operands. There are no classes, no sets and no attributes;
the file's size and the machine's limits bound the memory.
"""

import codecs
import pickle
import pickletools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from jsharp.data._pickle_machine import (
  MARK,
  MAX_INSTRUCTIONS,
  MAX_LINE,
  Machine,
  RefusedError,
  Stream,
)

_NAMES = {instruction.code: instruction.name for instruction in pickletools.opcodes}


def load(file: BinaryIO, size: int, scale: int = 1) -> Any:
  """The object that a pickle describes.

  Args:
    file: at the pickle's beginning, in binary mode.
    size: bytes in the file.
    scale: how many times as many objects there may be as in mini-ImageNet.

  Returns:
    Lists, tuples, dicts, numbers, text, bytes and read-only numpy arrays. Byte strings
    of Python 2 are text, decoded as latin-1; byte arrays are bytes.

  Raises:
    RefusedError: the pickle asks for something that data do not need, or exceeds a
      limit.
    Exception: of any other type: the file is damaged or not a pickle.
  """
  machine = Machine(file, size, scale)
  most = MAX_INSTRUCTIONS * scale
  for _ in range(most):
    if not _step(machine):
      return machine.result()
  raise RefusedError(f"has more than {most} instructions")


def stream(file: BinaryIO, size: int) -> Iterator[Any]:
  """The items of the list that a pickle describes, one after the other.

  Args:
    file: at the pickle's beginning, in binary mode.
    size: bytes in the file.

  Yields:
    Each item as `load` would return it. An image that occurs twice as the same object
    is refused.

  Raises:
    RefusedError: as `load`; the number of items is not limited.
    Exception: as `load`, or the file does not contain a list.
  """
  machine = Stream(file, size)
  count = 0  # Of instructions since the last items.
  while _step(machine):
    count += 1
    if count > MAX_INSTRUCTIONS:
      raise RefusedError(f"has more than {MAX_INSTRUCTIONS} instructions for one item")
    if items := machine.take():
      yield from items
      count = 0
  if machine.result() != []:
    raise pickle.UnpicklingError("no list")


def _step(machine: Machine) -> bool:
  """Runs the next instruction; returns False after the last one."""
  code = machine.read(1)
  if code == pickle.STOP:
    return False
  action = _ACTIONS.get(code)
  if action is None:
    name = _NAMES.get(_text(code))
    if name is None:
      raise pickle.UnpicklingError(f"{code!r} is no instruction")
    raise RefusedError(f"has the instruction {name}")
  action(machine)
  return True


def _text(data: bytes) -> str:
  return data.decode("latin1")


def _utf8(data: bytes) -> str:
  return data.decode("utf-8", "surrogatepass")


def _quoted(data: bytes) -> str:
  """A byte string as Python 2 prints it."""
  if len(data) < 2 or data[:1] not in (b"'", b'"') or data[:1] != data[-1:]:
    raise pickle.UnpicklingError("a string without quotes")
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # of unknown escapes
    return _text(codecs.escape_decode(data[1:-1])[0])


def _bounded(number: int) -> int:
  """The number; without a bound one could choose the numbers' hashes."""
  if not -(2**63) <= number < 2**64:
    raise pickle.UnpicklingError("an integer of more than 64 bits")
  return number


def _binary_integer(data: bytes) -> int:
  return _bounded(int.from_bytes(data, "little", signed=True))


def _integer(line: bytes) -> int:
  if line in _BOOLEANS:
    return _BOOLEANS[line]
  return _bounded(int(line.removesuffix(b"L")))


def _start(machine: Machine) -> None:
  if machine.unpack("<B") > pickle.HIGHEST_PROTOCOL:
    raise pickle.UnpicklingError("of an unknown protocol")


def _constant(value: Any) -> Callable[[Machine], None]:
  return lambda machine: machine.push(value)


def _number(form: str) -> Callable[[Machine], None]:
  return lambda machine: machine.push(machine.unpack(form))


def _sized(form: str, convert: Callable[[bytes], Any]) -> Callable[[Machine], None]:
  return lambda machine: machine.push(convert(machine.read(machine.unpack(form))))


def _line(
  convert: Callable[[bytes], Any], limit: int | None = MAX_LINE
) -> Callable[[Machine], None]:
  return lambda machine: machine.push(convert(machine.line(limit)))


_BOOLEANS = {b"00": False, b"01": True}
_ACTIONS: dict[bytes, Callable[[Machine], None]] = {
  pickle.PROTO: _start,
  pickle.FRAME: lambda machine: machine.check_left(machine.unpack("<Q")),
  pickle.MARK: lambda machine: machine.push(MARK),
  pickle.NONE: _constant(None),
  pickle.NEWTRUE: _constant(True),
  pickle.NEWFALSE: _constant(False),
  pickle.BININT: _number("<i"),
  pickle.BININT1: _number("<B"),
  pickle.BININT2: _number("<H"),
  pickle.BINFLOAT: _number(">d"),
  pickle.LONG1: _sized("<B", _binary_integer),
  pickle.LONG4: _sized("<i", _binary_integer),
  pickle.SHORT_BINSTRING: _sized("<B", _text),
  pickle.BINSTRING: _sized("<i", _text),
  pickle.SHORT_BINUNICODE: _sized("<B", _utf8),
  pickle.BINUNICODE: _sized("<I", _utf8),
  pickle.BINUNICODE8: _sized("<Q", _utf8),
  pickle.SHORT_BINBYTES: _sized("<B", bytes),
  pickle.BINBYTES: _sized("<I", bytes),
  pickle.BINBYTES8: _sized("<Q", bytes),
  pickle.BYTEARRAY8: _sized("<Q", bytes),
  pickle.INT: _line(_integer),
  pickle.LONG: _line(_integer),
  pickle.FLOAT: _line(float),
  pickle.STRING: _line(_quoted, None),
  pickle.UNICODE: _line(lambda line: line.decode("raw-unicode-escape"), None),
  pickle.PUT: lambda machine: machine.put(int(machine.line())),
  pickle.BINPUT: lambda machine: machine.put(machine.unpack("<B")),
  pickle.LONG_BINPUT: lambda machine: machine.put(machine.unpack("<I")),
  pickle.MEMOIZE: lambda machine: machine.memoize(),
  pickle.GET: lambda machine: machine.get(int(machine.line())),
  pickle.BINGET: lambda machine: machine.get(machine.unpack("<B")),
  pickle.LONG_BINGET: lambda machine: machine.get(machine.unpack("<I")),
  pickle.EMPTY_TUPLE: lambda machine: machine.push(()),
  pickle.TUPLE1: lambda machine: machine.tuple_of(1),
  pickle.TUPLE2: lambda machine: machine.tuple_of(2),
  pickle.TUPLE3: lambda machine: machine.tuple_of(3),
  pickle.TUPLE: lambda machine: machine.push_container(tuple(machine.pop_to_mark())),
  pickle.EMPTY_LIST: lambda machine: machine.push_container([]),
  pickle.LIST: lambda machine: machine.push_container(machine.pop_to_mark()),
  pickle.APPEND: lambda machine: machine.extend([machine.pop()]),
  pickle.APPENDS: lambda machine: machine.extend(machine.pop_to_mark()),
  pickle.EMPTY_DICT: lambda machine: machine.push_container({}),
  pickle.DICT: Machine.new_dict,
  pickle.SETITEM: lambda machine: machine.update([machine.pop(), machine.pop()][::-1]),
  pickle.SETITEMS: lambda machine: machine.update(machine.pop_to_mark()),
  pickle.GLOBAL: lambda machine: machine.name(
    _utf8(machine.line()), _utf8(machine.line())
  ),
  pickle.STACK_GLOBAL: Machine.name_of_stack,
  pickle.REDUCE: Machine.call,
  pickle.BUILD: Machine.build,
}
