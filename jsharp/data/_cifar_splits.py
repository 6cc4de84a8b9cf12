"""CIFAR-FS and FC100: two splits of the classes of CIFAR-100, in any layout."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jsharp._files import read_bytes
from jsharp.data import (
  _archives,
  _formats,
  _pickles,
  _prepared,
  _published,
  cifar,
  splits,
)
from jsharp.data.dataset import Dataset

_Found = dict[str, dict[str, np.ndarray]]
_ARCHIVE = "cifar-100-python"
_MOST = 2**20  # Bytes of a list of classes.


def load(
  data_dir: str | os.PathLike,
  *,
  title: str,
  pickles: str,
  builder: str,
  lists: str,
  expected: splits.Composition,
  only: str | None,
  prepared_dir: str | os.PathLike | None,
) -> dict[str, Dataset]:
  """Loads the datasets of one of the two splits.

  Args:
    data_dir: a directory or an archive.
    title: the name of the dataset.
    pickles: the file name of the pickles, with `{}` for the split.
    builder: a class of `jsharp.data._builders`.
    lists: the folder of the lists of classes; empty if there are none.
    expected: the expected classes and sizes.
    only: the split to be loaded alone.
    prepared_dir: see `docs/data.md`.

  Raises:
    FileNotFoundError: if the dataset is not there.
    ValueError: if it is damaged or differs from what is expected.
  """
  wanted = _published.wanted_splits(only, expected.classes)

  def help_on(root: pathlib.Path) -> str:
    names = ", ".join(pickles.format(split) for split in expected.classes)
    return (
      f"Put into {root} either cifar-100-python.tar.gz of "
      f"https://www.cs.toronto.edu/~kriz/cifar.html, or {names}, or folders train/, "
      "val/ and test/ with one folder per class, or archives of these. "
      "--dataset=characters needs no data."
    )

  root, files = _published.given(data_dir, help_on=help_on)
  names = {split: pickles.format(split) for split in expected.classes}
  caches = _published.family({file.name: file for file in files}, names, only)
  official = _official(files)
  sources = [file for file in files if _formats.is_image(file.name)]
  sources = sources or [file for file in files if _archives.is_archive(file)]
  if not caches and not official and not sources:
    raise FileNotFoundError(
      f"data_dir={root} does not contain {title}. {help_on(root)}"
    )
  if lists:
    _check_lists(root, files, lists, expected, title)

  def checked(found: _Found) -> _Found:
    _published.check(root, found, expected, title=title, only=only)
    return {
      split: {name: found[split][name] for name in sorted(found[split])}
      for split in wanted
    }

  if caches or official:
    found = (
      _cached({split: caches[split] for split in wanted}, expected)
      if caches
      else _of_official(official, expected, title)
    )
    return {
      split: Dataset.from_class_arrays(classes, split=split)
      for split, classes in checked(found).items()
    }
  reader = _published.Reader(root, sources, expected, title=title, only=only)
  opened = _prepared.load(
    builder,
    lambda: checked(reader.read()),
    data_dir=root,
    prepared_dir=prepared_dir,
    files=sources,
    settings=(expected,),
    parts=None if only is None else (only,),
  )
  return _published.datasets(opened)


def _official(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """The folder or archive with the official files."""
  for file in files:
    if file.name == "meta":
      return file.parent
  for file in files:
    if _archives.is_archive(file) and file.name.startswith(_ARCHIVE):
      return file
  return None


def _of_official(
  place: pathlib.Path | None, expected: splits.Composition, title: str
) -> _Found:
  """All images of CIFAR-100, by the split of their class."""
  assert place is not None
  parts = cifar.class_arrays(place, num_classes=100)
  names = list(parts["train"])
  _published.check_names(
    place,
    "CIFAR-100",
    names,
    sum(expected.classes.values(), ()),
    title=f"what {title} is made of",
  )
  return {
    split: {
      name: np.concatenate([part[name] for part in parts.values()]) for name in of
    }
    for split, of in expected.classes.items()
  }


def _cached(caches: dict[str, pathlib.Path], expected: splits.Composition) -> _Found:
  """The classes of pickles, by name where their labels are CIFAR-100's fine ones.

  They are if the labels of one of the pickles are exactly those of a published split.
  """
  found = {
    split: _pickles.class_arrays(path, expected.image_size)
    for split, path in caches.items()
  }
  fine = {f"label{label}": name for label, name in enumerate(splits.CIFAR_100_CLASSES)}
  published = [set(names) for names in expected.classes.values()]
  if not any({fine.get(label) for label in of} in published for of in found.values()):
    return found  # Other numbers, so classes are only counted.
  return {
    split: {fine.get(label, label): images for label, images in of.items()}
    for split, of in found.items()
  }


def _check_lists(
  root: pathlib.Path,
  files: Sequence[pathlib.Path],
  folder: str,
  expected: splits.Composition,
  title: str,
) -> None:
  """Checks lists of classes, one name per line, against the published ones."""
  for file in files:
    if file.parent.name != folder or file.name not in (
      f"{split}.txt" for split in expected.classes
    ):
      continue
    text = read_bytes(file, most=_MOST).decode(errors="replace")
    _published.check_names(
      root,
      file.relative_to(root).as_posix(),
      [line.strip() for line in text.splitlines() if line.strip()],
      expected.classes[file.stem],
      title=f"the split {file.stem} of {title}",
    )
