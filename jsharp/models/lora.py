"""Low-rank adapters: a task changes a few numbers of a network (Hu et al. 2022).

    W of a task = W + scale * down @ up,    down [inputs, rank], up [rank, outputs]

"LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. `up` starts at
zero, so adapters begin as no change. They are a function of parameters: any network
can be given them, and any algorithm adapts them. MAML over adapters adapts
`rank * (inputs + outputs)` numbers of a matrix in place of `inputs * outputs`.

    params = with_adapters(key, params, rank=4)
    algorithm = jsharp.maml(
      losses.batch_loss(lora(apply_fn), losses.cross_entropy), inner, outer,
      num_inner_steps=5, adapted_mask=adapters_alone)

All else is meta-learned beside the adapters' start, or stays what it is with
`lora(apply_fn, frozen=True)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._checks import check_count
from jsharp.types import ApplyFn, Mask, Params


class Adapter(NamedTuple):
  """The change of one matrix.

  Attributes:
    down: `[inputs, rank]`.
    up: `[rank, outputs]`.
  """

  down: jax.Array
  up: jax.Array


class WithAdapters(NamedTuple):
  """A network's parameters with adapters.

  Attributes:
    params: as the network has them.
    adapters: an `Adapter` for each parameter that has one, by its path.
  """

  params: Params
  adapters: dict[str, Adapter]


def with_adapters(
  key: jax.Array, params: Params, *, rank: int, where: Mask | None = None
) -> WithAdapters:
  """Gives matrices of a network adapters that change nothing yet.

  Args:
    key: random key.
    params: of the network. A leaf with more than two axes, such as a convolution's
      kernel, counts as a matrix of its last axis and all others together.
    rank: of the adapters, at most the smaller side of each matrix counts.
    where: `where(params) -> pytree of bool`, which leaves get one; all with two or more
      axes if None.

  Returns:
    The parameters with adapters: `down` normal with variance 1 / inputs, `up` zero.

  Raises:
    ValueError: if `rank` is below 1, no leaf is chosen, or a chosen one has fewer than
      two axes.

  Example:
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((6, 5))}, rank=2)
    >>> [leaf.shape for leaf in made.adapters["['w']"]]
    [(6, 2), (2, 5)]
  """
  rank = check_count("rank", rank)
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  chosen = [jnp.ndim(leaf) > 1 for _, leaf in leaves]
  if where is not None:
    chosen = jax.tree.leaves(where(params))
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  adapters = {}
  for number, (name, (_, leaf), wanted) in enumerate(
    zip(names, leaves, chosen, strict=True)
  ):
    if not wanted:
      continue
    if jnp.ndim(leaf) < 2:
      raise ValueError(
        f"where chooses {name} of shape {jnp.shape(leaf)}, and an adapter needs two "
        "axes; leave it out"
      )
    inputs, outputs = leaf.size // leaf.shape[-1], leaf.shape[-1]
    size = min(rank, inputs, outputs)
    drawn = jax.random.normal(
      jax.random.fold_in(key, number), (inputs, size), leaf.dtype
    )
    adapters[name] = Adapter(
      drawn / inputs**0.5, jnp.zeros((size, outputs), leaf.dtype)
    )
  if not adapters:
    raise ValueError(f"no parameter gets an adapter; choose some of {', '.join(names)}")
  return WithAdapters(params, adapters)


def merge_adapters(
  params: WithAdapters, *, scale: float = 1.0, frozen: bool = False
) -> Params:
  """A network's parameters with the adapters added in.

  Args:
    params: from `with_adapters`, or adapted.
    scale: of the change; alpha / rank in the paper.
    frozen: whether all but the adapters is constant to derivatives.

  Returns:
    Parameters as the network takes them.

  Example:
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((2, 2))}, rank=1)
    >>> moved = {"['w']": Adapter(jnp.array([[1.0], [0.0]]), jnp.array([[2.0, 3.0]]))}
    >>> merge_adapters(made._replace(adapters=moved))["w"].tolist()
    [[3.0, 4.0], [1.0, 1.0]]
  """
  base = jax.lax.stop_gradient(params.params) if frozen else params.params

  def changed(path: Any, leaf: Any) -> Any:
    adapter = params.adapters.get(jax.tree_util.keystr(path))
    if adapter is None:
      return leaf
    return leaf + (scale * adapter.down @ adapter.up).reshape(leaf.shape)

  return jax.tree_util.tree_map_with_path(changed, base)


def lora(
  apply_fn: ApplyFn, *, scale: float = 1.0, frozen: bool = False
) -> Callable[..., Any]:
  """A network that takes its parameters with adapters.

  Args:
    apply_fn: `apply_fn(params, inputs, ...) -> outputs`.
    scale: see `merge_adapters`.
    frozen: see `merge_adapters`.

  Returns:
    `apply_fn(with_adapters, inputs, ...) -> outputs`.

  Example:
    >>> apply_fn = lora(lambda params, x: x @ params["w"])
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((2, 3))}, rank=1)
    >>> apply_fn(made, jnp.ones((1, 2))).tolist()
    [[2.0, 2.0, 2.0]]
  """

  def of_merged(params: WithAdapters, *inputs: Any, **options: Any) -> Any:
    return apply_fn(
      merge_adapters(params, scale=scale, frozen=frozen), *inputs, **options
    )

  return of_merged


def adapters_alone(params: WithAdapters) -> Any:
  """The mask of an inner loop that changes the adapters and nothing else.

  Example:
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((2, 3))}, rank=1)
    >>> adapters_alone(made)
    WithAdapters(params={'w': False}, adapters={"['w']": Adapter(down=True, up=True)})
  """
  return WithAdapters(
    jax.tree.map(lambda _: False, params.params),
    jax.tree.map(lambda _: True, params.adapters),
  )
