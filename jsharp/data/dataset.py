"""Images of many classes as a few arrays, from which tasks are drawn.

A `Dataset` is a pytree of three arrays. With the images on the device
(`Dataset.on_device`) an episode is a pure function of a key, so no data loader is
needed. Images that do not fit on the device stay in host memory (`Dataset.on_host`);
the episodes are the same.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np

from jsharp.data.host import HostImages

MAX_ROTATIONS = 4


def _static(**kwargs: Any) -> Any:
  return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
  """Classes of images, of equal or unequal size, as a pytree of arrays.

  Example:
    >>> import numpy as np
    >>> dataset = Dataset.from_class_arrays(
    ...   {
    ...     "circle": np.zeros([3, 8, 8, 1], np.uint8),
    ...     "cross": np.full([2, 8, 8, 1], 255, np.uint8),
    ...   },
    ...   split="train",
    ... )
    >>> dataset
    Dataset(split='train', 2 classes, 5 images of 8x8x1)
    >>> dataset.offsets.tolist(), dataset.counts.tolist()
    ([0, 3], [3, 2])
    >>> dataset.smallest
    ('cross', 2)

  Attributes:
    images: `[num_images, height, width, channels]` uint8, with the images of each class
      contiguous; NumPy, JAX (on the device) or `HostImages` (on the host).
    offsets: `[num_base_classes]` int32, the first image of each class.
    counts: `[num_base_classes]` int32, the number of images of each class.
    class_names: one name per base class (static under `jit`).
    split: name of the split, such as `"train"` (static).
    num_rotations: 1, or up to 4 to turn each class into that many classes, where class
      r has the images rotated by r times 90 degrees counter-clockwise. Class `rotation
      * num_base_classes + base` is `base` rotated by `rotation`. Needs square images
      (static).
    smallest: name and count of the smallest class; computed at construction, so that
      impossible tasks are errors under `jit` too (static).
    origin: changes of the images or choices of classes by jsharp that should be
      reported with a result, in words; empty if there are none (static).
    domains: name and number of base classes of each dataset that was joined into this
      one, in order; empty for a single dataset (static). Varied tasks
      (`jsharp.data.varied_tasks`) take their classes from one domain.

  Raises:
    ValueError: on construction, if the attributes contradict each other.
  """

  images: Any
  offsets: Any
  counts: Any
  class_names: tuple[str, ...] = _static()
  split: str = _static()
  num_rotations: int = _static(default=1)
  smallest: tuple[str, int] = _static(default=("", 0))
  origin: str = _static(default="")
  domains: tuple[tuple[str, int], ...] = _static(default=())

  def __post_init__(self) -> None:
    if not 1 <= self.num_rotations <= MAX_ROTATIONS:
      raise ValueError(
        f"num_rotations is {self.num_rotations}; it must lie in 1..{MAX_ROTATIONS}"
      )
    shape: tuple[int, ...] = getattr(self.images, "shape", ())
    if self.num_rotations > 1 and len(shape) == 4 and shape[1] != shape[2]:
      raise ValueError(
        f"num_rotations is {self.num_rotations}, but the images are {shape[1]}x"
        f"{shape[2]}: crop them to squares or use num_rotations=1"
      )
    # JAX rebuilds the object with tracers and placeholders; `smallest` is then already
    # known, and the arrays are not checked.
    if not self.smallest[1]:
      object.__setattr__(self, "class_names", tuple(self.class_names))
      _check_arrays(self)
      index = int(np.argmin(self.counts))
      smallest = (self.class_names[index], int(self.counts[index]))
      object.__setattr__(self, "smallest", smallest)

  def __repr__(self) -> str:
    rotations = f", {self.num_rotations} rotations" if self.num_rotations > 1 else ""
    shape: tuple[int, ...] = getattr(self.images, "shape", ())
    content = "no images"
    if len(shape) == 4:
      content = f"{shape[0]} images of {'x'.join(map(str, shape[1:]))}"
    return (
      f"Dataset(split={self.split!r}, {len(self.class_names)} classes{rotations}, "
      f"{content})"
    )

  @classmethod
  def from_class_arrays(
    cls,
    arrays: Mapping[str, np.ndarray],
    *,
    split: str,
    num_rotations: int = 1,
    origin: str = "",
  ) -> Self:
    """Builds a dataset from one array per class.

    Example:
      >>> images = np.zeros([2, 8, 8, 3], np.uint8)
      >>> Dataset.from_class_arrays({"a": images, "b": images}, split="val")
      Dataset(split='val', 2 classes, 4 images of 8x8x3)

    Args:
      arrays: class name to `[num_images, height, width, channels]` uint8, in the order
        of the classes.
      split: name of the split.
      num_rotations: see `Dataset`.
      origin: see `Dataset`.

    Returns:
      The dataset, on the host.

    Raises:
      ValueError: if there is no class, or a class is empty, differs in shape from the
        others or is not uint8 of rank 4; the message names the class.
    """
    if not arrays:
      raise ValueError(f"arrays is empty: split {split!r} needs at least one class")
    reference = next(iter(arrays.values()))
    for name, images in arrays.items():
      if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
          f"arrays[{name!r}] is {images.dtype} of shape {images.shape}; expected "
          "uint8 [num_images, height, width, channels]"
        )
      if not len(images):
        raise ValueError(f"arrays[{name!r}] has no images: leave the class out")
      if images.shape[1:] != reference.shape[1:]:
        raise ValueError(
          f"arrays[{name!r}] has images of shape {images.shape[1:]}, but the classes "
          f"before it {reference.shape[1:]}: resize them to the same shape"
        )
    counts = np.array([len(images) for images in arrays.values()], np.int32)
    return cls(
      images=np.concatenate(list(arrays.values())),
      offsets=(np.cumsum(counts) - counts).astype(np.int32),
      counts=counts,
      class_names=tuple(arrays),
      split=split,
      num_rotations=num_rotations,
      origin=origin,
    )

  @classmethod
  def joined(cls, datasets: Mapping[str, "Dataset"], *, split: str) -> Self:
    """Joins datasets of several domains into one.

    Example:
      >>> images = np.zeros([2, 8, 8, 3], np.uint8)
      >>> birds = Dataset.from_class_arrays({"owl": images}, split="val")
      >>> joined = Dataset.joined({"birds": birds, "more": birds}, split="val")
      >>> joined.class_names, joined.domains
      (('birds/owl', 'more/owl'), (('birds', 1), ('more', 1)))

    Args:
      datasets: the datasets by domain name, on the host; rotated classes are left out.
      split: name of the split.

    Returns:
      The dataset, whose classes are called `domain/class`.

    Raises:
      ValueError: if there is no dataset, or their images differ in shape.
    """
    shapes = {name: dataset.image_shape for name, dataset in datasets.items()}
    if len(set(shapes.values())) != 1:
      raise ValueError(
        f"datasets must not be empty and their images must have the same shape, got "
        f"{shapes}; resize them"
      )
    parts = list(datasets.values())
    counts = np.concatenate([np.asarray(part.counts) for part in parts])
    return cls(
      images=np.concatenate([np.asarray(part.images) for part in parts]),
      offsets=(np.cumsum(counts) - counts).astype(np.int32),
      counts=counts.astype(np.int32),
      class_names=tuple(
        f"{name}/{label}"
        for name, part in datasets.items()
        for label in part.class_names
      ),
      split=split,
      origin="; ".join(
        f"{name}: {part.origin}" for name, part in datasets.items() if part.origin
      ),
      domains=tuple((name, part.num_base_classes) for name, part in datasets.items()),
    )

  @property
  def num_base_classes(self) -> int:
    """Number of classes without rotations."""
    return len(self.class_names)

  @property
  def num_classes(self) -> int:
    """Number of classes that tasks are drawn from, including rotations."""
    return self.num_base_classes * self.num_rotations

  @property
  def image_shape(self) -> tuple[int, ...]:
    """`(height, width, channels)`."""
    return tuple(self.images.shape[1:])

  def on_device(self, device: Any = None) -> Self:
    """Copies the arrays to a device once, so that `jit` does not copy on each call.

    Example:
      >>> images = np.zeros([2, 8, 8, 1], np.uint8)
      >>> host = Dataset.from_class_arrays({"a": images}, split="train")
      >>> isinstance(host.on_device().images, jax.Array)
      True

    Args:
      device: a `jax.Device` or a `jax.sharding.Sharding`; by default JAX's
        default device.

    Returns:
      The same dataset with JAX arrays.
    """
    images = self.images
    if isinstance(images, HostImages):
      images = np.asarray(images)
    return jax.device_put(dataclasses.replace(self, images=images), device)

  def on_host(self, device: Any = None) -> Self:
    """Keeps the images in host memory, from which compiled programs fetch them.

    Example:
      >>> images = np.zeros([2, 8, 8, 1], np.uint8)
      >>> dataset = Dataset.from_class_arrays({"a": images}, split="train").on_host()
      >>> type(dataset.images).__name__, isinstance(dataset.counts, jax.Array)
      ('HostImages', True)

    Args:
      device: the device of offsets and counts, as for `on_device`.

    Returns:
      The same dataset with `jsharp.data.HostImages`; a memory map stays a memory map.
    """
    images = self.images
    if not isinstance(images, HostImages):
      images = HostImages(np.asarray(images))
    return jax.device_put(dataclasses.replace(self, images=images), device)

  def fingerprint(self) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of the data that tasks depend on.

    The split's name is left out: equal data have equal fingerprints.

    Example:
      >>> images = np.zeros([2, 8, 8, 1], np.uint8)
      >>> Dataset.from_class_arrays({"a": images}, split="train").fingerprint()
      'b4e3e88102578b83'
    """
    digest = hashlib.sha256()
    header: tuple[Any, ...] = (
      self.class_names,
      tuple(self.images.shape),
      self.num_rotations,
    )
    if self.domains:
      header = (*header, self.domains)
    digest.update(repr(header).encode())
    for array, dtype in (
      (self.offsets, "<i4"),
      (self.counts, "<i4"),
      (self.images, "u1"),
    ):
      digest.update(np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()[:16]


def _check_arrays(dataset: Dataset) -> None:
  """Raises ValueError where the arrays do not describe contiguous classes."""
  images, names = dataset.images, dataset.class_names
  if images.dtype != np.uint8 or images.ndim != 4:
    raise ValueError(
      f"images is {images.dtype} of shape {images.shape}; expected uint8 "
      "[num_images, height, width, channels]"
    )
  for argument in ("offsets", "counts"):
    array = getattr(dataset, argument)
    if array.dtype != np.int32 or array.shape != (len(names),):
      raise ValueError(
        f"{argument} is {array.dtype} of shape {array.shape}; expected int32 "
        f"[{len(names)}], one number per class name"
      )
  if not names:
    raise ValueError("class_names is empty: a dataset needs at least one class")
  if dataset.domains and sum(n for _, n in dataset.domains) != len(names):
    raise ValueError(
      f"domains is {dataset.domains}; its numbers must add up to {len(names)} classes"
    )
  if len(set(names)) != len(names):
    twice = next(name for i, name in enumerate(names) if name in names[:i])
    raise ValueError(f"class_names has {twice!r} twice: merge the two classes")
  offsets, counts = np.asarray(dataset.offsets), np.asarray(dataset.counts)
  if counts.min() < 1:
    index = int(np.argmin(counts))
    raise ValueError(
      f"class {names[index]!r} has counts={counts[index]}: leave empty classes out"
    )
  ends = np.cumsum(counts, dtype=np.int64)
  if not np.array_equal(offsets, ends - counts) or ends[-1] != len(images):
    raise ValueError(
      f"offsets and counts must tile the {len(images)} images class after class "
      f"(counts sum to {ends[-1]}): offsets must be cumsum(counts) - counts"
    )
