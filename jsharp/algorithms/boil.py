"""BOIL: body only update in the inner loop (Oh et al. 2021, arXiv 2008.08882).

    adapted = body of params;  num_inner_steps times:
      adapted = adapted - inner_lr * grad_body(support loss)(adapted, head)
    params = outer_optimizer(params, mean over tasks of
                             grad_params(query loss(adapted, head)))

MAML whose inner loop changes everything except the head: the features have to move
relative to the head's decision boundaries. Body and head are meta-learned. It is the
complement of ANIL. Cost: MAML's. The authors' code takes one inner step of size 0.5 on
a mean cross-entropy.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import optax

from jsharp.algorithms._options import Problem
from jsharp.algorithms.maml import MAML, maml
from jsharp.models import part_mask
from jsharp.types import LossFn, Mask, MetaAlgorithm, Params


def boil(
  loss_fn: LossFn,
  inner_optimizer: optax.GradientTransformation,
  outer_optimizer: optax.GradientTransformation,
  *,
  head: Mask,
  adapted_mask: Mask | None = None,
  **options: Any,
) -> MetaAlgorithm:
  """Builds BOIL.

  Args:
    loss_fn: `loss_fn(params, batch) -> (loss, metrics)` of one task.
    inner_optimizer: any optax optimizer.
    outer_optimizer: any optax optimizer.
    head: `params -> pytree of bool`, the leaves that the inner loop does not change,
      for example `jsharp.models.part_mask("head")`.
    adapted_mask: a second mask: the inner loop changes only leaves outside the head
      that this mask selects, for example `jsharp.models.all_but_norm`; the whole body
      if None.
    **options: the keyword arguments of `jsharp.algorithms.maml`.

  Returns:
    The bundle of pure functions `init`, `step`, `adapt`.

  Raises:
    ValueError: as `jsharp.algorithms.maml` does; when called, if no leaf is left.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp import Batch
    >>> from jsharp.models import part_mask
    >>> def loss_fn(params, batch):
    ...   prediction = params["head"]["scale"] * params["body"] * batch.inputs
    ...   return jnp.mean((prediction - batch.targets) ** 2), {}
    >>> algorithm = boil(loss_fn, optax.sgd(0.25), optax.sgd(0.5),
    ...   head=part_mask("head"), num_inner_steps=1)
    >>> adapted = algorithm.adapt(
    ...   {"body": 3.0, "head": {"scale": 1.0}}, Batch(jnp.ones(2), jnp.zeros(2)))
    >>> float(adapted["body"]), float(adapted["head"]["scale"])
    (1.5, 1.0)
  """

  def body(params: Params) -> Any:
    kept = jax.tree.map(lambda in_head: not in_head, head(params))
    if adapted_mask is None:
      return kept
    return jax.tree.map(lambda a, b: bool(a and b), kept, adapted_mask(params))

  return maml(loss_fn, inner_optimizer, outer_optimizer, adapted_mask=body, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BOIL(MAML):
  """BOIL: all but the head adapts (Oh et al. 2021)."""

  name: ClassVar[str] = "boil"

  def construct(
    self,
    loss_fn: LossFn,
    problem: Problem,
    inner_optimizer: optax.GradientTransformation,
    options: dict[str, Any],
  ) -> MetaAlgorithm:
    return boil(
      loss_fn,
      inner_optimizer,
      problem.outer.optimizer(problem.sharpness),
      head=part_mask(problem.network.head),
      num_inner_steps=self.num_inner_steps,
      adapted_mask=self.mask(problem),
      execution=problem.execution,
      **options,
    )
