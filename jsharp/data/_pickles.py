"""Reads pickles of images without running code, such as mini-ImageNet's two families.

A pickle is a program: `pickle.load` may call anything. The reader here has its own
versions of the few functions that rebuild numpy arrays, and refuses every other name
before anything is called.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from jsharp._files import open_regular
from jsharp.data import _archives, _pickle_language

FAMILIES = (
  {split: f"mini-imagenet-cache-{split}.pkl" for split in ("train", "val", "test")},
  {
    "train": "miniImageNet_category_split_train_phase_train.pickle",
    "val": "miniImageNet_category_split_val.pickle",
    "test": "miniImageNet_category_split_test.pickle",
  },
)
"""File names of a family, by split."""


_LONGEST_NAME = 200


def load(path: pathlib.Path, *, scale: int = 1) -> Any:
  """The object in a pickle of containers, strings, numbers and numpy arrays.

  Args:
    path: a pickle of protocol 0 to 5, written by Python 2 or 3 with numpy 1 or 2.
    scale: how many times as many objects there may be as in mini-ImageNet.

  Returns:
    Lists, tuples, dicts, text, bytes, numbers and numpy arrays, which are read-only.
    Memory for them is bounded by four times the file's size and `scale` times 100 MB.

  Raises:
    ValueError: the file is an HTML page, truncated or not a pickle, or asks for
      anything other than arrays of numbers or text; nothing is executed.
  """
  _archives.check_not_html(path)
  with open_regular(path, most=2**40) as file:
    size = os.fstat(file.fileno()).st_size
    return read(file, size, where=path, scale=scale)


def read(file: BinaryIO, size: int, *, where: object, scale: int = 1) -> Any:
  """The object in an open pickle of `size` bytes; as `load`.

  Raises:
    ValueError: as `load`, with `where` in the message.
  """
  with _explained(where):
    return _pickle_language.load(file, size, scale)


def stream(path: pathlib.Path) -> Iterator[Any]:
  """The items of a pickled list of any length, as `load` would return them.

  No more of them are in memory than the pickle adds to the list at once.

  Raises:
    ValueError: as `load`, perhaps after many items; or the pickle is not a list.
  """
  _archives.check_not_html(path)
  with open_regular(path, most=2**40) as file, _explained(path):
    yield from _pickle_language.stream(file, os.fstat(file.fileno()).st_size)


@contextlib.contextmanager
def _explained(where: object) -> Iterator[None]:
  """Explains why a pickle cannot be read, and what to do about it."""
  try:
    yield
  except _pickle_language.RefusedError as error:
    raise ValueError(
      f"{where} is refused: this pickle {error}, which no file of images needs. "
      "Nothing of it was executed. Do not load it elsewhere; fetch the file from a "
      "source that you trust."
    ) from error
  except MemoryError:
    raise
  except Exception as error:  # a damaged pickle can raise anything
    raise ValueError(
      f"{where} is truncated or not a pickle of arrays ({type(error).__name__}: "
      f"{error}). Fetch the file again."
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
    images, classes = content["image_data"], content["class_dict"]
  elif {"data", "labels"} <= content.keys():
    images, classes = content["data"], None
  else:
    keys = ", ".join(sorted(map(_shown, content))[:10])
    raise ValueError(
      f"{path} has the keys [{keys}]; a cache of images has "
      "image_data and class_dict, or data and labels."
    )
  shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", None)
  if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size, size, 3):
    raise ValueError(
      f"{path}: the images are {dtype} of shape {list(shape)}, not uint8 of shape "
      f"[num_images, {size}, {size}, 3]."
    )
  if classes is None:
    indices = _by_label(path, content, len(images))
  elif isinstance(classes, dict):
    indices = classes
  else:
    raise ValueError(f"{path}: class_dict is a {type(classes).__name__}, not a dict.")
  arrays = {}
  used = np.zeros(len(images), bool)
  for key, members in indices.items():
    name = _name(path, key)
    index = whole_numbers(path, f"class {name}", members, len(images))
    if index.size and not 0 <= index.min() <= index.max() < len(images):
      raise ValueError(f"{path}: class {name} names images beyond {len(images)}.")
    if used[index].any() or len(np.unique(index)) != index.size:
      raise ValueError(f"{path}: class {name} names an image of another class.")
    used[index] = True
    arrays[name] = images[index]
  return arrays


def _by_label(path: pathlib.Path, content: dict, num_images: int) -> dict:
  """Class name -> indices, of the family that has a label for each image."""
  labels = whole_numbers(path, "labels", content["labels"], num_images)
  if len(labels) != num_images:
    raise ValueError(f"{path} has {len(labels)} labels for {num_images} images.")
  numbered = content.get("catname2label", {})
  if not isinstance(numbered, dict):
    raise ValueError(
      f"{path}: catname2label is a {type(numbered).__name__}, not a dict."
    )
  values = list(numbered.values())
  numbers = whole_numbers(path, "catname2label", values, len(values)).tolist()
  names = dict(zip(numbers, (_name(path, name) for name in numbered), strict=True))
  order = np.argsort(labels, kind="stable")
  found, starts = np.unique(labels[order], return_index=True)
  parts = np.split(order, starts[1:]) if len(found) else []
  named = [names.get(label, f"label{label}") for label in found.tolist()]
  if len(set(named)) != len(named) or len(names) != len(numbered):
    raise ValueError(f"{path}: catname2label gives two classes one name or number.")
  return dict(zip(named, parts, strict=True))


def whole_numbers(path: object, what: str, values: Any, most: int) -> np.ndarray:
  """A list of whole numbers as int64 `[num_values]`, of which there are at most `most`.

  The length comes first: one long array can be the member of a thousand classes.
  """
  is_array = isinstance(values, np.ndarray) and values.ndim == 1
  if not is_array and not isinstance(values, list | tuple):
    raise ValueError(f"{path}: {what} must be a list of whole numbers.")
  if len(values) > most:
    raise ValueError(f"{path}: {what} has {len(values)} numbers, more than {most}.")
  if is_array and values.dtype.kind in "iu":
    return values.astype(np.int64)
  # Never `np.asarray` of what may be nested: it multiplies lists within lists.
  if is_array or not all(map(_is_integer, values)):
    raise ValueError(f"{path}: {what} must be a list of whole numbers.")
  return np.array([int(value) % 2**64 for value in values], np.uint64).view(np.int64)


def _is_integer(value: Any) -> bool:
  return type(value) is int or isinstance(value, np.integer)


def _name(path: pathlib.Path, name: Any) -> str:
  if not isinstance(name, str) or len(name) > _LONGEST_NAME:
    raise ValueError(f"{path}: {_shown(name)} is not a class name.")
  return name


def _shown(value: Any) -> str:
  """The value for an error, cut where it is long."""
  if isinstance(value, str | bytes):
    return ascii(value[:60])
  return str(value)
