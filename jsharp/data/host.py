"""Images that stay in host memory, for datasets larger than the device.

`HostImages` stands in the place of `Dataset.images`. A compiled program that indexes it
calls back to the host, which gathers the images asked for, so that the tasks are those
of a dataset on the device, bit by bit. `prefetch.py` gathers them before they are asked
for.
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
  JAX's caches keep the object, and so the array, after the program is gone; make one
  per dataset. Programs that index it are not kept by JAX's persistent compilation
  cache. They need JAX's CPU platform beside an accelerator's
  (`JAX_PLATFORMS=cuda,cpu`; it is there by default).

  Args:
    images: `[num_images, height, width, channels]` uint8 in host memory; a memory map
      is read where it is asked for.

  Attributes:
    shape: of the array.
    dtype: uint8.
    shelf: where a prefetch puts images before they are asked for; None where there is
      none.

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
      rows: `[...]` integers, each a row; for a JAX array, traced or not, the images
        are one too, gathered by a callback. What NumPy takes for an index otherwise.

    Returns:
      `[..., height, width, channels]` uint8.

    Raises:
      TypeError: if `rows` is a JAX array that is not of integers.
    """
    if not isinstance(rows, jax.Array):
      return self._images[rows]
    if not jnp.issubdtype(rows.dtype, jnp.integer):
      raise TypeError(f"rows is {rows.dtype}; images in host memory take integers")
    return self._call(rows)

  def _call(self, rows: jax.Array) -> jax.Array:
    found = jax.ShapeDtypeStruct((*rows.shape, *self.shape[1:]), np.uint8)
    return jax.pure_callback(self._find, found, rows, vmap_method="broadcast_all")

  def gather(self, rows: np.ndarray) -> np.ndarray:
    """Copies rows together, in the calling thread.

    Example:
      >>> images = HostImages(np.zeros((4, 2, 2, 1), np.uint8))
      >>> images.gather(np.array([[0, 3]])).shape
      (1, 2, 2, 2, 1)
    """
    return np.take(self._images, rows, axis=0)

  def key(self, rows: np.ndarray) -> Hashable:
    """What these rows of these images are known by on a shelf."""
    return id(self), rows.shape, rows.tobytes()

  def _find(self, rows: Any) -> np.ndarray:
    # JAX runs this on a thread that the device waits for: no JAX in here, save for
    # reading the rows.
    rows = np.asarray(rows)
    shelf = self.shelf
    images = None if shelf is None else shelf.take(self.key(rows))
    return self.gather(rows) if images is None else images


@jax.tree_util.register_static
class RowRecorder(HostImages):
  """Images that write down which rows a program asks for, and are all black.

  Args:
    images: what the rows are of.
    recorded: gets `(images, rows)` each time that the program asks.

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

    # A callback with effects stays although nothing depends on it, but JAX would call
    # it row by row under `vmap`.
    @jax.custom_batching.custom_vmap
    def recorder(rows: jax.Array) -> tuple[()]:
      io_callback(record, None, rows)
      return ()

    @recorder.def_vmap
    def _(
      axis_size: int, in_batched: Any, rows: jax.Array
    ) -> tuple[tuple[()], tuple[()]]:
      del axis_size, in_batched  # There is one argument, so it is batched.
      recorder(rows)
      return (), ()

    self._recorder = recorder

  def _call(self, rows: jax.Array) -> jax.Array:
    self._recorder(rows)
    return jnp.zeros((*rows.shape, *self.shape[1:]), np.uint8)
