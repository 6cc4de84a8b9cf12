"""Linen modules as pure functions of their parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.errors import ScopeParamShapeError

InitFn = Callable[[jax.Array, Any], Any]
"""`init_fn(key, inputs) -> params`."""


def as_functions(module: nn.Module) -> tuple[InitFn, Callable[..., Any]]:
  """Turns a Linen module with parameters and no other state into two functions.

  Args:
    module: called as `module(inputs)`, or `module(inputs, num_statistics)` if its
      normalisation can be told which rows to take its statistics from.

  Returns:
    `init_fn(key, inputs) -> params` and
    `apply_fn(params, inputs, num_statistics=None) -> outputs`. `apply_fn` raises
    ValueError if `params` were made for inputs of another shape.

  Raises:
    ValueError: `init_fn` raises it if the module has state besides its parameters.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.models import MLP
    >>> init_fn, apply_fn = as_functions(MLP((40, 40, 1)))
    >>> params = init_fn(jax.random.key(0), jnp.zeros([1, 1]))
    >>> apply_fn(params, jnp.ones([10, 1])).shape
    (10, 1)
  """

  def init_fn(key, inputs):
    variables = module.init(key, inputs)
    if extra := variables.keys() - {"params"}:
      raise ValueError(
        f"{type(module).__name__} has state {sorted(extra)} besides its parameters; "
        "use layers without state, such as jsharp.nn.BatchNorm."
      )
    return variables["params"]

  def apply_fn(params, inputs, num_statistics=None):
    extra = () if num_statistics is None else (num_statistics,)
    try:
      return module.apply({"params": params}, inputs, *extra)
    except ScopeParamShapeError as error:
      raise ValueError(
        f"params do not fit inputs of shape {inputs.shape}: make them with "
        f"init_fn(key, inputs) for inputs of that size. {error}"
      ) from error

  return init_fn, apply_fn


def norm_mask(params: Any) -> Any:
  """Marks the parameters that are not those of a normalisation layer.

  The scale and offset of batch normalisation are meta-learned, but the inner loop
  leaves them alone, as in the authors' code of MAML and Sharp-MAML. A parameter
  belongs to a normalisation layer if the name of its module contains "norm".

  Args:
    params: nested dicts, as from `module.init(...)["params"]`.

  Returns:
    A pytree of bool like `params`: False for normalisation scales and offsets.

  Example:
    >>> norm_mask({"conv_0": {"kernel": 1.0}, "norm_0": {"scale": 1.0}})
    {'conv_0': {'kernel': True}, 'norm_0': {'scale': False}}
  """

  def is_adapted(path, _):
    return not any("norm" in jax.tree_util.keystr((key,)).lower() for key in path[:-1])

  return jax.tree_util.tree_map_with_path(is_adapted, params)


def part_mask(*modules: str) -> Callable[[Any], Any]:
  """Marks the parameters of some modules, for head-only or body-only adaptation.

  Args:
    *modules: names of modules, such as "head".

  Returns:
    `mask(params) -> pytree of bool`: True where a module of one of these names is on
    the path. It raises ValueError if a name is nowhere in `params`.

  Raises:
    ValueError: if no name is given.

  Example:
    >>> head = part_mask("head")
    >>> head({"conv_0": {"kernel": 1.0}, "head": {"bias": 1.0}})
    {'conv_0': {'kernel': False}, 'head': {'bias': True}}
  """
  if not modules:
    raise ValueError('part_mask needs the name of at least one module, such as "head"')

  def mask(params):
    found = set()

    def is_in_part(path, _):
      names = {key.key for key in path if isinstance(key, jax.tree_util.DictKey)}
      found.update(names)
      return not names.isdisjoint(modules)

    marked = jax.tree_util.tree_map_with_path(is_in_part, params)
    if missing := set(modules) - found:
      raise ValueError(
        f"params have no module named {sorted(missing)}; they have {sorted(found)}"
      )
    return marked

  return mask
