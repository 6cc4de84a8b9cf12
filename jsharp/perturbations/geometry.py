"""The geometry of an ascent: the same ball, in coordinates scaled by the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsharp.types import Params


def conjugate(
  inner: optax.GradientTransformation, by: Callable[[Params], Any]
) -> optax.GradientTransformationExtraArgs:
  """Runs an ascent in another geometry: `T * inner(T * g)` with `T = by(params)`.

  Derivatives flow through `T`. If `T` is a mask of zeros and ones, the perturbation is
  confined to a part of the parameters.

  Args:
    inner: an ascent.
    by: `by(params) -> T`, a pytree with the structure of `params`.

  Returns:
    The ascent for the ball `|e / T| <= rho`.

  Raises:
    ValueError: from `update`, if `params` is missing.

  Example:
    >>> from jsharp import sam_ascent
    >>> ascent = conjugate(sam_ascent(1.0), by=jnp.abs)
    >>> w = jnp.array([2.0, 0.0])
    >>> ascent.update(jnp.array([1.0, 1.0]), ascent.init(w), w)[0].tolist()
    [2.0, 0.0]
  """
  inner_ascent = optax.with_extra_args_support(inner)

  def update_fn(
    updates: Any, state: Any, params: Any = None, **extra: Any
  ) -> tuple[Any, Any]:
    if params is None:
      raise ValueError(
        "conjugate needs the parameters, got params=None; "
        "call update(grads, state, params)"
      )
    metric = by(params)
    bent = jax.tree.map(_times, updates, metric)
    point, state = inner_ascent.update(bent, state, params, **extra)
    return jax.tree.map(_times, point, metric), state

  return optax.GradientTransformationExtraArgs(inner_ascent.init, update_fn)


def restrict(
  inner: optax.GradientTransformation, to: Any
) -> optax.GradientTransformationExtraArgs:
  """Confines an ascent to a part of the parameters: one ball in that subspace.

  Elsewhere the perturbation is zero. (`optax.masked` would return the raw gradient as
  the perturbation there.) Restricted to the normalisation layers it is SAM-ON (Mueller
  et al. 2023, arXiv 2306.04226).

  Args:
    inner: an ascent.
    to: a pytree of bool, or of arrays of 0 and 1, with the structure of `params` or
      a prefix of it; or `to(params)` that returns one.

  Returns:
    The ascent; its `update` needs `params`.

  Raises:
    ValueError: from `update`, if `to` selects nothing or does not fit `params`.

  Example:
    >>> from jsharp import sam_ascent
    >>> ascent = restrict(sam_ascent(0.5), to={"kernel": False, "scale": True})
    >>> w = {"kernel": jnp.ones(2), "scale": jnp.ones(1)}
    >>> e, _ = ascent.update(w, ascent.init(w), w)
    >>> e["kernel"].tolist(), e["scale"].tolist()
    ([0.0, 0.0], [0.5])
  """

  def metric(params: Params) -> Any:
    mask = to(params) if callable(to) else to
    chosen = jax.tree.leaves(mask)
    known = all(isinstance(leaf, bool | np.bool_ | np.ndarray) for leaf in chosen)
    if known and not any(np.any(leaf) for leaf in chosen):
      names = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
      ]
      raise ValueError(
        "to selects none of the parameters, so nothing would be perturbed; mark at "
        f"least one of {', '.join(names) or '(no parameters)'} with True"
      )
    try:
      return jax.tree.map(
        lambda keep, part: jax.tree.map(lambda w: jnp.asarray(keep, w.dtype), part),
        mask,
        params,
      )
    except ValueError as error:
      raise ValueError(
        f"to={mask!r} does not fit the structure of params "
        f"{jax.tree.structure(params)}; give it that structure or a prefix of it"
      ) from error

  return conjugate(inner, metric)


def _times(x: jax.Array, metric: Any) -> jax.Array:
  return x * jnp.asarray(metric, x.dtype)
