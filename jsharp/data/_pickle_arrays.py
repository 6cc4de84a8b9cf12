"""Rebuilds numpy's dtypes, arrays and scalars from the contents of a pickle.

numpy's own functions trust a pickle: `dtype.__setstate__` takes any size, alignment and
flags, and what is then done with the dtype reads and divides by them. Here a state
is data: it is checked, and `numpy.frombuffer` makes an array from it.
"""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,4}")
_LARGEST_CODE_POINT = 0x10FFFF
_MODULES = ("numpy.core", "numpy._core")
_LARGEST_EMPTY = 2**20


class _NdarrayType:
  """Stands for `numpy.ndarray`, which a pickle names and must never call."""


NDARRAY = _NdarrayType()


class Unfinished:
  """A dtype or an array whose state has not been read yet.

  Attributes:
    finish: makes the dtype or the array from the state.
    is_array: whether it will be an array.
    result: the result of `finish`; None before.
  """

  def __init__(self, finish: Callable[[Any], Any], *, is_array: bool = False):
    self.finish = finish
    self.is_array = is_array
    self.result: Any = None


class Maker:
  """The functions that a pickle may name.

  Args:
    max_bytes: the size of the file. Text that holds the contents of arrays, as Python
      2 and the old protocols write it, becomes bytes once; a pickle that has it done
      again and again is refused.
  """

  def __init__(self, max_bytes: int):
    self._bytes_left = max_bytes

  def find(self, module: str, name: str) -> Any:
    """The function or `NDARRAY` of this name; None if it is not allowed."""
    if (module, name) == ("numpy", "ndarray"):
      return NDARRAY
    if (module, name) == ("numpy", "dtype"):
      return self._dtype
    if (module, name) == ("_codecs", "encode"):
      return self._encode
    if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
      return _no_bytes
    package, _, rest = module.rpartition(".")
    if package not in _MODULES:
      return None
    return {
      ("multiarray", "_reconstruct"): self._reconstruct,
      ("multiarray", "scalar"): self._scalar,
      ("numeric", "_frombuffer"): self._frombuffer,
    }.get((rest, name))

  def _encode(self, text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
      _refuse("text in another encoding than latin1 is")
    self._bytes_left -= len(text)
    if self._bytes_left < 0:
      _refuse("contents larger than the file are")
    return text.encode("latin1")

  def _dtype(self, spec: Any, align: Any = False, copy: Any = True) -> Unfinished:
    del align, copy
    if not isinstance(spec, str) or not _DTYPE.fullmatch(spec):
      _refuse(f"arrays of dtype {_shown(spec)} are")
    return Unfinished(lambda state: _finish_dtype(np.dtype(spec), state))

  def _reconstruct(self, kind: Any, shape: Any, code: Any) -> Unfinished:
    if kind is not NDARRAY or shape != (0,) or code not in (b"b", "b"):
      _refuse("arrays of an unusual form are")
    return Unfinished(self._finish_array, is_array=True)

  def _finish_array(self, state: Any) -> np.ndarray:
    if type(state) is not tuple or len(state) != 5 or _integer(state[0]) != 1:
      _refuse("arrays of an unusual state are")
    _, shape, dtype, is_fortran, data = state
    return self._array(data, dtype, shape, "F" if _integer(is_fortran) else "C")

  def _scalar(self, dtype: Any, data: Any) -> Any:
    return self._array(data, dtype, (1,), "C")[0]

  def _frombuffer(
    self, data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None
  ) -> np.ndarray:
    if axis_order is None:
      return self._array(data, dtype, shape, order)
    array = self._array(data, dtype, shape, "C")
    axes = [_integer(axis) for axis in axis_order] if order == "K" else []
    if sorted(axes) != list(range(array.ndim)):
      _refuse("arrays of an unusual order are")
    return array.transpose(axes)

  def _array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The array; a view of `data` where that is bytes."""
    if not isinstance(dtype, np.dtype) or type(shape) is not tuple:
      _refuse("arrays without a dtype and a shape are")
    if order not in ("C", "F") or len(shape) > 32:
      _refuse("arrays of an unusual order are")
    if isinstance(data, str):
      data = self._encode(data, "latin1")
    if not isinstance(data, bytes):
      _refuse(f"arrays made of a {type(data).__name__} are")
    sizes = [_integer(size) for size in shape]
    if min(sizes, default=0) < 0 or math.prod(sizes) * dtype.itemsize != len(data):
      _refuse(f"arrays of a shape that does not fit their {len(data)} bytes are")
    # An array of no elements can have a length that fills the memory when listed.
    if not data and math.prod(size for size in sizes if size) > _LARGEST_EMPTY:
      _refuse("arrays of an unusual form are")
    flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    # numpy trusts the bytes of these two kinds.
    if dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
      _refuse("truth values other than 0 and 1 are")
    if dtype.kind == "U":
      points = flat.view(np.dtype("u4").newbyteorder(dtype.byteorder))
      if points.max(initial=0) > _LARGEST_CODE_POINT:
        _refuse("characters beyond Unicode's are")
    return flat.reshape(shape, order=order)


def _no_bytes() -> bytes:
  """What the old protocols write for `b""`."""
  return b""


def _finish_dtype(dtype: np.dtype, state: Any) -> np.dtype:
  """The dtype in its byte order; all else in a plain state follows from the dtype."""
  if type(state) is not tuple or len(state) != 8 or _integer(state[0]) != 3:
    _refuse("dtypes of an unusual state are")
  _, byte_order, subarray, names, fields, size, alignment, flags = state
  is_plain = (
    byte_order in ("<", ">", "|", "=")
    and _integer(size) in (-1, dtype.itemsize)
    and _integer(alignment) in (-1, 1, 4)
    and _integer(flags) in (0, 8)
  )
  if not is_plain:
    _refuse("dtypes of another size, alignment or byte order are")
  if not subarray is names is fields is None:
    _refuse("dtypes with fields are")
  return dtype.newbyteorder(byte_order)


def _integer(value: Any) -> int:
  if type(value) not in (int, bool):
    _refuse(f"{_shown(value)} in the place of a number is")
  return int(value)


def _shown(value: Any) -> str:
  """The beginning of a value, for an error; never unbounded work."""
  if isinstance(value, str | bytes):
    return repr(value[:40])
  if isinstance(value, int | float | np.generic) or value is None:
    return repr(value)
  return f"a {type(value).__name__}"


def _refuse(what: str) -> NoReturn:
  raise pickle.UnpicklingError(f"{what} refused")
