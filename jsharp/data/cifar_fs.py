"""CIFAR-FS from CIFAR-100's own files or from its common copies.

The 100 classes of CIFAR-100 (Krizhevsky 2009), 64 / 16 / 20 for training, validation
and testing (Bertinetto et al. 2019): 600 RGB images of 32x32 pixels each, from both the
training and the test set of CIFAR-100. `docs/data.md` shows every layout.
"""

import dataclasses
import os
from typing import ClassVar

from jsharp.data import _archives, _cifar_splits, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  only: str | None = None,
  prepared_dir: str | os.PathLike | None = None,
  expected: splits.Composition = splits.CIFAR_FS,
) -> dict[str, Dataset]:
  """CIFAR-FS as three datasets of different classes.

  Args:
    data_dir: an archive, or the directory with one of these, at any depth:
      `CIFAR_FS_train.pickle`, `CIFAR_FS_val.pickle` and `CIFAR_FS_test.pickle`;
      `cifar-100-python.tar.gz` or what is in it; folders `split/class/` or `class/`
      (Bertinetto's `cifar100/data/`); or archives of such folders. The first that is
      there is read. Pickles are never executed.
    only: the only split to load: "train", "val" or "test"; pickles and archives of the
      others may be missing.
    prepared_dir: where to keep the decoded images of folders and archives; see
      `docs/data.md`.
    expected: the classes and sizes that must be found.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, 32, 32, 3]`, classes in the order of their names.

  Raises:
    FileNotFoundError: if `data_dir` does not exist or does not contain CIFAR-FS, or one
      of the pickles is missing.
    ValueError: if a file is damaged, unsafe or not an image, or a class is missing,
      unknown, in the wrong split or of the wrong size. The message names the file or
      class.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  return _cifar_splits.load(
    data_dir,
    title="CIFAR-FS",
    pickles="CIFAR_FS_{}.pickle",
    builder="JsharpCifarFs",
    lists="bertinetto",
    expected=expected,
    only=only,
    prepared_dir=prepared_dir,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CIFARFS(ImageSource):
  """Photographs of CIFAR-100's classes, 32x32 (Bertinetto et al. 2019)."""

  name: ClassVar[str] = "cifar_fs"
  files: ClassVar[str] = (
    "pass as --data_dir the directory that holds cifar-100-python.tar.gz, or "
    "CIFAR_FS_train.pickle, CIFAR_FS_val.pickle and CIFAR_FS_test.pickle, or a folder "
    "of images per class"
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return load(directory)

  def read_one(self, directory: str, split: str) -> Dataset:
    return load(directory, only=split)[split]
