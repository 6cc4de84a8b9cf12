"""Reptile, iMAML and CAVIA in the form of the conformance table's rows."""

import functools

import jax
import jax.numpy as jnp
import optax

from jsharp.algorithms import cavia, imaml, reptile


def reptile_with_momentum(loss_fn, inner_optimizer, outer_optimizer, **options):
  """Reptile whose inner loop has something to carry from task to task."""
  del inner_optimizer
  return reptile(
    loss_fn,
    optax.sgd(0.2, momentum=0.5),
    outer_optimizer,
    keep_inner_state=True,
    **options,
  )


def cavia_on_the_head(
  loss_fn, inner_optimizer, outer_optimizer, *, adapted_mask=None, **options
):
  """CAVIA with a context that is added to the head: ANIL, written as CAVIA."""
  del adapted_mask  # No leaf of params is ever adapted.

  def moved(contextual):
    params, context = contextual
    return params | {"head": jax.tree.map(jnp.add, params["head"], context)}

  algorithm = cavia(
    lambda contextual, batch: loss_fn(moved(contextual), batch),
    inner_optimizer,
    outer_optimizer,
    context={"w": jnp.zeros((8, 4)), "b": jnp.zeros(4)},
    **options,
  )
  return algorithm._replace(
    adapt=lambda params, support, **options: moved(
      algorithm.adapt(params, support, **options)
    )
  )


ROWS = {
  "reptile": reptile,
  "reptile_keep_inner_state": reptile_with_momentum,
  "imaml": functools.partial(imaml, proximity=2.0),
  "cavia": cavia_on_the_head,
}

# `params - adapted` is zero for what the inner loop leaves alone.
ONLY_ADAPTED_LEAVES_ARE_LEARNED = (reptile, reptile_with_momentum)
