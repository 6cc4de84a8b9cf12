"""Options shared by algorithms: the base class, inner and outer loop, sharpness.

Each algorithm's own options are in its own file. They say how to build the algorithm
for a network (`make`), what a task costs in gradients (`phases`) and what programs need
to know, so that no other module depends on the algorithm's name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import optax

from jsharp import losses
from jsharp.core import second_order as memory
from jsharp.core.execution import Execution
from jsharp.core.objectives import on_query
from jsharp.core.transforms import stop_gradient
from jsharp.losses import Criterion
from jsharp.models import Network, all_but_norm, as_functions, first_outputs
from jsharp.options import Options, Role, at_least, norm, option, positive
from jsharp.perturbations import sam, sam_ascent, sharpness_aware
from jsharp.precision import in_precision
from jsharp.types import ApplyFn, LossFn, Mask, MetaAlgorithm, Params

RHO = 0.0005
"""The radius of Sharp-MAML's authors, the same in both loops."""

Phases = list[tuple[float, float]]
"""`(end, gradients per task)` for each phase; a phase ends before meta-step `end`."""


class Problem(NamedTuple):
  """The network, loss and settings that an algorithm is built for.

  Attributes:
    network: the description of the network.
    num_outputs: outputs of the network: for classification, the largest way.
    inputs: `[1, ...]` float32 zeros, for initialisation.
    targets: `[1, ...]`, likewise.
    criterion: `criterion(outputs, targets) -> (loss, metrics)`.
    key: the key that draws the initial parameters.
    sharpness: SAM in either loop.
    outer: the outer loop.
    precision: see `jsharp.precision`.
    execution: how it is computed.
    loss: `loss(apply_fn) -> loss_fn(params, batch)`, for a problem whose loss is not a
      function of outputs and targets, such as the return of a policy; None otherwise.
  """

  network: Network
  num_outputs: int
  inputs: jax.Array
  targets: jax.Array
  criterion: Criterion
  key: jax.Array
  sharpness: "Sharpness"
  outer: "OuterLoop"
  precision: str
  execution: Execution
  loss: Callable[[ApplyFn], LossFn] | None = None

  def loss_fn(self, apply_fn: ApplyFn) -> LossFn:
    """The loss of a network on a batch."""
    if self.loss is not None:
      return self.loss(apply_fn)
    return losses.batch_loss(apply_fn, self.criterion)

  def functions(
    self, module: Any, bridge: Callable[..., Any] = as_functions
  ) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two functions of a module, computed in the problem's precision."""
    init_fn, apply_fn = bridge(module)
    return init_fn, in_precision(apply_fn, self.precision)

  def module(self, num_outputs: int | None) -> Any:
    """The network as a Linen module, computed as the problem says."""
    return self.network.module(num_outputs, convolution=self.execution.convolution)


class Made(NamedTuple):
  """An algorithm with its network, for tasks of any way up to the number of outputs.

  Attributes:
    params: the network's initial parameters, as `MetaAlgorithm.init` takes them.
    algorithm: `algorithm(way) -> MetaAlgorithm`.
    predict: `predict(way) -> apply_fn(adapted, inputs, num_statistics=None)`.
    at_test: keyword arguments of `MetaAlgorithm.adapt` at validation and test.
  """

  params: Params
  algorithm: Callable[[int], MetaAlgorithm]
  predict: Callable[[int], ApplyFn]
  at_test: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm(Options):
  """The options of a meta-learning algorithm.

  Class attributes:
    classifies: whether its tasks must have classes.
    any_way: whether its head is made from the support set, so that a trained learner
      handles any number of classes. Otherwise a task has at most as many classes as the
      network has outputs.
    has_inner_gradient: whether SAM can perturb its inner steps.
    has_outer_gradient: whether its meta-step takes a gradient.
    sharp: the loops that its name puts SAM into: "low", "up", "both" or "".
    any_loss: whether it adapts by the gradient of any loss it is given, so that it can
      be used for control too.
    meta_learns: whether a step changes anything; otherwise it only computes metrics.
    own_defaults: options whose defaults an experiment does not replace.
    precisions: the precisions that it can be computed in, see `jsharp.precision`.
    backbone: the group of parameters that is the network, if a larger network of the
      algorithm's own contains it; otherwise "".
    beyond_backbone: groups of parameters that it adds to the network.
  """

  kind: ClassVar[str] = "algorithm"
  classifies: ClassVar[bool] = False
  any_way: ClassVar[bool] = False
  has_inner_gradient: ClassVar[bool] = True
  has_outer_gradient: ClassVar[bool] = True
  sharp: ClassVar[str] = ""
  any_loss: ClassVar[bool] = False
  meta_learns: ClassVar[bool] = True
  own_defaults: ClassVar[tuple[str, ...]] = ()
  precisions: ClassVar[tuple[str, ...]] = ("float32", "tf32", "bfloat16")
  backbone: ClassVar[str] = ""
  beyond_backbone: ClassVar[tuple[str, ...]] = ()

  def make(self, problem: Problem) -> Made:
    """Builds the algorithm for a network."""
    raise NotImplementedError

  def check(self, network: Network) -> None:
    """Checks that the options fit a network.

    Raises:
      ValueError: if one does not; the message names the option, its value and the fix.
    """

  def phases(self, support: int, query: int, sharpness: "Sharpness") -> Phases:
    """The cost of a task, in gradients of single examples.

    The unit is a forward and a backward pass of the whole network for one example. A
    Hessian-vector product counts as two. Forward passes that only compute metrics, and
    steps on a head alone, count as free. What `second_order` recomputes does not count,
    because it depends on the machine.

    Args:
      support: support examples of the task.
      query: query examples of the task.
      sharpness: SAM in either loop.

    Raises:
      ValueError: if the algorithm does not define its cost.
    """
    raise ValueError(
      f"--algorithm={self.name} does not define its cost in gradients; give its class "
      "a method phases, as the classes in jsharp/algorithms have"
    )

  def fewest_support(self, way: int) -> int:
    """The smallest number of support examples that it can adapt to at test.

    Args:
      way: classes of the task; 1 for a regression.
    """
    return way

  def without_derivative(self) -> str | None:
    """Why the loss after adaptation has no derivative; None if it has one."""
    return None

  def exact(self) -> "Algorithm":
    """The algorithm with the same values and exact derivatives, for landscapes."""
    return self

  def adapts_norm(self) -> bool:
    """Whether the inner loop changes the scale and offset of normalisation."""
    return False

  def leaner(self) -> "list[Algorithm]":
    """Itself, then equivalent algorithms that need less memory, fastest first."""
    return [self]

  def uses_running_statistics(self) -> bool:
    """Whether running statistics normalise at validation and test."""
    return False

  def last_phase(self) -> "Algorithm":
    """The algorithm in the last phase of training, for measuring its speed."""
    return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerSteps(Algorithm):
  """Options of algorithms that take optimizer steps on the support set."""

  any_loss: ClassVar[bool] = True

  num_inner_steps: int = option(
    1, "Gradient steps on the support set.", check=at_least(1)
  )
  num_eval_inner_steps: int | None = option(
    None,
    "Gradient steps on the support set at validation and test. Default: as "
    "--num_inner_steps.",
    check=at_least(1),
  )
  inner_optimizer: Literal["sgd", "adam"] = option(
    "sgd",
    "Optimizer of the inner loop: sgd, or adam without momentum (beta1 = 0), as in "
    "Reptile's code.",
  )

  def complete(self) -> None:
    self._set("num_eval_inner_steps", self.num_inner_steps)

  def optimizers(
    self, problem: Problem, rate: float, *, eps_root: float = 1e-8
  ) -> dict[str, Any]:
    """`inner_optimizer`, and under "at_test" the keywords of `adapt` at test.

    Args:
      problem: whose sharpness is used.
      rate: step size of the inner optimizer.
      eps_root: Adam's `eps_root`, above 0 if the inner loop is differentiated.
    """
    if self.inner_optimizer == "adam":
      plain = optax.adam(rate, b1=0.0, eps_root=eps_root)
    else:
      plain = optax.sgd(rate)
    at_test: dict[str, Any] = {"num_steps": self.num_eval_inner_steps}
    sharpness = problem.sharpness
    if sharpness.sharpness not in ("low", "both"):
      return {"inner_optimizer": plain, "at_test": at_test}
    sharp = optax.chain(sharpness.link(), plain)
    if not sharpness.at_test(self):
      at_test["optimizer"] = plain
    return {"inner_optimizer": sharp, "at_test": at_test}

  def cost_of_steps(self, sharpness: "Sharpness") -> tuple[int, int]:
    """Gradients and Hessian-vector products of one inner step."""
    gradients = 2 if sharpness.loops(self)[0] else 1
    return gradients, gradients if sharpness.differentiate_perturbation else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLoop(InnerSteps):
  """Options of algorithms whose inner loop has one step size."""

  inner_lr: float = option(
    0.01,
    "Step size of the inner optimizer, for the MEAN loss over the support set. MAML's "
    "published step sizes belong to a loss summed over the classes: multiply them by "
    "--way.",
    check=positive("usual values lie between 0.0001 and 2, see --help."),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormOptions(Algorithm):
  """The option of algorithms whose inner loop need not adapt normalisation layers."""

  adapt_norm: bool = option(
    False,
    "Let the inner loop change the scale and offset of normalisation layers too. By "
    "default they are only meta-learned, as in the authors' code.",
  )

  def mask(self, problem: Problem) -> Mask | None:
    """The leaves that the inner loop changes, None for all."""
    return all_but_norm if problem.network.has_norm and not self.adapt_norm else None

  def adapts_norm(self) -> bool:
    return self.adapt_norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrderOptions(Algorithm):
  """The option of algorithms whose meta-gradient flows through inner gradients."""

  second_order: Literal["stored", "recomputed", "forward_over_reverse"] = option(
    "stored",
    "How the meta-gradient is computed through inner gradients; results agree up to "
    "rounding. stored keeps everything that the inner steps compute, so its memory "
    "grows with their number; recomputed computes each step again; "
    "forward_over_reverse uses Hessian-vector products. The last two keep one copy of "
    "the parameters per inner step (on a CPU with Python 3.11 only with 11 or more "
    "inner steps).",
    role=Role.MACHINE,
  )

  def leaner(self) -> list[Algorithm]:
    return [self, self.replace(second_order="forward_over_reverse")]

  def remembering(self, loss_fn: LossFn) -> tuple[LossFn, dict[str, Any]]:
    """The loss of the inner loop, and constructor options for the query loss."""
    if self.second_order == "stored":
      return loss_fn, {}
    inner = getattr(memory, self.second_order)(loss_fn)
    return inner, {"query_loss_fn": on_query(loss_fn)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharpness(Options):
  """SAM in either loop of any algorithm that has a gradient there."""

  sharpness: Literal["none", "low", "up", "both"] = option(
    "none",
    "SAM in the inner loop (low, radius --inner_rho), in the outer loop (up, radius "
    "--outer_rho) or in both, with any algorithm that has such a loop. sharp_maml_low, "
    "sharp_maml_up and sharp_maml_both are maml with this option.",
  )
  inner_rho: float = option(
    RHO,
    "Radius of the perturbation in each inner step (sharp_maml_low, sharp_maml_both, "
    "--sharpness=low or both).",
    check=positive("without a perturbation use --algorithm=maml."),
  )
  outer_rho: float = option(
    RHO,
    "Radius of the perturbation of the meta-parameters (sharp_maml_up, "
    "sharp_maml_both, --sharpness=up or both).",
    check=positive("without a perturbation use --algorithm=maml."),
  )
  p: float = option(
    2.0,
    "Norm of the ball that the perturbation lies in, from 1 to inf.",
    check=norm(),
  )
  adaptive: bool = option(False, "Scale the ball by the size of each parameter (ASAM).")
  differentiate_perturbation: bool = option(
    True,
    "Differentiate the meta-gradient through the inner perturbation, as the authors' "
    "code does.",
  )
  sharp_adaptation: bool | None = option(
    None,
    "Perturb the inner steps at validation and test too. Default, as in the authors' "
    "test script: with sharp_maml_low only.",
  )

  def loops(self, algorithm: Algorithm) -> tuple[bool, bool]:
    """Whether SAM is used in the inner loop, and whether in the outer loop."""
    where = algorithm.sharp or self.sharpness
    return where in ("low", "both"), where in ("up", "both")

  def at_test(self, algorithm: Algorithm) -> bool:
    """Whether validation and test take SAM steps; by default only with low."""
    inner, outer = self.loops(algorithm)
    if self.sharp_adaptation is None:
      return inner and not outer
    return inner and self.sharp_adaptation

  def link(self) -> optax.GradientTransformationExtraArgs:
    """SAM's link for the inner optimizer."""
    ascent = sam_ascent(self.inner_rho, p=self.p, adaptive=self.adaptive)
    if not self.differentiate_perturbation:
      ascent = optax.with_extra_args_support(optax.chain(ascent, stop_gradient()))
    return sharpness_aware(ascent)

  def check(self, algorithm: Algorithm) -> None:
    """Checks that the options have an effect with an algorithm.

    Raises:
      ValueError: if one has none; the message names the option and the fix.
    """
    name, asked = algorithm.name, self.sharpness != "none"
    if asked and algorithm.sharp:
      raise ValueError(
        f"--algorithm={name} already determines the sharpness; drop "
        f"--sharpness={self.sharpness}, or use --algorithm=maml"
      )
    if asked and self.sharpness != "up" and not algorithm.has_inner_gradient:
      raise ValueError(
        f"--sharpness={self.sharpness} perturbs inner gradients, and {name} has none; "
        + ("use --sharpness=up" if algorithm.has_outer_gradient else "leave it out")
      )
    if asked and not algorithm.has_outer_gradient:
      raise ValueError(
        f"--sharpness={self.sharpness} perturbs gradients, and {name} takes none; "
        "leave it out"
      )
    for option_name in self.ineffective(algorithm):
      raise ValueError(
        f"--{option_name}={getattr(self, option_name)} has no effect with "
        f"--algorithm={name} --sharpness={self.sharpness}; drop it, or choose "
        "--sharpness=low, up or both"
      )

  def ineffective(self, algorithm: Algorithm) -> dict[str, Any]:
    """Radii that were changed although no loop uses them, with their defaults."""
    read = dict(zip(("inner_rho", "outer_rho"), self.loops(algorithm), strict=True))
    return {n: RHO for n in read if getattr(self, n) != RHO and not read[n]}

  def protocol(self, algorithm: Algorithm) -> dict[str, Any]:
    """The sharpness settings to report with a result."""
    inner, outer = self.loops(algorithm)
    facts: dict[str, Any] = {}
    if inner:
      facts["inner_rho"] = self.inner_rho
    if outer:
      facts["outer_rho"] = self.outer_rho
    if inner or outer:
      facts |= {"p": self.p, "adaptive": self.adaptive}
    if inner:
      facts["differentiate_perturbation"] = self.differentiate_perturbation
      facts["sharp_adaptation"] = self.at_test(algorithm)
    return facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterLoop(Options):
  """The outer optimizer with its schedule and clipping."""

  role: ClassVar[Role] = Role.TRAINING
  outer_optimizer: Literal["adam", "sgd"] = option(
    "adam", "Optimizer of the outer loop."
  )
  outer_lr: float = option(
    1e-3,
    "Step size of the outer optimizer.",
    check=positive("usual values lie between 0.0001 and 2, see --help."),
  )
  outer_schedule: Literal["constant", "cosine", "linear"] = option(
    "constant",
    "How --outer_lr falls to --final_outer_lr over --outer_schedule_steps meta-steps: "
    "cosine, as in MAML++, or linear, as in Reptile.",
  )
  outer_schedule_steps: int | None = option(
    None,
    "Length of the schedule in meta-steps; afterwards the step size stays constant.",
    check=at_least(1),
  )
  final_outer_lr: float = option(
    0.0, "Step size at the end of the schedule of --outer_lr.", check=at_least(0)
  )
  clip_meta_gradient: float | None = option(
    None,
    "Clip every entry of the meta-gradient to +- this value before the outer "
    "optimizer; MAML's code uses 10 on mini-ImageNet. 0: no clipping.",
    check=at_least(0, "0 trains without clipping."),
  )

  def complete(self) -> None:
    if self.outer_schedule != "constant" and self.outer_schedule_steps is None:
      raise ValueError(
        f"--outer_schedule={self.outer_schedule} needs --outer_schedule_steps, such as "
        "60000; it has no default, so that a run can be extended later"
      )

  def optimizer(
    self, sharpness: Sharpness, *, step: optax.GradientTransformation | None = None
  ) -> optax.GradientTransformation:
    """The outer chain: SAM's link, clipping, the optimizer with its schedule.

    Args:
      sharpness: the loops with SAM.
      step: the last link, in place of the optimizer; None for `outer_optimizer`.
    """
    rate: Any = self.outer_lr
    if self.outer_schedule == "cosine":
      final = self.final_outer_lr / self.outer_lr
      rate = optax.cosine_decay_schedule(rate, self.outer_schedule_steps, alpha=final)
    elif self.outer_schedule == "linear":
      rate = optax.linear_schedule(rate, self.final_outer_lr, self.outer_schedule_steps)
    usual = {"adam": optax.adam, "sgd": optax.sgd}[self.outer_optimizer]
    links = [step or usual(rate)]
    if self.clip_meta_gradient:
      links[:0] = [optax.clip(self.clip_meta_gradient)]
    if sharpness.sharpness in ("up", "both"):
      link = sam(sharpness.outer_rho, p=sharpness.p, adaptive=sharpness.adaptive)
      links[:0] = [link]
    return optax.chain(*links) if len(links) > 1 else links[0]

  def schedule(self) -> str | None:
    """How the outer step size falls, in words."""
    if self.outer_schedule == "constant":
      return None
    return (
      f"{self.outer_schedule} to {self.final_outer_lr:g} in {self.outer_schedule_steps}"
    )


def gradient_based(
  problem: Problem, build: Callable[[LossFn], MetaAlgorithm], at_test: dict[str, Any]
) -> Made:
  """An algorithm that differentiates the loss of a plain network.

  Args:
    problem: what it is built for.
    build: `build(loss_fn) -> MetaAlgorithm`, for the loss at one way.
    at_test: keyword arguments of `adapt` at test.

  Returns:
    What `Algorithm.make` returns.

  Example:
    >>> from jsharp.algorithms.fomaml import FOMAML  # `make` there calls it.
    >>> from jsharp.learners import Description, build
    >>> from jsharp.models.mlp import SineNetwork
    >>> learner = build(Description(
    ...   algorithm=FOMAML(num_eval_inner_steps=3), network=SineNetwork(),
    ...   problem="regression", num_outputs=1, input_shape=(1,)))
    >>> learner.made.at_test
    {'num_steps': 3}
  """
  init_fn, apply_fn = problem.functions(problem.module(problem.num_outputs))

  def algorithm(way: int) -> MetaAlgorithm:
    return build(problem.loss_fn(first_outputs(apply_fn, way)))

  return Made(
    params=init_fn(problem.key, problem.inputs),
    algorithm=algorithm,
    predict=functools.partial(first_outputs, apply_fn),
    at_test=at_test,
  )


def constant_cost(gradients: float, outer_is_sharp: bool) -> Phases:
  """A single phase of constant cost; SAM in the outer loop doubles every gradient.

  Args:
    gradients: gradients of one example per task.
    outer_is_sharp: whether SAM is in the outer loop.

  Returns:
    What `Algorithm.phases` returns.

  Example:
    >>> constant_cost(3.0, outer_is_sharp=True)
    [(inf, 6.0)]
  """
  return [(math.inf, 2 * gradients if outer_is_sharp else gradients)]
