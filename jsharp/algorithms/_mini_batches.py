"""The inner loop on mini-batches of the support set.

In `jsharp.core.adaptation.inner_loop` every step uses the whole support set; in Reptile
a step uses a mini-batch, chosen by a fixed rule: see `mini_batches`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsharp._checks import check_count
from jsharp.core.adaptation import join, optimised, split
from jsharp.core.execution import Execution
from jsharp.tree import as_arrays
from jsharp.types import Batch, LossFn, Mask, Metrics, Params


def mini_batches(num_examples: int, *, size: int, num_batches: int) -> Any:
  """The rows of the support set that each inner step uses.

  Samplers group the rows by class (`jsharp.data.episodes`), so consecutive rows would
  be one class. Batches therefore visit the rows with a stride of
  `ceil(num_examples / size)`, from row 0, then from row 1 and so on, and start again
  when all rows were visited.
  Where `size` divides `num_examples`, batch `i` is every stride-th row from row `i`,
  and classes of equal size are balanced: each occurs equally often if `size` is a
  multiple of the number of classes, and at most once if `size` divides it. In general
  the rows of a batch are spread evenly. Labels are not used.

  Args:
    num_examples: rows of the support set.
    size: rows per batch.
    num_batches: the number of batches.

  Returns:
    `[num_batches, size]` int32 row numbers; each pass over the set uses every row once.
    A NumPy array, so that rows are constants in a trace, or a JAX array if
    `num_examples` is a symbolic dimension of `jax.export`.

  Raises:
    ValueError: if a number is below 1, or `size` above `num_examples`.

  Example:
    >>> mini_batches(6, size=2, num_batches=4).tolist()
    [[0, 3], [1, 4], [2, 5], [0, 3]]
  """
  check_count("num_batches", num_batches)
  if isinstance(num_examples, int):
    check_count("num_examples", num_examples)
  if check_count("size", size) > num_examples:
    raise ValueError(
      f"size={size} is more than num_examples={num_examples}; pass at most "
      f"{num_examples}"
    )
  numpy: Any = np if isinstance(num_examples, int) else jnp
  stride = -(-num_examples // size)
  rows = numpy.arange(num_examples, dtype=np.int32)
  order = numpy.argsort(rows % stride, stable=True)
  turns = numpy.arange(num_batches * size) % num_examples
  return order[turns].astype(np.int32).reshape(num_batches, size)


def mini_batch_loop(
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  batch_size: int | None,
  adapted_mask: Mask | None = None,
  execution: Execution = Execution(),
  name: str = "batch_size",
) -> Callable[[Params, Any, Batch], tuple[Params, Any]]:
  """The inner loop on mini-batches of the support set, from a given optimizer state.

  The first axis of a leaf of the support set is the example axis, and each step gets
  some of its rows. A scalar leaf, such as a key of `jax.random.key`, belongs to the
  whole task: every step gets it unchanged.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    optimizer: any optax optimizer.
    num_steps: the number of steps.
    batch_size: rows per step, see `mini_batches`; None for the whole support set.
    adapted_mask: which leaves are changed.
    execution: how the steps are repeated.
    name: what the caller calls `batch_size`, for messages.

  Returns:
    `loop(params, opt_state, support) -> (adapted, opt_state)`.

  Raises:
    ValueError: if `batch_size` is below 1, or, when called, above the number of rows;
      when called, if leaves of the support set differ in their number of rows.

  Example:
    >>> loop = mini_batch_loop(
    ...   lambda w, x: (jnp.mean((w - x) ** 2), {}), optax.sgd(0.5),
    ...   num_steps=2, batch_size=1)
    >>> adapted, _ = loop(5.0, optax.sgd(0.5).init(5.0), jnp.array([1.0, 3.0]))
    >>> float(adapted)
    3.0
  """
  if batch_size is not None:
    batch_size = check_count(name, batch_size)

  def loop(params: Params, opt_state: Any, support: Batch) -> tuple[Params, Any]:
    params = as_arrays(params)
    adapted, others = split(params, adapted_mask)
    rows = None
    if batch_size is not None and num_steps:
      num_examples = _num_examples(name, support)
      if batch_size > num_examples:
        raise ValueError(
          f"{name}={batch_size} is more than the support set's {num_examples} "
          f"examples; pass at most {num_examples}"
        )
      rows = mini_batches(num_examples, size=batch_size, num_batches=num_steps)

    def loss_at(i: Any, adapted: Params) -> tuple[jax.Array, Metrics]:
      batch = support
      if rows is not None:
        # The chosen rows are constants if `rows` and `i` are.
        chosen = rows[i] if isinstance(i, int) else jnp.asarray(rows)[i]
        batch = jax.tree.map(lambda x: x[chosen] if jnp.ndim(x) else x, support)
      return loss_fn(join(adapted, others), batch)

    adapted, opt_state, _ = optimised(
      optimizer, loss_at, adapted, opt_state, num_steps=num_steps, execution=execution
    )
    return join(adapted, others), opt_state

  return loop


def _num_examples(name: str, support: Any) -> Any:
  """The number of rows of a support set, the same for all of its arrays."""
  rows = {
    jax.tree_util.keystr(path): jnp.shape(leaf)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(support)
    if jnp.ndim(leaf)
  }
  first = next(iter(rows.values()), 0)
  if not rows or any(number != first for number in rows.values()):
    found = ", ".join(f"support{path} has {number}" for path, number in rows.items())
    raise ValueError(
      f"{name} needs a support set whose arrays all have the same number of rows, one "
      f"per example: {found or 'it has no array'}; repeat what belongs to the whole "
      f"task for every example, or leave {name} None"
    )
  return first
