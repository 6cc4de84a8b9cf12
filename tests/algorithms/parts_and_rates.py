"""Rows of the conformance table: adapted parts, learned rates, MAML++."""

import jax

from jsharp.algorithms import (
  anil,
  annealed_step_weights,
  boil,
  maml_plus_plus,
  meta_sgd,
)


def head_mask(params):
  return {"body": False, "head": {"w": True, "b": True}}


def head_only(*args, adapted_mask=head_mask, **options):
  return anil(*args, head=adapted_mask, **options)


def body_only(*args, adapted_mask=None, **options):
  head = head_mask
  if adapted_mask is not None:
    head = lambda params: jax.tree.map(lambda keep: not keep, adapted_mask(params))
  return boil(*args, head=head, **options)


def rates_per_entry(*args, **options):
  return meta_sgd(*args, inner_lr=(0.5, 1.5), **options)


def every_part(*args, num_inner_steps, **options):
  return maml_plus_plus(
    *args,
    num_inner_steps=num_inner_steps,
    inner_lr=1.0,
    step_weights=annealed_step_weights(num_inner_steps, anneal_steps=3),
    per_step=lambda params: {"body": False, "head": {"w": False, "b": True}},
    **options,
  )


ROWS = {
  "anil": head_only,
  "boil": body_only,
  "meta_sgd": rates_per_entry,
  "maml_plus_plus": every_part,
}
