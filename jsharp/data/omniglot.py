"""Omniglot from its two original zips.

1623 characters of 50 alphabets, 20 drawings each, 105x105 pixels in black on white
(Lake et al. 2015, MIT licence). They are converted to 28x28 grayscale with ink = 255
and background = 0: each pixel is the fraction of ink in its area (area average).
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np

from jsharp._files import read_bytes
from jsharp.data import _archives, _formats, _pixels, _prepared, splits
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.data.pictures import Filter
from jsharp.options import at_least, option

_ORIGINAL_SIZE = 105
_PARTS = {
  "images_background": splits.OMNIGLOT_BACKGROUND,
  "images_evaluation": splits.OMNIGLOT_EVALUATION,
}
_SPLITS = {"vinyals": lambda seed: splits.vinyals(), "mixed": splits.mixed}


@_archives.archives_within_named()
def load(
  data_dir: str | os.PathLike,
  *,
  size: int = 28,
  split: str = "vinyals",
  rotations: Sequence[str] = ("train", "val"),
  split_seed: int = 0,
  only: str | None = None,
  prepared_dir: str | os.PathLike | None = None,
) -> dict[str, Dataset]:
  """Omniglot as three datasets of different characters.

  Args:
    data_dir: the directory with `images_background.zip` and `images_evaluation.zip`, or
      with the folders extracted from them, at any depth; or one archive of both.
    size: height and width of the images in pixels.
    split: `"vinyals"`, the 1028 / 172 / 423 characters of Vinyals et al. (2016); or
      `"mixed"`, 1100 / 100 / 423 characters drawn at random from all alphabets as in
      Finn et al. (2017).
    rotations: the splits in which every character, rotated by 90, 180 and 270 degrees,
      counts as three additional classes. By default train and val, as in the Sharp-MAML
      code; the MAML code rotates test characters too: `("train", "val", "test")`.
    split_seed: decides the split `"mixed"`.
    only: the only split to load: "train", "val" or "test". The test characters of
      `"vinyals"` are in `images_evaluation.zip` alone, those of val in the other.
    prepared_dir: where to keep the prepared dataset; see `docs/data.md`.

  Returns:
    `{"train", "val", "test"}`, or only the requested one, with uint8 images
    `[num_images, size, size, 1]`, ink 255 on background 0.

  Raises:
    FileNotFoundError: if an archive is missing.
    ValueError: if an argument is invalid, an archive is damaged or not an archive, a
      character is missing, unknown or does not have 20 drawings, or a drawing cannot be
      read.

  Example:
    >>> load("/nowhere")
    Traceback (most recent call last):
    FileNotFoundError: data_dir=/nowhere does not exist...
  """
  if split not in _SPLITS:
    raise ValueError(f"split={split!r} must be one of {', '.join(_SPLITS)}.")
  unknown = set(rotations) - {"train", "val", "test"}
  if unknown:
    raise ValueError(f"rotations={rotations!r}: there is no split {unknown.pop()!r}.")
  if not 1 <= size <= _ORIGINAL_SIZE:
    raise ValueError(f"size={size} must lie between 1 and {_ORIGINAL_SIZE} pixels.")
  if only not in (None, *splits.NAMES):
    raise ValueError(f"only={only!r} must be one of {', '.join(splits.NAMES)}.")
  wanted = _SPLITS[split](split_seed)
  if only is not None:
    wanted = {only: wanted[only]}
  characters = {name for names in wanted.values() for name in names}
  needed = [
    part
    for part, alphabets in _PARTS.items()
    if characters.intersection(splits.omniglot_characters(alphabets))
  ]
  root, below = _archives.given(data_dir)
  if not root.is_dir():
    raise FileNotFoundError(f"data_dir={root} does not exist. {_help(root)}")
  sources = {part: source for part in _PARTS if (source := _source(root, below, part))}
  for part in needed:
    if part not in sources:
      raise FileNotFoundError(
        f"data_dir={root} has neither {part}.zip nor {part}/. {_help(root)}"
      )
  files = [
    file
    for source in dict.fromkeys(sources.values())
    for file in (_archives.walk(source) if source.is_dir() else [source])
  ]
  parts = _prepared.load(
    "JsharpOmniglot",
    lambda: {part: _read(sources[part], part, size) for part in needed},
    data_dir=root,
    prepared_dir=prepared_dir,
    files=files,
    settings=(size,),
    encoded=_prepared.Encoded(
      lambda: (item for part, at in sources.items() for item in _files(at, part)), "L"
    ),
    parts=None if set(needed) == set(_PARTS) else needed,
  )
  classes = {
    name: images for part in parts.values() for name, images in part.arrays().items()
  }
  return {
    name: Dataset.from_class_arrays(
      {character: classes[character] for character in characters},
      split=name,
      num_rotations=4 if name in rotations else 1,
    )
    for name, characters in wanted.items()
  }


def _source(
  root: pathlib.Path, files: list[pathlib.Path], part: str
) -> pathlib.Path | None:
  """The nearest folder or archive of a part; otherwise an archive of both parts."""
  found = []
  for file in files:
    folders = file.relative_to(root).parts[:-1]
    if part in folders:
      found.append(root.joinpath(*folders[: folders.index(part) + 1]))
    elif _archives.is_archive(file) and file.name.split(".")[0] == part:
      found.append(file)
  if found:
    return min(found, key=lambda path: (len(path.parts), path.is_file()))
  both = [
    file
    for file in files
    if _archives.is_archive(file) and file.name.split(".")[0] not in _PARTS
  ]
  return both[0] if len(both) == 1 else None


def _help(root: pathlib.Path) -> str:
  return (
    f"Put images_background.zip and images_evaluation.zip into {root}; both are in "
    "the folder python/ of https://github.com/brendenlake/omniglot. "
    "--dataset=characters needs no data."
  )


def _files(source: pathlib.Path, part: str) -> Iterator[tuple[str, bytes]]:
  """Name and content of every drawing of a part."""
  if not source.is_dir():
    holds_one = source.name.split(".")[0] == part

    def wanted(name: str) -> bool:
      return _formats.is_image(name) and (holds_one or part in name.split("/"))

    yield from _archives.members(source, wanted)
    return
  for file in _archives.walk(source):
    if _formats.is_image(file.name):
      content = read_bytes(file, most=_archives.LARGEST_MEMBER)
      yield file.relative_to(source.parent).as_posix(), content


def _read(source: pathlib.Path, part: str, size: int) -> dict[str, np.ndarray]:
  """Character -> uint8 `[20, size, size, 1]` in the order of the file names."""

  def drawing(item: tuple[str, bytes]) -> tuple[str, np.ndarray]:
    name, data = item
    return name, _drawing(data, f"{source}: {name}", size)

  found: dict[str, dict[str, np.ndarray]] = {}
  for name, image in _pixels.map_threads(drawing, _files(source, part)):
    folders = name.split("/")
    if len(folders) < 3:
      raise ValueError(
        f"{source}: {name} is not in a folder alphabet/character as in the original "
        "archive."
      )
    found.setdefault("/".join(folders[-3:-1]), {})[folders[-1]] = image
  expected = splits.omniglot_characters(_PARTS[part])
  for what, names in (
    ("lacks the character", [name for name in expected if name not in found]),
    ("has the unknown character", sorted(set(found) - set(expected))),
  ):
    if names:
      raise ValueError(
        f"{source} {what} {names[0]} ({len(names)} such, of {len(expected)} "
        "expected). Use the original archive unchanged."
      )
  for name, drawings in found.items():
    if len(drawings) != splits.OMNIGLOT_DRAWINGS:
      raise ValueError(
        f"{source}: the character {name} has {len(drawings)} drawings, not "
        f"{splits.OMNIGLOT_DRAWINGS}. Use the original archive unchanged."
      )
  return {
    name: np.stack([drawings[file] for file in sorted(drawings)])
    for name, drawings in found.items()
  }


def _drawing(data: bytes, name: str, size: int) -> np.ndarray:
  """One drawing, uint8 `[size, size, 1]`: 255 times the fraction of ink."""
  # "L" turns the 1-bit originals' {0, 1} into {0, 255}; ink is 0 there.
  paper = _pixels.decode(data, name=name, mode="L")
  _pixels.check_size(paper, _ORIGINAL_SIZE, name=name)
  return _pixels.resize(255 - paper, size, method="BOX")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Omniglot(ImageSource):
  """Handwritten characters (Lake et al. 2015)."""

  name: ClassVar[str] = "omniglot"
  filter: ClassVar[Filter] = "BOX"
  light_ink: ClassVar[bool] = True
  files: ClassVar[str] = (
    "download images_background.zip and images_evaluation.zip from "
    "https://github.com/brendenlake/omniglot/tree/master/python, put them in one "
    "directory and pass it as --data_dir"
  )

  omniglot_split: Literal["vinyals", "mixed"] = option(
    "vinyals",
    "Characters of each Omniglot split: vinyals (1028 / 172 / 423) or mixed (1100 / "
    "100 / 423 drawn at random, as in MAML's code).",
  )
  rotate_test: bool = option(
    False,
    "Omniglot: rotated characters count as additional classes in the test split too, "
    "as in MAML's code, instead of only in training and validation.",
  )
  image_size: int = option(
    28,
    "Height and width in pixels that images are resized to or drawn at.",
    check=at_least(1),
  )

  def read(self, directory: str) -> dict[str, Dataset]:
    return self._load(directory)

  def read_one(self, directory: str, split: str) -> Dataset:
    return self._load(directory, only=split)[split]

  def _load(self, directory: str, only: str | None = None) -> dict[str, Dataset]:
    return load(
      directory,
      split=self.omniglot_split,
      rotations=splits.NAMES if self.rotate_test else ("train", "val"),
      size=self.image_size,
      only=only,
    )
