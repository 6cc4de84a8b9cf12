"""The Hessian of a loss: products with vectors, largest eigenvalues, trace.

The Hessian is only multiplied by vectors (forward over reverse if possible, at about
the cost of two gradients). The loss is a function of the parameters only: other state
of a model, such as running averages of batch normalisation, is held fixed, so this is
the Hessian of the network as it is evaluated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.analysis._estimates import (
  Estimate,
  Loss,
  as_partial,
  mean_estimate,
  of_variables,
  random_like,
  refuse_complex,
)
from jsharp.core.second_order import symmetric_product
from jsharp.options import Options, Role, at_least, option
from jsharp.types import Params


class Eigenvalues(NamedTuple):
  """Estimates of eigenvalues, the largest first.

  Attributes:
    values: `[num_values]` float64.
    residuals: `[num_values]` float64: an eigenvalue lies within this distance of each
      value (up to rounding), though not necessarily the one of the same rank.
  """

  values: np.ndarray
  residuals: np.ndarray


def hessian_vector_product(
  loss: Callable[[Params], jax.Array], params: Params
) -> Callable[[Params], Params]:
  """Multiplies the Hessian of `loss` at `params` by vectors.

  Args:
    loss: `loss(params) -> scalar`.
    params: where the Hessian is taken.

  Returns:
    `matvec(vector) -> vector`, on pytrees like `params` (None for leaves without a
    derivative); not compiled, so wrap it in `jax.jit`.

  Example:
    >>> matvec = hessian_vector_product(lambda w: w[0] ** 2 * w[1], jnp.array([1., 3.]))
    >>> matvec(jnp.array([1.0, 0.0])).tolist()
    [6.0, 2.0]
  """
  variables, constants = trees.inexact(params)

  def gradient(variables: Params) -> Params:
    return trees.value_and_grad(loss)(trees.join(variables, constants))[1]

  return lambda vector: symmetric_product(gradient, variables, trees.inexact(vector)[0])


def lanczos(
  matvec: Callable[[Params], Params],
  params: Params,
  num_steps: int,
  key: jax.Array,
  *,
  between: Callable[[], None] = lambda: None,
) -> Eigenvalues:
  """Lanczos' method: Ritz values of a symmetric map, with full reorthogonalisation.

  The extreme values converge first; with as many steps as dimensions all values are
  eigenvalues. If the Krylov space is exhausted early (a map of low rank), the method
  continues from a new random vector. It keeps `num_steps + 1` vectors as large as
  `params`.

  Args:
    matvec: symmetric, `matvec(vector) -> vector` on pytrees like `params`; compiled by
      the caller.
    params: the shapes and the dtype, which must be the same for all leaves.
    num_steps: products with the map; at most the number of dimensions is used.
    key: the random key of the starting vector.
    between: called before every product; raise an exception in it to stop.

  Returns:
    All Ritz values and their residuals.

  Raises:
    ValueError: if `num_steps` is not positive, or leaves differ in dtype or are
      complex.

  Example:
    >>> diagonal = jnp.array([5.0, 1.0, -2.0])
    >>> found = lanczos(lambda v: diagonal * v, diagonal, 3, jax.random.key(0))
    >>> [round(float(value), 3) for value in found.values]
    [5.0, 1.0, -2.0]
  """
  check_count("num_steps", num_steps)
  params, _ = trees.inexact(params)
  refuse_complex(params)
  dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
  if len(dtypes) != 1:
    raise ValueError(
      f"params has the dtypes {sorted(map(str, dtypes))}; cast all leaves to one dtype"
    )
  flat, unravel = ravel_pytree(params)
  size, dtype = flat.size, flat.dtype
  num_steps = min(num_steps, size)
  basis = jnp.zeros((num_steps + 1, size), dtype)
  start, _ = _orthogonal(basis, jax.random.normal(key, (size,), dtype))
  basis = basis.at[0].set(start)
  diagonal, coupling, largest = np.zeros(num_steps), np.zeros(num_steps), 0.0
  for step in range(num_steps):
    between()
    product, _ = ravel_pytree(matvec(unravel(basis[step])))
    diagonal[step] = float(_dot(basis[step], product))
    rest, norm = _orthogonal(basis, product)
    # The remainder of a product inside the space is rounding error, not a direction.
    largest = max(largest, float(_dot(product, product)) ** 0.5)
    if float(norm) > 100 * float(jnp.finfo(dtype).eps) * largest:
      coupling[step] = float(norm)
    else:
      fresh = jax.random.normal(jax.random.fold_in(key, step), (size,), dtype)
      rest, _ = _orthogonal(basis, fresh)
    basis = basis.at[step + 1].set(rest)
  beside = coupling[:-1]
  tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
  values, vectors = np.linalg.eigh(tridiagonal)
  residuals = np.abs(coupling[-1] * vectors[-1])
  return Eigenvalues(values[::-1].copy(), residuals[::-1].copy())


@jax.jit
def _dot(a, b):
  return jnp.vdot(a, b, precision="highest")


@jax.jit
def _orthogonal(basis, vector):
  """The unit vector orthogonal to the rows of `basis`, and its norm before scaling."""
  for _ in range(2):  # Twice is enough.
    along = jnp.matmul(basis, vector, precision="highest")
    vector = vector - jnp.matmul(along, basis, precision="highest")
  norm = jnp.sqrt(_dot(vector, vector))
  return vector / jnp.where(norm == 0, jnp.ones_like(norm), norm), norm


def largest_eigenvalues(
  loss: Callable[..., jax.Array],
  params: Params,
  batches: Any = None,
  *,
  num_eigenvalues: int = 1,
  num_steps: int = 20,
  key: jax.Array,
  context: Any = (),
  between: Callable[[], None] = lambda: None,
) -> Eigenvalues:
  """The algebraically largest eigenvalues of the Hessian, by Lanczos' method.

  Args:
    loss: `loss(params) -> scalar`; with `batches`, `loss(params, batch, context) ->
      scalar`, the mean over one batch. The product with the Hessian is compiled once
      per function object.
    params: where the Hessian is taken; one dtype.
    batches: a pytree with leading axes `[num_batches, batch, ...]`. The Hessian is
      taken of the mean over batches, with the memory of one batch.
    num_eigenvalues: the number of eigenvalues.
    num_steps: Hessian-vector products, each one pass over `batches`. The largest
      eigenvalue of a network needs 10 to 20, further eigenvalues need more; check the
      residuals.
    key: the random key of the starting vector.
    context: further arguments of `loss` when `batches` is given, held fixed, such as a
      model's running statistics.
    between: called before every product; raise an exception in it to stop.

  Returns:
    The `num_eigenvalues` largest eigenvalues, at most as many as there are dimensions,
    with residuals.

  Raises:
    ValueError: if `num_steps` is below `num_eigenvalues`, or one of them is not
      positive.

  Example:
    >>> found = largest_eigenvalues(lambda w: 3 * w[0] ** 2 - w[1] ** 2, jnp.ones(2),
    ...   num_eigenvalues=2, key=jax.random.key(0))
    >>> [round(float(value), 3) for value in found.values]
    [6.0, -2.0]
    >>> def batch_loss(w, batch, context):
    ...   return jnp.mean((batch @ w) ** 2) / 2
    >>> batches = jnp.array([[[2.0, 0.0]], [[0.0, 1.0]]])  # Hessian diag(2, 1/2)
    >>> found = largest_eigenvalues(batch_loss, jnp.zeros(2), batches,
    ...   num_eigenvalues=2, key=jax.random.key(0))
    >>> [round(float(value), 3) for value in found.values]
    [2.0, 0.5]
  """
  check_count("num_eigenvalues", num_eigenvalues)
  check_count("num_steps", num_steps, minimum=num_eigenvalues)
  loss, params = of_variables(loss, params)
  if batches is None:
    product: Any = Partial(_product, as_partial(loss), params)
  else:
    product = functools.partial(_mean_product, params, batches, context, loss_fn=loss)
  found = lanczos(product, params, num_steps, key, between=between)
  return Eigenvalues(*(part[:num_eigenvalues] for part in found))


def trace(
  loss: Loss,
  params: Params,
  *,
  num_samples: int,
  key: jax.Array,
  between: Callable[[], None] = lambda: None,
) -> Estimate:
  """The trace of the Hessian, by Hutchinson's estimate with random signs.

  It is exact if the Hessian is diagonal. Each sample is one Hessian-vector product.

  Args:
    loss: `loss(params) -> scalar`.
    params: where the Hessian is taken.
    num_samples: at least 2.
    key: the random key of the signs.
    between: called before every sample; raise an exception in it to stop.

  Returns:
    The estimate; its error falls with the square root of `num_samples`.

  Raises:
    ValueError: if `num_samples` is below 2.

  Example:
    >>> found = trace(lambda w: 3 * w[0] ** 2 - w[1] ** 2, jnp.ones(2),
    ...   num_samples=2, key=jax.random.key(0))
    >>> found.value, found.standard_error
    (4.0, 0.0)
  """
  check_count("num_samples", num_samples, minimum=2)
  loss, params = of_variables(loss, params)
  samples = []
  for number in range(num_samples):
    between()
    sample_key = jax.random.fold_in(key, number)
    signs = _signs(sample_key, params)
    product = _product(as_partial(loss), params, signs)
    samples.append(float(_inner_product(signs, product)))
  return mean_estimate(samples)


_product = jax.jit(
  lambda loss, params, vector: hessian_vector_product(loss, params)(vector)
)
_signs = jax.jit(lambda key, params: random_like(jax.random.rademacher, key, params))
_inner_product = jax.jit(trees.inner_product)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _mean_product(params, batches, context, vector, *, loss_fn):
  def add(total, batch):
    matvec = hessian_vector_product(lambda p: loss_fn(p, batch, context), params)
    product = matvec(vector)
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, product), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, trees.at_least_float32(x.dtype)), params
  )
  total, _ = jax.lax.scan(add, zeros, batches)
  num_batches = jax.tree.leaves(batches)[0].shape[0]
  return jax.tree.map(lambda x, w: (x / num_batches).astype(w.dtype), total, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HessianOptions(Options):
  """Options for measuring the Hessian's eigenvalues in a run.

  Example:
    >>> HessianOptions(hessian_eigenvalues=3, hessian_steps=2)
    Traceback (most recent call last):
    ValueError: --hessian_steps=2 finds at most as many eigenvalues, not 3; ...
  """

  role: ClassVar[Role] = Role.TESTING

  hessian_eigenvalues: int = option(
    1,
    "Largest eigenvalues of the training loss's Hessian, measured at the start and at "
    "the end. 0: none.",
    check=at_least(0, "0 measures nothing."),
  )
  hessian_examples: int = option(
    1000,
    "Number of training images, always the same ones, that this loss averages over.",
    check=at_least(1, "for none use --hessian_eigenvalues=0."),
  )
  hessian_steps: int = option(
    20,
    "Steps of Lanczos' method. Each costs about two gradients on these images and one "
    "more copy of the parameters in memory.",
    check=at_least(1, "for none use --hessian_eigenvalues=0."),
  )

  def complete(self) -> None:
    """Checks that there are at least as many steps as eigenvalues."""
    if self.hessian_steps < self.hessian_eigenvalues:
      raise ValueError(
        f"--hessian_steps={self.hessian_steps} finds at most as many eigenvalues, not "
        f"{self.hessian_eigenvalues}; use more steps"
      )

  def figures(
    self,
    when: str,
    loss_fn: Callable[[Params, Any, Any], jax.Array],
    params: Params,
    batches: Any,
    *,
    context: Any = (),
    between: Callable[[], None] = lambda: None,
  ) -> dict[str, list[float]]:
    """Measures the eigenvalues for a result; empty if the option is 0.

    Args:
      when: the suffix of the figures' names: `hessian_eigenvalues_WHEN` and
        `hessian_residuals_WHEN`.
      loss_fn: as for `largest_eigenvalues`, like the following arguments.
      params: where the Hessian is taken.
      batches: the batches that the loss averages over.
      context: arguments of the loss that are held fixed.
      between: called before every product.
    """
    if not self.hessian_eigenvalues:
      return {}
    found = largest_eigenvalues(
      loss_fn,
      params,
      batches,
      num_eigenvalues=self.hessian_eigenvalues,
      num_steps=self.hessian_steps,
      key=jax.random.key(0),
      context=context,
      between=between,
    )
    return {
      f"hessian_eigenvalues_{when}": found.values.tolist(),
      f"hessian_residuals_{when}": found.residuals.tolist(),
    }
