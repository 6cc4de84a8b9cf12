"""Shared code of the readers of published few-shot datasets.

Images in folders and archives are sorted into splits and classes, and what was found is
compared with the published lists.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jsharp._files import parse_csv, read_bytes
from jsharp._terminal import say
from jsharp.data import _archives, _formats, _pixels, _prepared, splits
from jsharp.data.dataset import Dataset


def given(
  data_dir: Any, *, help_on: Callable[[pathlib.Path], str]
) -> tuple[pathlib.Path, list[pathlib.Path]]:
  """The given directory and its files; for an archive, its directory and only itself.

  Raises:
    FileNotFoundError: it does not exist.
  """
  root, files = _archives.given(data_dir)
  if not root.is_dir():
    raise FileNotFoundError(f"data_dir={root} does not exist. {help_on(root)}")
  return root, files


def wanted_splits(only: str | None, classes: splits.Split) -> tuple[str, ...]:
  """The splits to read.

  Raises:
    ValueError: there is no such split.

  Example:
    >>> wanted_splits("val", {"train": (), "val": ()})
    ('val',)
  """
  if only not in (None, *classes):
    raise ValueError(f"only={only!r} must be one of {', '.join(classes)}.")
  return tuple(classes) if only is None else (only,)


def family(
  by_name: Mapping[str, pathlib.Path], names: Mapping[str, str], only: str | None
) -> dict[str, pathlib.Path]:
  """The file of each split, of those that belong together; empty if there is none.

  Args:
    by_name: where they are looked for.
    names: file name by split.
    only: the split whose file alone has to be there.

  Raises:
    FileNotFoundError: one is there and another is missing.
  """
  found = {split: by_name[name] for split, name in names.items() if name in by_name}
  missing = [split for split in names if split not in found and only in (None, split)]
  if found and missing:
    raise FileNotFoundError(
      f"{next(iter(found.values()))} is there, but {names[missing[0]]} is missing: put "
      "the files of the family into one directory."
    )
  return found


def datasets(opened: Mapping[str, _prepared.Classes]) -> dict[str, Dataset]:
  """The classes of each split as datasets, without copying their images."""
  return {
    split: Dataset(
      images=classes.images,
      offsets=np.cumsum(classes.counts, dtype=np.int32) - classes.counts,
      counts=classes.counts,
      class_names=classes.names,
      split=split,
    )
    for split, classes in opened.items()
  }


def check(
  root: pathlib.Path,
  found: Mapping[str, Mapping[str, np.ndarray]],
  expected: splits.Composition,
  *,
  title: str,
  only: str | None = None,
) -> None:
  """Refuses missing, extra, misplaced and too small or too large classes.

  Args:
    root: where they were found, for errors.
    found: images by class by split.
    expected: what must be found.
    title: what the dataset is called.
    only: the split to be compared alone.

  Raises:
    ValueError: naming the classes.
  """
  for split in wanted_splits(only, expected.classes):
    names, classes = expected.classes[split], found.get(split, {})
    check_names(root, split, classes, names, title=title)
    for name, images in classes.items():
      count = expected.images_of(name)
      if count is not None and len(images) != count:
        raise ValueError(
          f"data_dir={root}: class {name} of {split} has {len(images)} images, not "
          f"{count}. Complete it or fetch the data again."
        )


def check_names(
  root: object,
  split: str,
  found: Iterable[str],
  names: Sequence[str],
  *,
  title: str,
) -> None:
  """Refuses classes that differ from those of a split.

  Classes without names, which are called `label0`, `label1`, ..., are counted.

  Raises:
    ValueError: listing those that are missing and those that do not belong there.

  Example:
    >>> check_names("here", "val", ["ox", "cat"], ["cat", "dog"], title="Pets")
    Traceback (most recent call last):
    ValueError: data_dir=here: val has 2 classes, Pets has 2 (missing: dog; not of...
  """
  classes = list(found)
  named = not classes or not all(name.startswith("label") for name in classes)
  missing = [name for name in names if named and name not in classes]
  extra = sorted(name for name in classes if named and name not in names)
  if len(classes) == len(names) and not missing and not extra:
    return
  lists = (("missing", missing), ("not of this split", extra))
  detail = "; ".join(f"{what}: {', '.join(some[:5])}" for what, some in lists if some)
  raise ValueError(
    f"data_dir={root}: {split} has {len(classes)} classes, {title} has "
    f"{len(names)} ({detail or 'the cache does not name them'}). For another "
    "choice of classes use --dataset=image_folder."
  )


def csv_split(name: str) -> str | None:
  """The split that a CSV of this name lists; None for other files.

  Example:
    >>> csv_split("mini/train.csv"), csv_split("train.txt")
    ('train', None)
  """
  path = pathlib.PurePosixPath(name)
  return splits.FOLDERS.get(path.stem) if path.suffix == ".csv" else None


class Key(NamedTuple):
  """Where an image belongs."""

  split: str
  label: str
  name: str


class Reader:
  """Reads images from folders and archives and sorts them into splits and classes.

  Args:
    root: the directory of the data.
    sources: loose images and CSVs, and archives.
    expected: classes, which say the split where no folder does, and the image size.
    title: what the dataset is called.
    only: the split to be read alone.
    lists: whether CSVs called after the splits say what belongs where.
    is_part: whether an image of this path belongs to the dataset.
    change: what is done to an image `[height, width, 3]` of some path before it is
      resized.
    say_resized: whether the number of images that were resized is printed.
  """

  def __init__(
    self,
    root: pathlib.Path,
    sources: Sequence[pathlib.Path],
    expected: splits.Composition,
    *,
    title: str,
    only: str | None = None,
    lists: bool = False,
    is_part: Callable[[str], bool] = lambda path: True,
    change: Callable[[str, np.ndarray], np.ndarray] | None = None,
    say_resized: bool = True,
  ):
    self._root = root
    self._expected = expected
    self._title = title
    self._only = only
    self._is_part = is_part
    self._change = change
    self._say_resized = say_resized
    self._archives = [file for file in sources if _archives.is_archive(file)]
    self._first = self._archives  # Where CSVs and images are looked for first.
    if only is not None:
      self._archives.sort(key=lambda file: not file.name.startswith(only))
      named = [file for file in self._archives if file.name.startswith(only)]
      self._first = named or self._archives
    packed = set(self._archives)
    self._loose = [file for file in sources if file not in packed]
    self._split_of = {
      name: split for split, names in expected.classes.items() for name in names
    }
    self._lists = lists
    self._listed = self._read_csvs() if lists else {}
    self._seen: set[Key] = set()
    self._any_image = False

  def read(self) -> dict[str, dict[str, np.ndarray]]:
    """Images by class by split, in the order of their file names.

    Raises:
      FileNotFoundError: there are archives, but no image in them, or a CSV names an
        image that is not there.
    """
    # Images of a class mostly lie together. Each run becomes one array at once: a
    # million small ones would leave holes in the memory when they are gone.
    parts: dict[tuple[str, str], list[tuple[list[str], np.ndarray]]] = {}
    num_resized = 0
    decoded = _pixels.map_threads(self._decode, self.images())
    for label, run in itertools.groupby(decoded, key=lambda item: item[0][:2]):
      names, images = [], []
      for key, image, resized in run:
        names.append(key.name)
        images.append(image)
        num_resized += resized
      parts.setdefault(label, []).append((names, np.stack(images)))
    if self._archives and not self._any_image:
      read = ", ".join(str(file.relative_to(self._root)) for file in self._archives)
      raise FileNotFoundError(
        f"data_dir={self._root}: there is no image of {self._title} in {read}. Fetch "
        "the version of the data that contains images or Python's pickles."
      )
    for name, (split, label) in self._listed.items():
      if self._is_wanted(split) and (split, label, name) not in self._seen:
        raise FileNotFoundError(
          f"{split}.csv names {name} of class {label}, which is nowhere below "
          f"{self._root}. Complete the images, or, if they lie in split/class/ "
          "folders under other names, remove the CSVs."
        )
    if num_resized and self._say_resized:
      size = self._expected.image_size
      say(f"{num_resized} images were not {size}x{size} and have been resized.")
    found: dict[str, dict[str, np.ndarray]] = {}
    for split, label in list(parts):
      found.setdefault(split, {})[label] = _in_order(parts.pop((split, label)))
    return found

  def _files(
    self, wanted: Callable[[str], bool], within: Iterable[pathlib.Path]
  ) -> Iterator[tuple[str, str, bytes]]:
    """Place for errors, name and content of images: loose first, then `within`."""
    for file in self._loose:
      name = file.relative_to(self._root).as_posix()
      if wanted(name):
        yield str(file), name, read_bytes(file, most=_archives.LARGEST_MEMBER)
    for archive in within:
      for name, data in _archives.members(archive, wanted):
        yield f"{archive}: {name}", name, data

  def _read_csvs(self) -> dict[str, tuple[str, str]]:
    """File name -> (split, class); empty where there are no CSVs."""
    listed: dict[str, tuple[str, str]] = {}
    # Looking through the archives takes seconds; loose CSVs make it needless.
    within = [] if any(csv_split(file.name) for file in self._loose) else self._first
    for place, csv_name, data in self._files(
      lambda name: bool(csv_split(name)), within
    ):
      split = csv_split(csv_name)
      names, rows = parse_csv(data, where=place)
      if not {"filename", "label"} <= set(names):
        raise ValueError(f"{place} has the columns {names}, not filename and label.")
      for row in rows:
        values = dict(zip(names, row, strict=True))
        name = pathlib.PurePosixPath(values["filename"]).name
        entry = (str(split), values["label"])
        if listed.setdefault(name, entry) != entry:
          raise ValueError(f"{place} names {name} for {entry}, before {listed[name]}.")
    return listed

  def images(self) -> Iterator[tuple[str, str, Key, bytes]]:
    """Place for errors, path, key and content of every image."""

    def wanted(name: str) -> bool:
      if name.lower().endswith((".pkl", ".pickle")):
        raise ValueError(
          f"an archive below {self._root} holds the pickle {name}: extract it into "
          f"{self._root}."
        )
      is_image = _formats.is_image(name) and self._is_part(name)
      self._any_image |= is_image
      key = self._key(name) if is_image else None
      return key is not None and self._is_wanted(key.split) and key not in self._seen

    within = itertools.takewhile(
      lambda archive: not self._is_complete(), self._archives
    )
    for place, name, data in self._files(wanted, within):
      key = self._key(name)
      assert key is not None
      self._seen.add(key)
      yield place, name, key, data

  def _is_wanted(self, split: str) -> bool:
    return self._only in (None, split)

  def _is_complete(self) -> bool:
    """Whether further archives can hold no image of the split that alone is wanted."""
    if self._only is None:
      return False
    counts = [self._expected.images_of(n) for n in self._expected.classes[self._only]]
    return None not in counts and len(self._seen) >= sum(count or 0 for count in counts)

  def _key(self, path: str) -> Key | None:
    """Where an image belongs; None for one that no CSV names."""
    *folders, name = path.split("/")
    if self._listed:
      entry = self._listed.get(name)
      return Key(*entry, name) if entry else None
    label = folders[-1] if folders else ""
    split = splits.FOLDERS.get(folders[-2].lower()) if len(folders) > 1 else None
    split = split or self._split_of.get(label)
    if split is None:
      listed = " and there is no CSV that names it" if self._lists else ""
      fix = "Add train.csv, val.csv and test.csv, or use" if self._lists else "Use"
      raise ValueError(
        f"{path} below {self._root} is not in a class folder of {self._title}{listed}. "
        f"{fix} folders split/class/."
      )
    return Key(split, label, name)

  def _decode(self, item: tuple[str, str, Key, bytes]) -> tuple[Key, np.ndarray, bool]:
    place, path, key, data = item
    image = _pixels.decode(data, name=place, mode="RGB")
    if self._change is not None:
      image = self._change(path, image)
    size = self._expected.image_size
    if image.shape[:2] == (size, size):
      return key, image, False
    return key, _pixels.resize(image, size, method="LANCZOS"), True


def _in_order(parts: list[tuple[list[str], np.ndarray]]) -> np.ndarray:
  """The images of a class in the order of their file names."""
  names = [name for some, _ in parts for name in some]
  images = parts[0][1] if len(parts) == 1 else np.concatenate([x for _, x in parts])
  order = sorted(range(len(names)), key=names.__getitem__)
  return images if order == list(range(len(names))) else images[order]
