"""What every source of images is described by."""

import dataclasses
import os
from typing import ClassVar, Self

from jsharp.data._encoded import Listed
from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Filter
from jsharp.options import Options, Role, at_least, option


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

  def load(
    self, data_dir: str | os.PathLike[str] | None, *, only: str | None = None
  ) -> dict[str, Dataset]:
    """Loads the splits "train", "val" and "test", or one of them.

    Args:
      data_dir: its directory; None for a source without files.
      only: the split that is wanted. Files of the others may then be missing.

    Raises:
      ValueError: if it needs a directory and none was given.
      OSError: if files are missing or cannot be read.
    """
    directory = self.directory(data_dir)
    if only is None:
      return self.read(directory)
    return {only: self.read_one(directory, only)}

  def read(self, directory: str) -> dict[str, Dataset]:
    """Loads the splits from a directory that was given where one is needed."""
    raise NotImplementedError

  def read_one(self, directory: str, split: str) -> Dataset:
    """Loads one split; a source that can do so without the others says how."""
    return self.read(directory)[split]

  def for_training(self) -> Self:
    """The source with all options said that decide which classes are trained on."""
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
  """Where images of ordinary training come from: the same classes in every split.

  Class attributes:
    mirrored: whether a mirrored image is still one of its class.
    standardised: whether each channel is made to have mean 0 and deviation 1 over the
      training set; otherwise pixels are scaled to [0, 1].
    streamed: whether its images stay in their files and are cropped as they are read.
  """

  kind: ClassVar[str] = "labelled dataset"
  mirrored: ClassVar[bool] = True
  standardised: ClassVar[bool] = True
  streamed: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedSource(LabelledSource):
  """A labelled dataset too large for memory, whose images are read as they are needed.

  Class attributes:
    pixel_mean: of each channel, subtracted from the pixels, 0 to 255.
    pixel_deviation: of each channel, which divides what is left.
  """

  streamed: ClassVar[bool] = True
  pixel_mean: ClassVar[tuple[float, ...]] = (127.5, 127.5, 127.5)
  pixel_deviation: ClassVar[tuple[float, ...]] = (127.5, 127.5, 127.5)

  image_size: int = option(
    224, "Height and width in pixels that crops are resized to.", check=at_least(1)
  )
  num_workers: int | None = option(
    None,
    "Processes that decode images; no result depends on it. 0: threads of the training "
    "process. Default: one for each core but one.",
    check=at_least(0),
    role=Role.MACHINE,
  )

  def listed(self, directory: str) -> dict[str, Listed]:
    """Lists the images of the splits "train" and "test", and "val" where there is one.

    Raises:
      ValueError: if the files are not what they should be.
      OSError: if they are missing or cannot be read.
    """
    raise NotImplementedError

  def read(self, directory: str) -> dict[str, Dataset]:
    raise ValueError(
      f"--dataset={self.name} is too large to be held in memory; it is for ordinary "
      "training, python -m experiments.supervised"
    )
