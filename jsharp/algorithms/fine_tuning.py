"""Where training starts, and which parameters are frozen or get their own step size."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import jax
import optax

from jsharp._leaf_archive import name_of
from jsharp.options import Check, Options, Role, option
from jsharp.types import Params


def in_group(name: str, group: str) -> bool:
  """Whether a leaf is in a group: whether the group's name is a prefix of its path.

  Example:
    >>> in_group("head/kernel", "head"), in_group("conv_10/kernel", "conv_1")
    (True, False)
  """
  return f"{name}/".startswith(f"{group.rstrip('/')}/")


def _groups_of(path: Any, groups: Iterable[str]) -> list[str]:
  """The groups that contain the leaf at a JAX key path."""
  return [group for group in groups if in_group(name_of(path), group)]


def group_names(params: Params) -> list[str]:
  """The names of the leaves; groups are these names or prefixes of them.

  Example:
    >>> group_names({"conv": {"kernel": 0.0}, "head": {"bias": 0.0}})
    ['conv/kernel', 'head/bias']
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return [name_of(path) for path, _ in leaves]


def check_groups(params: Params, groups: Any) -> None:
  """Checks that every group contains a leaf.

  Raises:
    ValueError: if one does not; the message lists the groups that exist.

  Example:
    >>> check_groups({"head": {"bias": 0.0}}, ["tail"])
    Traceback (most recent call last):
    ValueError: there is no group of parameters 'tail'; choose among head or ...
  """
  names = group_names(params)
  for group in groups:
    if not any(in_group(name, group) for name in names):
      known = sorted({name.partition("/")[0] for name in names})
      raise ValueError(
        f"there is no group of parameters {group!r}; choose among {', '.join(known)} "
        f"or their parts, such as {names[0]}"
      )


def hold_groups(groups: tuple[str, ...]) -> Callable[[Params], Params]:
  """Freezes groups of parameters, for `supervised(..., hold=...)`.

  Args:
    groups: names of groups or of parts of them, such as `head` or
      `stage_0_block_0/conv_0`.

  Returns:
    `hold(params)`, which returns the same parameters with a zero gradient in those
    groups.

  Example:
    >>> hold = hold_groups(("a",))
    >>> loss = lambda params: hold(params)["a"] * hold(params)["b"]
    >>> jax.tree.map(float, jax.grad(loss)({"a": 2.0, "b": 3.0}))
    {'a': 0.0, 'b': 2.0}
  """

  def held(path: Any, leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if _groups_of(path, groups) else leaf

  return lambda params: jax.tree_util.tree_map_with_path(held, params)


def scale_groups(factors: Mapping[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates of groups of parameters by a factor per group.

  Args:
    factors: the factor of each group; if several groups contain a leaf, the one with
      the longest name applies.

  Returns:
    A stateless link to append after the optimizer.

  Example:
    >>> link = scale_groups({"head": 10.0, "conv": 0.0})
    >>> steps = {"conv": 1.0, "head": {"bias": 1.0}, "norm": 1.0}
    >>> link.update(steps, link.init(steps))[0]
    {'conv': 0.0, 'head': {'bias': 10.0}, 'norm': 1.0}
  """

  def scaled(path: Any, leaf: Any) -> Any:
    held = _groups_of(path, factors)
    return factors[max(held, key=len)] * leaf if held else leaf

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates)
  )


def _factor(text: str) -> tuple[str, float]:
  group, _, number = text.partition("=")
  return group, float(number)


_FACTOR = r"[^=,]+=(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initial(Options):
  """The parameters that training starts from.

  Example:
    >>> Initial(init_names="names.json")
    Traceback (most recent call last):
    ValueError: --init_names needs --init_from
  """

  role: ClassVar[Role] = Role.TRAINING
  needing: ClassVar[tuple[str, ...]] = ("init_names",)

  init_from: str | None = option(
    None,
    "Start from the parameters of a finished run, a saved learner or classifier, or a "
    ".safetensors or .npz file of arrays; the head is initialised anew. Default: "
    "random initialisation.",
  )
  init_names: str | None = option(
    None,
    "For a file of arrays: a JSON file that maps each parameter name of jsharp to the "
    'name in that file, or to {"name": ..., "transpose": [2, 3, 1, 0]}, as kernels of '
    "PyTorch need it.",
  )

  def complete(self) -> None:
    """Rejects options that have an effect only with `init_from`."""
    for name in self.needing:
      if getattr(self, name) and self.init_from is None:
        raise ValueError(f"--{name} needs --init_from")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Initial):
  """Where ordinary training starts, and which parameters it trains.

  Example:
    >>> FineTuning(freeze=("conv",), lr_factors=("head=10",)).factors
    {'head': 10.0}
  """

  needing: ClassVar[tuple[str, ...]] = ("init_names", "init_head")

  init_head: bool = option(
    False, "Load the head too; the number of classes must be the same."
  )
  freeze: tuple[str, ...] = option(
    (),
    "Parameters that are frozen: groups or parts of them, for example "
    "conv,head/kernel. Running averages are still updated.",
  )
  lr_factors: tuple[str, ...] = option(
    (),
    "Factors of the step size by group of parameters, for example head=10,conv=0.1.",
    check=Check(
      lambda texts: all(re.fullmatch(_FACTOR, text) for text in texts),
      "must be group=factor with factors of at least 0, such as head=10.",
    ),
  )

  @property
  def factors(self) -> dict[str, float]:
    """The factor of each group's step size."""
    return dict(map(_factor, self.lr_factors))

  def optimizer(
    self, optimizer: optax.GradientTransformation
  ) -> optax.GradientTransformation:
    """The optimizer with these factors, applied only to the trained parameters.

    Frozen parameters do not count towards the norm that is clipped.
    """

    def kind(path: Any, leaf: Any) -> str:
      return "frozen" if _groups_of(path, self.freeze) else "learning"

    if self.lr_factors:
      optimizer = optax.chain(optimizer, scale_groups(self.factors))
    if self.freeze:
      optimizer = optax.partition(
        {"learning": optimizer, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(kind, params),
      )
    return optimizer
