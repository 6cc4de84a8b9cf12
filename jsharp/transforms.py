"""Small optax links that both loops use."""

from typing import Any

import jax
import optax


def stop_gradient() -> optax.GradientTransformation:
  """Treats what arrives as a constant in every derivative taken later.

  In front of an inner optimizer it makes MAML first-order (FOMAML); behind an
  ascent it keeps the perturbation out of the meta-gradient:
  `optax.chain(jsharp.sam_ascent(0.05), jsharp.stop_gradient())`. Values do not
  change.

  Returns:
    A stateless link.

  Example:
    >>> first_order = optax.chain(stop_gradient(), optax.sgd(0.1))
    >>> def after_one_step(w):
    ...   update, _ = first_order.update(2 * w, first_order.init(w))
    ...   return w + update
    >>> float(jax.grad(after_one_step)(1.0))
    1.0
  """

  def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    return jax.lax.stop_gradient(updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)
