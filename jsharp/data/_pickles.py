"""The two families of mini-ImageNet pickle caches, read without running code.

A pickle is a program: `pickle.load` may call anything. The unpickler here knows the
few functions that rebuild numpy arrays, in versions of its own, and refuses every
other name before anything is called.
"""

import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jsharp.data import _archives

FAMILIES = (
  {split: f"mini-imagenet-cache-{split}.pkl" for split in ("train", "val", "test")},
  {
    "train": "miniImageNet_category_split_train_phase_train.pickle",
    "val": "miniImageNet_category_split_val.pickle",
    "test": "miniImageNet_category_split_test.pickle",
  },
)
"""File names of a family, by split."""

_PLAIN_KINDS = frozenset("biufSU")


class _Array:
  """Stands for `numpy.ndarray`, which a pickle names and must never call."""


def _dtype(spec: str, align: bool = False, copy: bool = True) -> np.dtype:
  del align, copy
  dtype = np.dtype(spec) if isinstance(spec, str) else None
  if dtype is None or dtype.kind not in _PLAIN_KINDS:
    raise pickle.UnpicklingError(f"arrays of dtype {spec!r} are refused")
  # Always a copy: the pickle goes on to set its byte order.
  return np.dtype(dtype, copy=True)


def _reconstruct(array: _Array, shape: tuple, kind: bytes | str) -> np.ndarray:
  del kind
  if not isinstance(array, _Array) or shape != (0,):
    raise pickle.UnpicklingError("arrays of an unusual form are refused")
  return np.empty((0,), np.int8)


def _scalar(dtype: np.dtype, data: bytes | str) -> np.generic:
  raw = data.encode("latin1") if isinstance(data, str) else data
  return np.frombuffer(raw, dtype, count=1)[0]


def _frombuffer(buffer: Any, dtype: np.dtype, shape: tuple, order: Any) -> np.ndarray:
  return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"the encoding {encoding!r} is refused")
  return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable] = {
  ("numpy", "dtype"): _dtype,
  ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):
  _ALLOWED[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
  _ALLOWED[(f"{_core}.multiarray", "scalar")] = _scalar
  _ALLOWED[(f"{_core}.numeric", "_frombuffer")] = _frombuffer


class _Refused(Exception):
  """A pickle names something that is not allowed."""


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("numpy", "ndarray"):
      return _Array()
    if (module, name) not in _ALLOWED:
      raise _Refused(f"{module}.{name}")
    function = _ALLOWED[(module, name)]
    # A pickle may set attributes on what it is given: give it something of its own.
    return lambda *arguments: function(*arguments)


def load(path: pathlib.Path) -> Any:
  """The object in a pickle of containers, strings, numbers and numpy arrays.

  Args:
    path: a pickle of protocol 0 to 5, written by Python 2 or 3 with numpy 1 or 2.

  Raises:
    ValueError: the file is an HTML page, is truncated or no pickle, or names
      anything else than what rebuilds arrays of numbers; nothing is executed.
  """
  _archives.check_not_html(path)
  try:
    with open(path, "rb") as file:
      # Python 2 strings, array contents among them, are bytes in latin-1.
      return _Unpickler(file, encoding="latin1").load()
  except _Refused as error:
    raise ValueError(
      f"{path} is refused: this pickle asks for {error}, which no mini-ImageNet cache "
      "needs. Nothing of it was executed. Do not load it elsewhere; fetch the file "
      "from a source that you trust."
    ) from error
  except MemoryError:
    raise
  except Exception as error:  # a damaged pickle can raise anything
    raise ValueError(
      f"{path} is truncated or no pickle of arrays ({type(error).__name__}: {error}). "
      "Fetch the file again."
    ) from error


def class_arrays(path: pathlib.Path, size: int) -> dict[str, np.ndarray]:
  """The images of one split's cache, class by class.

  Args:
    path: a cache of either family: `image_data` with `class_dict` (name -> indices),
      or `data` with `labels` (and `catname2label`, which names them).
    size: height and width that the images must have.

  Returns:
    Class name -> uint8 `[num_images, size, size, 3]`. Without `catname2label` the
    names are `label0`, `label1`, and so on.

  Raises:
    ValueError: as `load`; or the content has neither form, or images of another
      size or type, or indices that do not fit.
  """
  content = load(path)
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}, not a dict.")
  if {"image_data", "class_dict"} <= content.keys():
    images, indices = content["image_data"], content["class_dict"]
  elif {"data", "labels"} <= content.keys():
    images = content["data"]
    indices = _by_label(content)
  else:
    raise ValueError(
      f"{path} has the keys {sorted(map(str, content))}; a mini-ImageNet cache has "
      "image_data and class_dict, or data and labels."
    )
  shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", None)
  if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size, size, 3):
    raise ValueError(
      f"{path}: the images are {dtype} of shape {list(shape)}, not uint8 of shape "
      f"[num_images, {size}, {size}, 3]."
    )
  arrays = {}
  used = np.zeros(len(images), bool)
  for name, members in indices.items():
    index = np.asarray(members, np.int64)
    if index.size and not 0 <= index.min() <= index.max() < len(images):
      raise ValueError(f"{path}: class {name} names images beyond {len(images)}.")
    if used[index].any() or len(set(index.tolist())) != index.size:
      raise ValueError(f"{path}: class {name} names an image that is already taken.")
    used[index] = True
    arrays[str(name)] = images[index]
  return arrays


def _by_label(content: dict) -> dict[str, np.ndarray]:
  labels = np.asarray(content["labels"])
  if labels.ndim != 1:
    raise ValueError(f"labels must be a list of numbers, not {labels.shape}")
  names = {label: name for name, label in content.get("catname2label", {}).items()}
  return {
    names.get(label, f"label{label}"): np.flatnonzero(labels == label)
    for label in np.unique(labels).tolist()
  }
