"""Policies that adapt to goals: descriptions, adaptation and actions."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsharp.algorithms import Algorithm, Made, OuterLoop, Problem, Sharpness
from jsharp.control import (
  Environment,
  OneStep,
  OuterUpdate,
  PolicyGradient,
  PolicyLoss,
  Trajectories,
  policy_loss,
  roll_out,
)
from jsharp.core.execution import Execution
from jsharp.learners._description import check_parts
from jsharp.losses import squared_error
from jsharp.models.policy import PolicyNetwork
from jsharp.options import Options, option
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params


class _Given:
  """An outer loop with a given optimizer."""

  def __init__(self, optimizer: optax.GradientTransformation):
    self._optimizer = optimizer

  def optimizer(self, sharpness: Sharpness) -> optax.GradientTransformation:
    del sharpness
    return self._optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyDescription(Options):
  """The description of a policy that adapts to goals.

  Attributes:
    algorithm: the meta-learning algorithm with its own options.
    network: the policy with its own options.
    environment: the environment in which it acts.
    gradient: how the derivatives of a return are estimated.
    sharpness: SAM in either loop.
    precision: the precision of products, see `jsharp.precision`.
  """

  algorithm: Algorithm = option(help="The meta-learning algorithm.")
  network: PolicyNetwork = option(help="The policy.")
  environment: Environment = option(help="The environment.")
  gradient: PolicyGradient = option(help="How derivatives are estimated.")
  sharpness: Sharpness = option(Sharpness(), "SAM in either loop.")
  precision: Literal["float32", "tf32", "bfloat16"] = option("float32")

  def complete(self) -> None:
    """Rejects algorithms that need outputs and targets."""
    if not self.algorithm.any_loss or self.algorithm.classifies:
      raise ValueError(
        f"--algorithm={self.algorithm.name} needs examples with targets, but a policy "
        "has trajectories; choose one that adapts by the gradient of any loss, such as "
        "maml, fomaml, reptile or sharp_maml_both"
      )
    check_parts(
      self.algorithm,
      self.network,
      self.sharpness,
      precision=self.precision,
      problem="regression",
    )

  @property
  def num_outputs(self) -> int:
    """The number of outputs of the network."""
    return 2 * self.environment.action_size

  def loss(self, apply_fn: ApplyFn) -> PolicyLoss:
    """The loss of the policy on a task's trajectories."""
    return policy_loss(
      self.environment,
      apply_fn,
      surrogate=self.gradient.surrogate,
      discount=self.gradient.discount,
      decay=self.gradient.gae_decay,
    )

  def made(
    self,
    *,
    seed: int = 0,
    outer: OuterLoop | None = None,
    update: OuterUpdate | None = None,
    execution: Execution = Execution(),
  ) -> Made:
    """The algorithm with its policy, for tasks of the environment.

    Args:
      seed: the seed of the initial parameters.
      outer: the outer loop that trains it; `OuterLoop()` if None.
      update: the outer update on a meta-step's trajectories; `OneStep()` if None.
      execution: how it is computed.
    """
    environment, outer = self.environment, outer or OuterLoop()
    problem = Problem(
      network=self.network,
      num_outputs=self.num_outputs,
      inputs=jnp.zeros((1, environment.observation_size), jnp.float32),
      targets=jnp.zeros((1, environment.goal_size), jnp.float32),
      criterion=squared_error,
      key=jax.random.key(seed),
      sharpness=self.sharpness,
      outer=outer,
      precision=self.precision,
      execution=execution,
      loss=self.loss,
    )
    made = self.algorithm.make(problem)
    if update is None or isinstance(update, OneStep):
      return made

    def algorithm(way: int) -> MetaAlgorithm:
      def build(link: optax.GradientTransformation) -> MetaAlgorithm:
        given: Any = _Given(link)
        if update.steps_itself:
          given = _Given(outer.optimizer(self.sharpness, step=link))
        return self.algorithm.make(problem._replace(outer=given)).algorithm(way)

      return update.algorithm(
        build,
        self.loss(made.predict(way)),
        outer.optimizer(self.sharpness),
        execution=execution,
      )

    return made._replace(algorithm=algorithm)


@dataclasses.dataclass(frozen=True, repr=False)
class PolicyLearner:
  """A policy with its parameters, ready to adapt to a goal.

  Created by `build_policy`, `jsharp.load` or a run of `experiments.navigation`.

  Attributes:
    description: its description.
    params: the meta-learned parameters.
    made: the parts that `jsharp.algorithms.Algorithm.make` built.

  Example:
    >>> from jsharp import control
    >>> from jsharp.algorithms.maml import MAML
    >>> policy = build_policy(PolicyDescription(
    ...   algorithm=MAML(), network=PolicyNetwork(hidden_width=8),
    ...   environment=control.Navigation(horizon=5), gradient=PolicyGradient()))
    >>> task = control.sample_task(
    ...   policy.description.environment, jax.random.key(0), support=4, query=2)
    >>> before = policy.roll_out(policy.start(), task.support)
    >>> adapted = policy.adapt(before)  # Or by itself, `policy.adapt(task.support)`.
    >>> policy.act(adapted, jnp.zeros((1, 2))).shape
    (1, 2)
  """

  description: PolicyDescription
  params: Params
  made: Made

  @property
  def _algorithm(self) -> MetaAlgorithm:
    return self.made.algorithm(self.description.num_outputs)

  @property
  def _apply_fn(self) -> ApplyFn:
    return self.made.predict(self.description.num_outputs)

  def start(self) -> Any:
    """The policy before adaptation, for `act` and `roll_out`."""
    # No step is taken, so no trajectories are needed.
    return self._algorithm.adapt(self.params, None, num_steps=0)

  def adapt(self, seen: Batch | Trajectories, **options: Any) -> Any:
    """Adapts to one goal, as at test.

    Args:
      seen: keys and the goal, as in `jsharp.control.sample_task(...).support`: the
        policy is rolled out in the environment at every step. Or `Trajectories` from
        any source, obtained with the policy `start()`: steps after the first weight
        them by likelihood ratios.
      **options: keyword arguments of `MetaAlgorithm.adapt`, such as `num_steps`, that
        replace those of the description.

    Returns:
      The adapted policy, for `act` and `roll_out`.

    Raises:
      ValueError: if the shapes of trajectories do not match the environment.
    """
    support = seen
    if isinstance(seen, Trajectories):
      self._check(seen)
      loss_fn = self.description.loss(self._apply_fn)
      support = loss_fn.hold(self.start(), Batch(seen, None))
    return self._algorithm.adapt(
      self.params, support, **{**self.made.at_test, **options}
    )

  def act(
    self, adapted: Any, observations: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    """Actions for observations.

    Args:
      adapted: from `adapt` or `start`.
      observations: `[n, observation_size]`.
      key: a random key to draw actions, as in exploration; None for their means.

    Returns:
      `[n, action_size]`.

    Raises:
      ValueError: if observations have another shape.
    """
    size = self.description.environment.observation_size
    if jnp.ndim(observations) != 2 or jnp.shape(observations)[1] != size:
      raise ValueError(
        f"observations must be [n, {size}], got {list(jnp.shape(observations))}; pass "
        "observations[None] for one"
      )
    means, log_scales = jnp.split(self._apply_fn(adapted, observations), 2, axis=-1)
    if key is None:
      return means
    return means + jnp.exp(log_scales) * jax.random.normal(key, means.shape)

  def roll_out(self, adapted: Any, batch: Batch) -> Trajectories:
    """Its trajectories in the environment, see `jsharp.control.roll_out`."""
    return roll_out(self.description.environment, self._apply_fn, adapted, batch)

  def replace(self, params: Params) -> "PolicyLearner":
    """The same policy with other parameters."""
    return dataclasses.replace(self, params=params)

  def __reduce__(self) -> tuple[Any, ...]:
    """For pickle and copies: built again from the description."""
    return _rebuilt, (self.description, jax.tree.map(np.asarray, self.params))

  def __repr__(self) -> str:
    """Algorithm and environment; not the parameters."""
    size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
    about = self.description
    return (
      f"PolicyLearner({about.algorithm.name} in {about.environment.name}, {size:,} "
      "numbers)"
    )

  def _check(self, seen: Trajectories) -> None:
    about = self.description.environment
    lead = jnp.shape(seen.rewards)
    wanted = {
      "observations": (*lead, about.observation_size),
      "actions": (*lead, about.action_size),
      "alive": lead,
    }
    for name, shape in wanted.items():
      found = jnp.shape(getattr(seen, name))
      if found != shape or len(lead) != 2:
        raise ValueError(
          f"{name} of the trajectories is {list(found)}, but with rewards {list(lead)} "
          f"in {about.name} it must be {list(shape)}; rewards are "
          "[num_trajectories, horizon]"
        )


def _rebuilt(description: PolicyDescription, params: Params) -> PolicyLearner:
  return build_policy(description).replace(jax.tree.map(jnp.asarray, params))


def build_policy(
  description: PolicyDescription, *, seed: int = 0, execution: Execution | None = None
) -> PolicyLearner:
  """Builds a policy from its description, with initial parameters.

  Args:
    description: the description.
    seed: the seed of the initial parameters.
    execution: how it is computed; `Execution()` if None.

  Returns:
    The policy, with initial `params`.

  Example:
    >>> from jsharp import control
    >>> from jsharp.algorithms.maml import MAML
    >>> policy = build_policy(PolicyDescription(
    ...   algorithm=MAML(), network=PolicyNetwork(hidden_width=8),
    ...   environment=control.Navigation(), gradient=PolicyGradient()))
    >>> policy
    PolicyLearner(maml in navigation, 116 numbers)
  """
  made = description.made(seed=seed, execution=execution or Execution())
  params = made.algorithm(description.num_outputs).init(made.params).params
  return PolicyLearner(description, params, made)
