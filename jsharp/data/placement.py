"""Loading the splits of a run, and placing their images in memory."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

from jsharp._terminal import tell
from jsharp.data._options import ImageSource
from jsharp.data.dataset import Dataset
from jsharp.data.fitting import fit_to
from jsharp.data.pictures import Looks


def load_with_test(
  source: ImageSource,
  data_dir: str | None,
  *,
  test_source: ImageSource | None = None,
  test_data_dir: str | None = None,
) -> dict[str, Dataset]:
  """The splits of a dataset, optionally with `test` from another dataset.

  Images of the other dataset are converted to fit the learner, see `fit_to`, and its
  `origin` says so.

  Args:
    source: the source of "train", "val" and, without `test_source`, "test".
    data_dir: its directory; None for a source without files.
    test_source: the source of "test".
    test_data_dir: its directory; `data_dir` if None.

  Returns:
    The three splits.

  Raises:
    ValueError: if the two are the same dataset with classes divided differently, or
      files are needed and no directory was given.
    OSError: if the data cannot be read.

  Example:
    >>> from jsharp.data.characters import Characters
    >>> sorted(load_with_test(Characters(image_size=8), None))
    ['test', 'train', 'val']
  """
  splits = source.load(data_dir)
  if test_source is None:
    return splits
  where = test_data_dir or data_dir
  test = test_source.load(where, only="test")["test"]
  places = [test_source.directory(where), source.directory(data_dir)]
  seen = {*splits["train"].class_names, *splits["val"].class_names}
  if (
    test_source.name == source.name
    and len(set(map(os.path.realpath, places))) == 1
    and not seen.isdisjoint(test.class_names)
  ):
    raise ValueError(
      f"--test_dataset={test_source.name} would test on training classes of {where}; "
      "leave it out to test on the other classes"
    )
  height, width, channels = splits["train"].image_shape
  looks = Looks((height, width, channels), source.filter, source.light_ink)
  fitted, said = fit_to(test, looks, light_ink=test_source.light_ink)
  origin = "; ".join(filter(None, (test.origin, said)))
  return {**splits, "test": dataclasses.replace(fitted, origin=origin)}


def origins(splits: Mapping[str, Dataset]) -> str | None:
  """A description of changes to the images and classes of splits; None if none.

  Example:
    >>> from jsharp.data.characters import Characters
    >>> own, other = Characters(image_size=8), Characters(image_size=16)
    >>> origins(load_with_test(own, None, test_source=other))
    'test: 16x16 gray to 8x8 gray, box filter'
  """
  alike: dict[str, list[str]] = {}
  for split, dataset in splits.items():
    if dataset.origin:
      alike.setdefault(dataset.origin, []).append(split)
  said = [f"{', '.join(names)}: {origin}" for origin, names in alike.items()]
  return "; ".join(said) or None


def placed(splits: dict[str, Dataset], images: str) -> dict[str, Dataset]:
  """Places the images of the splits on the device or in host memory.

  Args:
    splits: as loaded, on the host.
    images: "device", "host", or "auto": the device unless they take more than half of
      its memory.

  Returns:
    The same splits.

  Raises:
    ValueError: if the images are to stay on the host but JAX has no CPU platform, which
      fetches them.

  Example:
    >>> from jsharp.data import characters
    >>> splits = {"val": characters.load(size=8)["val"]}
    >>> placed(splits, "device")["val"].image_shape
    (8, 8, 1)
  """
  if images == "auto":
    device = jax.local_devices()[0]
    total = sum(split.images.nbytes for split in splits.values())
    limit = (device.memory_stats() or {}).get("bytes_limit")
    fits = device.platform == "cpu" or limit is None or total <= limit / 2
    images = "device" if fits else "host"
    if not fits:
      _say(
        f"images: {total:,} bytes stay in host memory, more than half of the device's "
        f"{limit:,} (--images=device puts them there)"
      )
  if images == "device":
    return {name: split.on_device() for name, split in splits.items()}
  try:
    jax.local_devices(backend="cpu")
  except RuntimeError as error:
    config: Any = jax.config  # jax 0.10 does not declare its attributes.
    raise ValueError(
      "images in host memory are fetched by JAX's CPU platform, but JAX_PLATFORMS="
      f"{config.jax_platforms} excludes it; append cpu to it, or pass --images=device"
    ) from error
  return {name: split.on_host() for name, split in splits.items()}


@functools.cache
def _say(line: str) -> None:
  """Prints a line only once, even if a run is built repeatedly for a memory budget."""
  if jax.process_index() == 0:
    tell(line)
