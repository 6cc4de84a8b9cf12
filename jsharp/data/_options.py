"""What every source of images is described by."""

import dataclasses
import os
from typing import ClassVar

from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Filter
from jsharp.options import Options, Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource(Options):
  """Where images of few-shot tasks come from: splits of different classes.

  Class attributes:
    files: what to put into `data_dir`; empty for a source that needs no files.
    holds_any: whether its directory may hold any images, so that these are called after
      it.
    filter: Pillow's filter that images were resized by.
    light_ink: whether its images are drawings in light ink on a dark ground.
  """

  kind: ClassVar[str] = "dataset"
  role: ClassVar[Role] = Role.TESTING
  files: ClassVar[str] = ""
  holds_any: ClassVar[bool] = False
  filter: ClassVar[Filter] = "LANCZOS"
  light_ink: ClassVar[bool] = False

  def load(self, data_dir: str | os.PathLike[str] | None) -> dict[str, Dataset]:
    """Loads the splits "train", "val" and "test".

    Raises:
      ValueError: if it needs a directory and none was given.
      OSError: if files are missing or cannot be read.
    """
    return self.read(self.directory(data_dir))

  def read(self, directory: str) -> dict[str, Dataset]:
    """Loads the splits from a directory that was given where one is needed."""
    raise NotImplementedError

  def directory(self, data_dir: str | os.PathLike[str] | None) -> str:
    """The directory to read, with `~` expanded; empty for a source without files."""
    if self.files and data_dir is None:
      raise ValueError(
        f"--dataset={self.name} needs files: {self.files}. Or pass "
        "--dataset=characters, drawn by jsharp itself, which needs nothing"
      )
    return os.path.expanduser(data_dir or "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledSource(ImageSource):
  """Where images of ordinary training come from: the same classes in every split.

  Class attributes:
    mirrored: whether a mirrored image is still one of its class.
  """

  kind: ClassVar[str] = "labelled dataset"
  mirrored: ClassVar[bool] = True
