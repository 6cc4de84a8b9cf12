"""Several few-shot datasets joined into one, for varied tasks from any of them."""

import dataclasses
from typing import Any, ClassVar, Self

from jsharp import _catalogue
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.data.fitting import fit_to
from jsharp.data.pictures import Looks
from jsharp.options import Check, Role, at_least, between, option

_NOWHERE = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domains(ImageSource):
  """Several datasets joined, for --min_way: see --domains and --domain_dirs.

  Every split joins that split of each dataset, so no dataset's test classes are trained
  on. Images are resized and converted to one shape. Each dataset uses its own defaults.
  """

  name: ClassVar[str] = "domains"

  domains: tuple[str, ...] = option(
    ("characters", "omniglot"),
    "Names of the datasets, as for --dataset: omniglot,characters,cub.",
    check=Check(
      lambda names: len(set(names)) == len(names) > 0, "must be names, each once."
    ),
  )
  domain_dirs: tuple[str, ...] | None = option(
    None,
    "Directories of the --domains, in the same order; - for a dataset without files.",
    role=Role.MACHINE,
  )
  image_size: int = option(
    84,
    "Height and width in pixels that images are resized to.",
    check=at_least(1),
  )
  gray: bool = option(False, "Make all images gray; otherwise all have three channels.")
  split_seed: int | None = option(
    None,
    "Divides the classes of a folder without train/, val/ and test/, as for "
    "--dataset=image_folder. Default: 0 in training; a test alone takes all classes.",
    check=between(0, 2**31 - 1),
    added=True,
  )

  def complete(self) -> None:
    given = self.domain_dirs
    if given is not None and len(given) != len(self.domains):
      raise ValueError(
        f"--domain_dirs names {len(given)} directories for {len(self.domains)} "
        "--domains; give one for each, - for a dataset without files"
      )

  def for_training(self, split_seed: int = 0) -> Self:
    return self if self.split_seed is not None else self.replace(split_seed=split_seed)

  def read(self, directory: str) -> dict[str, Dataset]:
    return self._joined(None)

  def read_one(self, directory: str, split: str) -> Dataset:
    return self._joined(split)[split]

  def _joined(self, only: str | None) -> dict[str, Dataset]:
    looks = Looks((self.image_size, self.image_size, 1 if self.gray else 3))
    found: dict[str, dict[str, Dataset]] = {}
    for name, where in zip(
      self.domains, self.domain_dirs or (_NOWHERE,) * len(self.domains), strict=True
    ):
      cls: Any = _catalogue.find("dataset", name)
      source: ImageSource = cls()
      if self.split_seed is not None:
        source = source.for_training(self.split_seed)
      given = None if where == _NOWHERE else where
      try:
        loaded = source.load(given, only=only)
      except (ValueError, OSError) as error:
        raise type(error)(f"--domains, {name}: {error}") from error
      for split, dataset in loaded.items():
        fitted, _ = fit_to(dataset, looks, light_ink=source.light_ink)
        found.setdefault(split, {})[name] = fitted
    return {split: Dataset.joined(parts, split=split) for split, parts in found.items()}
