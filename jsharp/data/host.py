"""Images that stay in host memory, for datasets larger than the device.

`HostImages` replaces the array `Dataset.images`. A compiled program that indexes it
calls back to the host, which gathers the requested images, so the tasks are bitwise
equal to those of a dataset on the device. `prefetch.py` gathers images in advance.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jsharp.data._shelf import Shelf


@jax.tree_util.register_static
class HostImages:
  """Images in host memory that compiled programs can index.

  It is static under `jit`, compared by identity: a program is compiled once per object.
  JAX's caches keep the object, and therefore the array, alive after the program is
  gone; create only one per dataset. JAX's persistent compilation cache does not store
  programs that index it. They need JAX's CPU platform in addition to an accelerator's
  (`JAX_PLATFORMS=cuda,cpu`; by default it is available).

  Args:
    images: `[num_images, height, width, channels]` uint8 in host memory; a memory map
      is read on demand.

  Attributes:
    shape: the shape of the array.
    dtype: uint8.
    shelf: where a prefetch puts images in advance; None without a prefetch.

  Raises:
    ValueError: if `images` is anything else.

  Example:
    >>> images = HostImages(np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1))
    >>> take = jax.jit(lambda images, rows: images[rows])
    >>> take(images, jnp.array([[3, 1]])).ravel().tolist()
    [3, 1]
  """

  def __init__(self, images: np.ndarray):
    if (
      not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4
    ):
      raise ValueError(
        f"images is {type(images).__name__} {getattr(images, 'dtype', '')} of shape "
        f"{np.shape(images)}; "
        "pass a NumPy array, uint8 [num_images, height, width, channels]"
      )
    self._images = np.asarray(images)
    self.shelf: Shelf | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """`(num_images, height, width, channels)`."""
    return self._images.shape

  @property
  def dtype(self) -> np.dtype:
    """Always uint8."""
    return self._images.dtype

  @property
  def ndim(self) -> int:
    """Always 4."""
    return self._images.ndim

  def __len__(self) -> int:
    return len(self._images)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy:
      return np.array(self._images, dtype)
    return np.asarray(self._images, dtype)

  def __getitem__(self, rows: Any) -> Any:
    """The images of some rows.

    Args:
      rows: `[...]` integers, each a row. For a JAX array, traced or not, the result is
        a JAX array, gathered by a callback; otherwise any NumPy index.

    Returns:
      `[..., height, width, channels]` uint8.

    Raises:
      TypeError: if `rows` is a JAX array that is not of integers.
    """
    if not isinstance(rows, jax.Array):
      return self._images[rows]
    if not jnp.issubdtype(rows.dtype, jnp.integer):
      raise TypeError(f"rows is {rows.dtype}; images in host memory need integers")
    return self._call(rows)

  def _call(self, rows: jax.Array) -> jax.Array:
    found = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), np.uint8)
    return jax.pure_callback(self._find, found, rows, vmap_method="broadcast_all")

  def gather(self, rows: np.ndarray) -> np.ndarray:
    """Copies rows into one array, in the calling thread.

    Example:
      >>> images = HostImages(np.zeros((4, 2, 2, 1), np.uint8))
      >>> images.gather(np.array([[0, 3]])).shape
      (1, 2, 2, 2, 1)
    """
    return np.take(self._images, rows, axis=0)

  def key(self, rows: np.ndarray) -> Hashable:
    """The key of these rows of these images on a shelf."""
    return id(self), rows.shape, rows.tobytes()

  def _find(self, rows: Any) -> np.ndarray:
    # JAX runs this on a thread that the device waits for, so it must not use JAX except
    # to read the rows.
    rows = np.asarray(rows)
    shelf = self.shelf
    images = None if shelf is None else shelf.take(self.key(rows))
    return self.gather(rows) if images is None else images


@jax.tree_util.register_static
class RowRecorder(HostImages):
  """Black images that record which rows a program requests.

  Args:
    images: the images that the rows belong to.
    recorded: gets `(images, rows)` at each request.

  Example:
    >>> images, recorded = HostImages(np.zeros((4, 2, 2, 1), np.uint8)), []
    >>> ask = jax.jit(lambda images, rows: images[rows].shape[0] + rows)
    >>> asked = ask(RowRecorder(images, recorded), jnp.array([3, 1]))
    >>> jax.effects_barrier()
    >>> [(of is images, rows.tolist()) for of, rows in recorded]
    [(True, [3, 1])]
  """

  def __init__(self, images: HostImages, recorded: list[tuple[HostImages, np.ndarray]]):
    super().__init__(np.asarray(images))

    def record(rows: Any) -> None:
      recorded.append((images, np.array(rows)))

    # A callback with effects is kept although nothing depends on it, but under `vmap`
    # JAX would call it row by row.
    @jax.custom_batching.custom_vmap
    def recorder(rows: jax.Array) -> tuple[()]:
      io_callback(record, None, rows)
      return ()

    @recorder.def_vmap
    def _(
      axis_size: int, in_batched: Any, rows: jax.Array
    ) -> tuple[tuple[()], tuple[()]]:
      del axis_size, in_batched  # The only argument is batched.
      recorder(rows)
      return (), ()

    self._recorder = recorder

  def _call(self, rows: jax.Array) -> jax.Array:
    self._recorder(rows)
    return jnp.zeros((*rows.shape, *self.shape[1:]), np.uint8)
