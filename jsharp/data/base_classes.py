"""The training classes of a few-shot dataset, for pretraining."""

import dataclasses
from typing import Any, ClassVar

from jsharp import _catalogue
from jsharp.data._options import ImageSource, LabelledSource
from jsharp.data.dataset import Dataset
from jsharp.data.same_classes import split_share
from jsharp.options import at_least, between, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseClasses(LabelledSource):
  """The training classes of a few-shot dataset, as base:NAME.

  Omniglot's rotated classes are left out. Pixels are only scaled to [0, 1], as for
  few-shot learners, so that a learner can start from the parameters.
  """

  name: ClassVar[str] = "base:"
  files: ClassVar[str] = "those of the few-shot dataset, as --data_dir"
  standardised: ClassVar[bool] = False

  image_size: int | None = option(
    None,
    "Height and width in pixels that images are resized to. Default: that of the "
    "few-shot dataset.",
    check=at_least(1),
  )
  held_out: float = option(
    0.1,
    "Fraction of the images of each base class that test the pretrained classifier.",
    check=between(0, 1, below=True),
  )

  @property
  def source(self) -> ImageSource:
    """The few-shot dataset.

    Raises:
      ValueError: if there is none of that name, or its images have one size only.
    """
    name = self.name.removeprefix("base:")
    cls: Any = _catalogue.find("dataset", name)
    if self.image_size is None:
      return cls()
    if not hasattr(cls, "image_size"):
      raise ValueError(
        f"--image_size={self.image_size}: images of --dataset={self.name} have a fixed "
        "size; leave it out"
      )
    return cls(image_size=self.image_size)

  @property
  def light_ink(self) -> bool:  # type: ignore[override]
    return self.source.light_ink

  @property
  def filter(self) -> Any:  # type: ignore[override]
    return self.source.filter

  @property
  def mirrored(self) -> bool:  # type: ignore[override]
    return not self.light_ink

  def directory(self, data_dir: Any) -> str:
    return self.source.directory(data_dir)

  def read(self, directory: str) -> dict[str, Dataset]:
    train = self.source.for_training().load(directory or None, only="train")["train"]
    return split_share(train, self.held_out)
