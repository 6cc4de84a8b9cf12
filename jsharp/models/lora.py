"""Low-rank adapters: a task changes few parameters of a network (Hu et al. 2022).

    W of a task = W + scale * down @ up,    down [inputs, rank], up [rank, outputs]

"LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685. `up` starts at
zero, so adapters initially change nothing. They are a transformation of the parameters,
so they work with any network and any algorithm. MAML over adapters adapts
`rank * (inputs + outputs)` numbers per matrix instead of `inputs * outputs`.

    params = with_adapters(key, params, rank=4)
    algorithm = jsharp.maml(
      losses.batch_loss(lora(apply_fn), losses.cross_entropy), inner, outer,
      num_inner_steps=5, adapted_mask=adapters_alone)

The other parameters are meta-learned too, or stay fixed with
`lora(apply_fn, frozen=True)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsharp._checks import check_count
from jsharp.tree import is_inexact
from jsharp.types import ApplyFn, Mask, Params


class Adapter(NamedTuple):
  """The low-rank change of one matrix.

  Attributes:
    down: `[inputs, rank]`.
    up: `[rank, outputs]`.
  """

  down: jax.Array
  up: jax.Array


class WithAdapters(NamedTuple):
  """A network's parameters with adapters.

  Attributes:
    params: the network's own parameters.
    adapters: the `Adapter` of each adapted parameter, by the parameter's path.
  """

  params: Params
  adapters: dict[str, Adapter]


def with_adapters(
  key: jax.Array, params: Params, *, rank: int, where: Mask | None = None
) -> WithAdapters:
  """Adds adapters, which initially change nothing, to matrices of a network.

  Args:
    key: random key.
    params: the network's parameters. A leaf with more than two axes, such as a
      convolution's kernel, is treated as a matrix: its last axis by all others.
    rank: the rank of the adapters, limited to the smaller side of each matrix.
    where: `where(params) -> pytree of bool`, the leaves that get an adapter; all
      floating-point ones with two or more axes if None.

  Returns:
    The parameters with adapters: `down` normal with variance 1 / inputs, `up` zero.

  Raises:
    ValueError: if `rank` is below 1; if `where` does not return one bool per leaf, or
      selects no leaf; or if a selected leaf has fewer than two axes or is not
      floating-point.

  Example:
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((6, 5))}, rank=2)
    >>> [leaf.shape for leaf in made.adapters["['w']"]]
    [(6, 2), (2, 5)]
  """
  rank = check_count("rank", rank)
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  fits = [is_inexact(leaf) and jnp.ndim(leaf) > 1 for _, leaf in leaves]
  chosen = fits if where is None else jax.tree.leaves(where(params))
  if len(chosen) != len(leaves):
    raise ValueError(
      f"where returns {len(chosen)} bools for {len(leaves)} parameters; return one for "
      "each, in a pytree like params"
    )
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  adapters = {}
  for number, (name, (_, leaf), wanted, can) in enumerate(
    zip(names, leaves, chosen, fits, strict=True)
  ):
    if not wanted:
      continue
    if not can:
      what = getattr(leaf, "dtype", type(leaf).__name__)
      raise ValueError(
        f"where selects {name}, {what}{list(getattr(leaf, 'shape', ()))}, but an "
        "adapter needs floating-point numbers and two axes; leave it out"
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
    raise ValueError(f"where selects no parameter; select some of {', '.join(names)}")
  return WithAdapters(params, adapters)


def merge_adapters(
  params: WithAdapters, *, scale: float = 1.0, frozen: bool = False
) -> Params:
  """Adds the adapters' changes to a network's parameters.

  Args:
    params: from `with_adapters`, or adapted.
    scale: factor of the change; alpha / rank in the paper.
    frozen: whether everything except the adapters is a constant in derivatives.

  Returns:
    The parameters, in the network's own structure.

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
  """Makes a network's function accept parameters with adapters.

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
  """The mask of an inner loop that changes only the adapters.

  Example:
    >>> made = with_adapters(jax.random.key(0), {"w": jnp.ones((2, 3))}, rank=1)
    >>> adapters_alone(made)
    WithAdapters(params={'w': False}, adapters={"['w']": Adapter(down=True, up=True)})
  """
  return WithAdapters(
    jax.tree.map(lambda _: False, params.params),
    jax.tree.map(lambda _: True, params.adapters),
  )
