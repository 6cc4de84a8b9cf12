"""Base classes for the options of image sources."""

import dataclasses
import os
from typing import ClassVar, Self

from jsharp.data._encoded import Listed
from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Filter
from jsharp.options import Options, Role, at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource(Options):
  """The options of a few-shot dataset: a source of splits with different classes.

  Class attributes:
    files: what to put into `data_dir`; empty for a source without files.
    holds_any: whether its directory may contain any images, whose name is then that of
      the directory.
    filter: the Pillow filter that images were resized by.
    light_ink: whether its images are drawings in light ink on a dark background.
  """

  kind: ClassVar[str] = "dataset"
  role: ClassVar[Role] = Role.TESTING
  files: ClassVar[str] = ""
  holds_any: ClassVar[bool] = False
  filter: ClassVar[Filter] = "LANCZOS"
  light_ink: ClassVar[bool] = False

  def load(
    self, data_dir: str | os.PathLike[str] | None, *, only: str | None = None
  ) -> dict[str, Dataset]:
    """Loads the splits "train", "val" and "test", or one of them.

    Args:
      data_dir: its directory; None for a source without files.
      only: the only split to load; files of the others may then be missing.

    Raises:
      ValueError: if it needs a directory and none was given.
      OSError: if files are missing or cannot be read.
    """
    directory = self.directory(data_dir)
    if only is None:
      return self.read(directory)
    return {only: self.read_one(directory, only)}

  def read(self, directory: str) -> dict[str, Dataset]:
    """Loads the splits from a directory; it is empty for a source without files."""
    raise NotImplementedError

  def read_one(self, directory: str, split: str) -> Dataset:
    """Loads one split; sources that can do so without the others override this."""
    return self.read(directory)[split]

  def for_training(self, split_seed: int = 0) -> Self:
    """The source with explicit values for all options that decide training classes.

    Args:
      split_seed: divides the classes, where the source would otherwise not divide them.
    """
    return self

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
  """The options of a labelled dataset, with the same classes in every split.

  Class attributes:
    mirrored: whether a mirrored image still belongs to its class.
    standardised: whether each channel is normalised to mean 0 and deviation 1 over the
      training set; otherwise pixels are scaled to [0, 1].
    streamed: whether its images stay in their files and are cropped when they are read.
  """

  kind: ClassVar[str] = "labelled dataset"
  mirrored: ClassVar[bool] = True
  standardised: ClassVar[bool] = True
  streamed: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedSource(LabelledSource):
  """A labelled dataset too large for memory, whose images are read on demand.

  Class attributes:
    pixel_mean: the mean of each channel, subtracted from pixel values of 0 to 255.
    pixel_deviation: the deviation of each channel, which divides the difference.
  """

  streamed: ClassVar[bool] = True
  pixel_mean: ClassVar[tuple[float, ...]] = (127.5, 127.5, 127.5)
  pixel_deviation: ClassVar[tuple[float, ...]] = (127.5, 127.5, 127.5)

  image_size: int = option(
    224, "Height and width in pixels that crops are resized to.", check=at_least(1)
  )
  num_workers: int | None = option(
    None,
    "Number of processes that decode images; it does not affect results. 0: threads of "
    "the training process. Default: one per core, minus one.",
    check=at_least(0),
    role=Role.MACHINE,
  )

  def listed(self, directory: str) -> dict[str, Listed]:
    """Lists the images of the splits "train" and "test", and of "val" if it exists.

    Raises:
      ValueError: if the files are not as expected.
      OSError: if they are missing or cannot be read.
    """
    raise NotImplementedError

  def read(self, directory: str) -> dict[str, Dataset]:
    raise ValueError(
      f"--dataset={self.name} is too large for memory; it is only for ordinary "
      "training: python -m experiments.supervised"
    )
