"""Linen modules as pure functions of their parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from jsharp.models.initial import initialised
from jsharp.types import ApplyFn, Params, Variables

InitFn = Callable[[jax.Array, Any], Any]
"""`init_fn(key, inputs) -> params`."""


def as_functions(module: nn.Module) -> tuple[InitFn, Callable[..., Any]]:
  """Turns a Linen module with parameters and no other state into two functions.

  Args:
    module: called as `module(inputs)`, or as `module(inputs, num_statistics)` if it can
      normalise by the first rows.

  Returns:
    `init_fn(key, inputs) -> params` and
    `apply_fn(params, inputs, num_statistics=None) -> outputs`, which passes further
    keyword arguments to the module. `apply_fn` raises ValueError if `params` were made
    for inputs of another shape.

  Raises:
    ValueError: from `init_fn`, if the module has state besides its parameters.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.models import MLP
    >>> init_fn, apply_fn = as_functions(MLP((40, 40, 1)))
    >>> params = init_fn(jax.random.key(0), jnp.zeros([1, 1]))
    >>> apply_fn(params, jnp.ones([10, 1])).shape
    (10, 1)
  """

  def init_fn(key, inputs):
    variables = initialised(module, key, inputs)
    if extra := variables.keys() - {"params"}:
      raise ValueError(
        f"{type(module).__name__} has state {sorted(extra)} besides its parameters; "
        "use layers without state, such as jsharp.nn.BatchNorm."
      )
    return variables["params"]

  def apply_fn(params, inputs, num_statistics=None, **named):
    extra = () if num_statistics is None else (num_statistics,)
    try:
      return module.apply({"params": params}, inputs, *extra, **named)
    except ScopeParamShapeError as error:
      raise ValueError(
        f"params do not fit inputs of shape {inputs.shape}; make them with "
        f"init_fn(key, inputs) for inputs of that size. {error}"
      ) from error

  return init_fn, apply_fn


def with_statistics(
  module: nn.Module,
) -> tuple[Callable[[jax.Array, Any], Variables], Callable[..., tuple[Any, Any]]]:
  """As `as_functions`, for a module whose batch statistics are kept between passes.

  The caller averages and stores the statistics, as MAML++ does for each inner step; the
  module remains a pure function.

  Args:
    module: called as `module(inputs)`, with layers `jsharp.nn.BatchNorm`.

  Returns:
    `init_fn(key, inputs) -> Variables(params, statistics)`, with means 0 and squares 1,
    and `apply_fn(params, inputs, statistics=None) -> (outputs, statistics)`. If
    `statistics` is None, it normalises by the batch and returns the batch's means and
    mean squares; otherwise it normalises by the given statistics and returns them
    unchanged.

  Raises:
    ValueError: from `init_fn`, if no layer has statistics, or as in `as_functions`.

  Example:
    >>> import jax.numpy as jnp
    >>> from jsharp.nn import BatchNorm
    >>> init_fn, apply_fn = with_statistics(BatchNorm())
    >>> x = jnp.array([[1.0], [3.0]])
    >>> params, kept = init_fn(jax.random.key(0), x)
    >>> _, seen = apply_fn(params, x)
    >>> kept["mean"].tolist(), seen["mean"].tolist()
    ([0.0], [2.0])
    >>> apply_fn(params, x, seen)[0].round(3).tolist()
    [[-1.0], [1.0]]
  """
  make_params, _ = as_functions(module)

  def init_fn(key, inputs):
    params = make_params(key, inputs)
    _, seen = jax.eval_shape(apply_fn, params, inputs)
    if not jax.tree.leaves(seen):
      raise ValueError(
        f"{type(module).__name__} has no layer with statistics; use "
        "jsharp.nn.BatchNorm in it, or as_functions(module)"
      )
    return Variables(params, jax.tree_util.tree_map_with_path(_initial, seen))

  def apply_fn(params, inputs, statistics=None):
    if statistics is not None:
      variables = {"params": params, "statistics": statistics}
      return module.apply(variables, inputs), statistics
    outputs, seen = module.apply({"params": params}, inputs, mutable=["statistics"])
    return outputs, seen.get("statistics", {})

  return init_fn, apply_fn


def _initial(path, statistic):
  make = jnp.ones if path[-1].key == "square" else jnp.zeros
  return make(statistic.shape, statistic.dtype)


def norm_mask(params: Any) -> Any:
  """Marks the scales and offsets of normalisation layers.

  A parameter belongs to a normalisation layer if the name of its module contains
  "norm".

  Args:
    params: nested dicts, as from `module.init(...)["params"]`.

  Returns:
    A pytree of bool like `params`: True for normalisation scales and offsets.

  Example:
    >>> norm_mask({"conv_0": {"kernel": 1.0}, "norm_0": {"scale": 1.0}})
    {'conv_0': {'kernel': False}, 'norm_0': {'scale': True}}
  """

  def is_norm(path, _):
    return any("norm" in jax.tree_util.keystr((key,)).lower() for key in path[:-1])

  return jax.tree_util.tree_map_with_path(is_norm, params)


def all_but_norm(params: Any) -> Any:
  """Marks the parameters that `norm_mask` does not mark.

  As in the code of MAML's and Sharp-MAML's authors, the scale and offset of batch
  normalisation are meta-learned, but the inner loop does not change them: it adapts the
  parameters that this mask marks.

  Args:
    params: nested dicts, as from `module.init(...)["params"]`.

  Returns:
    A pytree of bool like `params`: False for normalisation scales and offsets.

  Example:
    >>> all_but_norm({"conv_0": {"kernel": 1.0}, "norm_0": {"scale": 1.0}})
    {'conv_0': {'kernel': True}, 'norm_0': {'scale': False}}
  """
  return jax.tree.map(lambda is_norm: not is_norm, norm_mask(params))


def part_mask(*modules: str) -> Callable[[Any], Any]:
  """Marks the parameters of some modules, for head-only or body-only adaptation.

  Args:
    *modules: names of modules, such as "head".

  Returns:
    `mask(params) -> pytree of bool`: True for parameters inside a module with one of
    these names; a parameter's own name does not count. It raises ValueError if no
    module of `params` has one of the names.

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
      # The last entry is the parameter's own name; NNX appends `.value` to it.
      own = 2 if jax.tree_util.keystr(path[-1:]) == ".value" else 1
      modules_on_path = path[:-own]
      names = {
        jax.tree_util.keystr((k,), simple=True)  # Of a dict or an attribute.
        for k in modules_on_path
        if not isinstance(k, jax.tree_util.SequenceKey)
      }
      found.update(names)
      return not names.isdisjoint(modules)

    marked = jax.tree_util.tree_map_with_path(is_in_part, params)
    if missing := set(modules) - found:
      raise ValueError(
        f"params has no module named {sorted(missing)}; it has {sorted(found)}"
      )
    return marked

  return mask


def first_outputs(apply_fn: ApplyFn, way: int) -> ApplyFn:
  """Truncates a model's outputs to the number of classes of a task.

  Args:
    apply_fn: `apply_fn(params, inputs, ...) -> [n, at least way]`.
    way: the number of classes, which use the first outputs.

  Returns:
    `apply_fn(params, inputs, ...) -> [n, way]`.

  Raises:
    ValueError: when called, if the model has fewer outputs.

  Example:
    >>> first_outputs(lambda params, x: x, 2)(None, jnp.ones((3, 5))).shape
    (3, 2)
  """

  def cut(params: Params, inputs: Any, *args: Any, **options: Any) -> Any:
    outputs = apply_fn(params, inputs, *args, **options)
    if outputs.shape[-1] < way:
      raise ValueError(
        f"way is {way}, but the model has {outputs.shape[-1]} outputs; give it at "
        "least as many as the largest way"
      )
    return outputs[..., :way]

  return cut
