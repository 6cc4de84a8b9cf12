"""How sharp a loss is at a point: trace, largest eigenvalues, worst and average rise.

With `L` the loss, `w` the parameters, `H` the Hessian of `L` at `w` and `dim` the
number of parameters:

    trace         E v' H v, v of random signs (Hutchinson 1989)
    worst case    max of L(w + e) - L(w) over |e|_p <= rho       (what SAM minimises)
    average case  E L(w + e) - L(w), e Gaussian with E |e|^2 = rho^2

To second order the average case is `rho^2 / (2 dim) * trace` and, at a stationary
point, the worst case with `p = 2` is `rho^2 / 2` times the largest eigenvalue. All of
them change when layers are rescaled in a way that leaves the network's function as it
is; the adaptive forms, with `e` relative to `|w|` entry by entry, do not (Kwon et al.
2021, arXiv 2102.11600). None of them is known to predict generalisation in general
(Andriushchenko et al. 2023, arXiv 2302.07011).

A loss is any deterministic `loss(params) -> scalar`. Every function is compiled once
per function object; arrays that the loss needs beside `params` are compiled in as
constants unless it is a `jax.tree_util.Partial`, as from
`jsharp.analysis.meta_objective`.
"""

from collections.abc import Callable

import jax
from jax.tree_util import Partial

from jsharp import tree as trees
from jsharp._checks import check_count
from jsharp.analysis._estimates import (
  Estimate,
  Loss,
  as_partial,
  mean_estimate,
  random_like,
)
from jsharp.analysis.hessian import Eigenvalues, hessian_vector_product, lanczos
from jsharp.types import Params


def trace(
  loss: Loss,
  params: Params,
  *,
  num_samples: int,
  key: jax.Array,
  between: Callable[[], None] = lambda: None,
) -> Estimate:
  """The trace of the Hessian, by Hutchinson's estimate with random signs.

  Exact where the Hessian is diagonal. Each sample is one Hessian-vector product.

  Args:
    loss: `loss(params) -> scalar`.
    params: where the Hessian is taken.
    num_samples: at least 2.
    key: of the signs.
    between: called before every sample; it may raise to stop.

  Returns:
    The estimate; its error falls with the square root of `num_samples`.

  Raises:
    ValueError: if `num_samples` is below 2.

  Example:
    >>> import jax.numpy as jnp
    >>> found = trace(lambda w: 3 * w[0] ** 2 - w[1] ** 2, jnp.ones(2),
    ...   num_samples=2, key=jax.random.key(0))
    >>> found.value, found.standard_error
    (4.0, 0.0)
  """
  check_count("num_samples", num_samples, minimum=2)
  samples = []
  for number in range(num_samples):
    between()
    sample_key = jax.random.fold_in(key, number)
    signs = _signs(sample_key, params)
    product = _product(as_partial(loss), params, signs)
    samples.append(float(_inner_product(signs, product)))
  return mean_estimate(samples)


def eigenvalues(
  loss: Loss,
  params: Params,
  *,
  num_eigenvalues: int = 1,
  num_steps: int = 20,
  key: jax.Array,
  between: Callable[[], None] = lambda: None,
) -> Eigenvalues:
  """The algebraically largest eigenvalues of the Hessian, by Lanczos' method.

  Args:
    loss: `loss(params) -> scalar`.
    params: where the Hessian is taken; one dtype.
    num_eigenvalues: how many.
    num_steps: Hessian-vector products; see `jsharp.analysis.largest_eigenvalues`.
    key: of the starting vector.
    between: called before every product; it may raise to stop.

  Returns:
    The largest ones (fewer where there are not so many dimensions) with residuals.

  Raises:
    ValueError: if `num_steps` is below `num_eigenvalues` or one of them not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> found = eigenvalues(lambda w: 3 * w[0] ** 2 - w[1] ** 2, jnp.ones(2),
    ...   num_eigenvalues=2, key=jax.random.key(0))
    >>> [round(float(value), 3) for value in found.values]
    [6.0, -2.0]
  """
  check_count("num_eigenvalues", num_eigenvalues)
  check_count("num_steps", num_steps, minimum=num_eigenvalues)
  product = Partial(_product, as_partial(loss), params)
  found = lanczos(product, params, num_steps, key, between=between)
  return Eigenvalues(*(part[:num_eigenvalues] for part in found))


_product = jax.jit(
  lambda loss, params, vector: hessian_vector_product(loss, params)(vector)
)
_signs = jax.jit(lambda key, params: random_like(jax.random.rademacher, key, params))
_inner_product = jax.jit(trees.inner_product)
