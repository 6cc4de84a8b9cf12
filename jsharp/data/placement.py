"""Where the images of a dataset are kept: on the device or in host memory."""

import functools
from typing import Any

import jax

from jsharp.data.dataset import Dataset


def placed(splits: dict[str, Dataset], images: str) -> dict[str, Dataset]:
  """The splits of a run with their images on the device or in host memory.

  Args:
    splits: as loaded, on the host.
    images: "device", "host", or "auto": the device unless they take more than half of
      its memory.

  Returns:
    The same splits.

  Raises:
    ValueError: if the images are to stay on the host and JAX has no CPU platform,
      which fetches them.

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
      "images in host memory are fetched by JAX's CPU platform, and JAX_PLATFORMS="
      f"{config.jax_platforms} leaves it out; add cpu at its end, or pass "
      "--images=device"
    ) from error
  return {name: split.on_host() for name, split in splits.items()}


@functools.cache
def _say(line: str) -> None:
  """Prints a line once, however often a run is built for its memory budget."""
  if jax.process_index() == 0:
    print(line, flush=True)
