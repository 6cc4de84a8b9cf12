"""mini-ImageNet from its common file layouts.

100 classes of 600 RGB images of 84x84 pixels, 64 / 16 / 20 for training, validation and
testing (Vinyals et al. 2016; split of Ravi and Larochelle 2017). ImageNet's terms allow
non-commercial research and education. `docs/data.md` shows every layout.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from jsharp.data import _archives, _formats, _pickles, _prepared, _published, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset

_TITLE = "mini-ImageNet"


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  prepared_dir: str | os.PathLike | None = None,
  expected: splits.Composition = splits.MINI_IMAGENET,
  only: str | None = None,
) -> dict[str, Dataset]:
  """mini-ImageNet as three datasets of different classes.

  Args:
    data_dir: an archive, or the directory with one of these, at any depth: both
      pickle families
      (`mini-imagenet-cache-*.pkl`, `miniImageNet_category_split_*.pickle`);
      `train.csv`, `val.csv`, `test.csv` with the images flat or in folders; folders
      `split/class/`; or any of the image layouts in tar, tar.xz, tar.gz, tar.bz2 or zip
      archives. Pickles take precedence over images, folders over archives.
    prepared_dir: where to keep the prepared dataset (1.3 GB); see `docs/data.md`.
    expected: the expected classes and sizes.
    only: the only split to load: "train", "val" or "test"; pickles, CSVs and archives
      of the others may be missing.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, 84, 84, 3]`, classes in the order of their WordNet ids. Images of
    other sizes (ImageNet's own files) are resized to 84x84 by Lanczos' filter, ignoring
    the aspect ratio, and their number is reported on stderr.

  Raises:
    FileNotFoundError: if `data_dir` does not exist or does not contain mini-ImageNet,
      or lacks an image that a CSV names.
    ValueError: if a file is damaged, unsafe or not an image, or a class is missing,
      unknown, in the wrong split or of the wrong size. The message names the file or
      class.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  wanted = _published.wanted_splits(only, expected.classes)
  root, files = _published.given(data_dir, help_on=_help)
  caches = _caches(files, only)
  sources = sorted(caches.values()) or [
    file
    for file in files
    if _formats.is_image(file.name)
    or _archives.is_archive(file)
    or _published.csv_split(file.name)
  ]
  if not any(file.suffix != ".csv" for file in sources):
    raise FileNotFoundError(
      f"data_dir={root} does not contain mini-ImageNet. {_help(root)}"
    )

  def reader(only: str | None = None) -> _published.Reader:
    return _published.Reader(
      root, sources, expected, title=_TITLE, only=only, lists=True
    )

  def read() -> dict[str, dict[str, np.ndarray]]:
    if caches:
      size = expected.image_size
      found = {split: _pickles.class_arrays(caches[split], size) for split in wanted}
    else:
      found = reader(only).read()
    _published.check(root, found, expected, title=_TITLE, only=only)
    return {
      split: {name: found[split][name] for name in sorted(found[split])}
      for split in wanted
    }

  def encoded() -> Iterator[tuple[str, bytes]]:
    return ((name, data) for _, name, _, data in reader().images())

  opened = _prepared.load(
    "JsharpMiniImagenet",
    read,
    data_dir=root,
    prepared_dir=prepared_dir,
    files=sources,
    settings=(expected,),
    encoded=None if caches else _prepared.Encoded(encoded, "RGB"),
    parts=None if only is None else (only,),
  )
  return _published.datasets(opened)


def _help(root: pathlib.Path) -> str:
  return (
    f"Put into {root} either the three mini-imagenet-cache-*.pkl, or train.csv, "
    "val.csv and test.csv of https://github.com/twitter-research/meta-learning-lstm "
    "with a folder images/, or folders train/, val/ and test/ with one folder per "
    "class, or archives of these. The images are ImageNet's: https://image-net.org, "
    "for non-commercial research and education. --dataset=characters needs no data."
  )


def _caches(files: Sequence[pathlib.Path], only: str | None) -> dict[str, pathlib.Path]:
  """The pickles of the first family found, by split; at least that of `only`."""
  # learn2learn's copy of the first family says "validation".
  by_name = {file.name.replace("-validation.pkl", "-val.pkl"): file for file in files}
  for names in _pickles.FAMILIES:
    if found := _published.family(by_name, names, only):
      return found
  return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniImageNet(ImageSource):
  """Photographs of 100 classes, 84x84 (Vinyals et al. 2016)."""

  name: ClassVar[str] = "miniimagenet"
  holds_any: ClassVar[bool] = True
  files: ClassVar[str] = (
    "put mini-ImageNet in one directory and pass it as --data_dir: the three CSV files "
    "of Ravi and Larochelle next to images/, or folders or archives train, val, test "
    "with a folder per class, or the pickle caches"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory)

  def read_one(self, directory: str, split: str) -> Dataset:
    return load(directory, only=split)[split]
