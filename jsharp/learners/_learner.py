"""A learner: an algorithm on a network, with its parameters."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsharp import _catalogue, losses
from jsharp._checks import check_count
from jsharp.algorithms import Made, Problem
from jsharp.core.execution import PORTABLE, Execution
from jsharp.learners._description import Description
from jsharp.learners._few_shot_classifier import FewShotClassifier
from jsharp.learners._prediction import Policy
from jsharp.losses import Criterion
from jsharp.types import ApplyFn, Batch, MetaAlgorithm, Params


@dataclasses.dataclass(frozen=True, repr=False)
class Learner:
  """An algorithm with its network and parameters, ready for tasks.

  Created by `build`, `jsharp.load` or a run.

  Attributes:
    description: its description.
    params: the meta-learned parameters, which `algorithm(way).adapt` takes.
    made: the parts that `jsharp.algorithms.Algorithm.make` built.
    criterion: `criterion(outputs, targets) -> (loss, metrics)` of its problem.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.models.mlp import MLPOptions
    >>> learner = build(Description(
    ...   algorithm=ProtoNet(), network=MLPOptions(), num_outputs=2,
    ...   input_shape=(4, 4, 1)))
    >>> support = Batch(jnp.zeros((6, 4, 4, 1)), jnp.arange(6) % 2)
    >>> adapted = learner.adapt(support)
    >>> learner.predict(adapted, jnp.ones((3, 4, 4, 1))).shape
    (3, 2)
  """

  description: Description
  params: Params
  made: Made
  criterion: Criterion

  def algorithm(self, way: int | None = None) -> MetaAlgorithm:
    """The bundle of pure functions for tasks of a given way.

    Args:
      way: classes per task: any number if `description.algorithm.any_way`, otherwise
        at most `description.num_outputs`, the default.
    """
    return self.made.algorithm(self._way(way))

  def apply_fn(self, way: int | None = None) -> ApplyFn:
    """`apply_fn(adapted, inputs, num_statistics=None) -> [n, way]` after adaptation."""
    return self.made.predict(self._way(way))

  def adapt(self, support: Batch, *, way: int | None = None, **options: Any) -> Any:
    """Adapts to the support set of one task, as at test.

    Args:
      support: inputs `[n, *input_shape]` float in [0, 1] for images, and labels `[n]`
        in `[0, way)` or targets `[n, num_outputs]`.
      way: classes of the task, see `algorithm`; `description.num_outputs` if None.
      **options: keyword arguments of `MetaAlgorithm.adapt`, such as `num_steps`, that
        replace those of the description.

    Returns:
      The adapted parameters, for `predict`.

    Raises:
      ValueError: if the inputs have another shape than the learner's, a label is not in
        `[0, way)`, or `way` exceeds the outputs of a linear head.

    Example:
      See `build`.
    """
    self._check(support.inputs)
    self._check_labels(support.targets, way)
    algorithm = self.algorithm(way)
    return algorithm.adapt(self.params, support, **{**self.made.at_test, **options})

  def predict(self, adapted: Any, inputs: Any, *, way: int | None = None) -> jax.Array:
    """Outputs for examples, as one normalisation batch (transductive).

    Args:
      adapted: from `adapt`.
      inputs: `[n, *input_shape]`.
      way: classes of the task, as given to `adapt`.

    Returns:
      `[n, way]` logits, or `[n, num_outputs]` values of a regression.
    """
    self._check(inputs)
    return self.apply_fn(way)(adapted, inputs)

  def classifier(
    self, policy: Policy = "inductive", num_steps: int | None = None
  ) -> FewShotClassifier:
    """The learner as an image classifier with scikit-learn's methods.

    Args:
      policy: "inductive", each image alone; or "transductive", all images of one call
        as one normalisation batch.
      num_steps: inner steps on the examples; None for the learner's own number.

    Returns:
      A classifier without classes; call its `fit`.

    Raises:
      ValueError: if the learner solves a regression, or an argument is invalid.

    Example:
      See `FewShotClassifier`.
    """
    return FewShotClassifier(self, policy, num_steps)

  def export(
    self,
    path: str | os.PathLike[str],
    *,
    way: int | None = None,
    policy: Policy = "inductive",
    num_steps: int | None = None,
    num_support: int | None = None,
    num_images: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  ) -> None:
    """Writes *adapt and predict* as one program that runs with JAX alone.

    The program is `(support images, support labels, images) -> probabilities`, with the
    learner's parameters inside, for any number of support and other images.
    `jax.export.deserialize(path.read_bytes()).call(...)` runs it without jsharp.

    Its arguments are float32 `[num_support, height, width, channels]` in [0, 1], int32
    `[num_support]` in `[0, way)`, and float32 `[num_images, height, width, channels]`;
    its result is float32 `[num_images, way]`. A regression takes float32 targets
    `[num_support, num_outputs]` and returns `[num_images, num_outputs]`.

    `PATH.json`, written next to it, describes inputs and outputs: shapes, classes,
    policy, how images are prepared, the learner's description, versions. JAX can read a
    program for at least six months after it was written.

    Args:
      path: the file of the program, in an existing directory.
      way: classes of a task; all outputs if None.
      policy: "inductive", each image normalised by the support set; or "transductive",
        all images of one call as one normalisation batch.
      num_steps: inner steps; None for the learner's own number.
      num_support: a fixed number of support examples, for a consumer that needs fixed
        shapes; if None, any number with at least one example per class.
      num_images: a fixed number of images, likewise.
      platforms: the platforms that it can run on.

    Raises:
      ModuleNotFoundError: if flatbuffers is missing, which JAX needs to write programs.
      ValueError: if an argument is out of range, or the learner has an operation that
        cannot be exported; the message says which.
      OSError: if a file cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> from jax import export
      >>> from jsharp.algorithms.protonet import ProtoNet
      >>> from jsharp.models.mlp import MLPOptions
      >>> learner = build(Description(
      ...   algorithm=ProtoNet(), network=MLPOptions(), num_outputs=2,
      ...   input_shape=(4, 4, 1)))
      >>> black, white = jnp.zeros((1, 4, 4, 1)), jnp.ones((3, 4, 4, 1))
      >>> with tempfile.TemporaryDirectory() as directory:
      ...   path = pathlib.Path(directory, "learner.jax")
      ...   learner.export(path)
      ...   program = export.deserialize(path.read_bytes())
      >>> support, labels = jnp.concatenate([black, white]), jnp.array([0, 1, 1, 1])
      >>> program.call(support, labels, white).argmax(axis=1).tolist()
      [1, 1, 1]
    """
    from jsharp.learners import _export

    _export.export_learner(
      self.with_execution(PORTABLE),
      path,
      way=way,
      policy=policy,
      num_steps=num_steps,
      num_support=num_support,
      num_images=num_images,
      platforms=platforms,
    )

  def check_way(self, way: int) -> None:
    """Checks that the learner's head has enough outputs for a task.

    Args:
      way: classes of a task.

    Raises:
      ValueError: if it has not; the message names learners for any number of classes.

    Example:
      See `build`.
    """
    about = self.description
    if way > about.num_outputs and not about.algorithm.any_way:
      raise ValueError(
        f"a task has {way} classes, but the head of this {about.algorithm.name} has "
        f"{about.num_outputs} outputs; give fewer classes, train with --way={way}, or "
        f"use a learner for any number of classes ({_any_way()})"
      )

  def inner_steps(self, num_steps: int | None) -> dict[str, int]:
    """The keyword arguments of `adapt` for a number of inner steps.

    Args:
      num_steps: at least 0; None for the learner's own number, without an argument.

    Raises:
      ValueError: if the algorithm takes no inner steps, or the number is invalid.

    Example:
      See `FewShotClassifier`.
    """
    if num_steps is None:
      return {}
    if self.num_eval_steps is None:
      raise ValueError(
        f"num_steps={num_steps}: {self.description.algorithm.name} takes no inner "
        "steps; leave it out"
      )
    return {"num_steps": check_count("num_steps", num_steps, minimum=0)}

  @property
  def num_eval_steps(self) -> int | None:
    """Inner steps at test; None for an algorithm without inner steps."""
    return self.made.at_test.get("num_steps")

  def with_execution(self, execution: Execution) -> "Learner":
    """The same learner with another execution."""
    return build(self.description, execution=execution).replace(self.params)

  def replace(self, params: Params) -> "Learner":
    """The same learner with other parameters."""
    return dataclasses.replace(self, params=params)

  def __reduce__(self) -> tuple[Any, ...]:
    """For pickle and copies: built again from the description."""
    return _rebuilt, (self.description, jax.tree.map(np.asarray, self.params))

  def __repr__(self) -> str:
    """Algorithm, network and inputs; not the parameters."""
    about = self.description
    size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
    return (
      f"Learner({about.algorithm.name} on {about.network.name}, {size:,} numbers, "
      f"inputs {about.input_shape})"
    )

  def _way(self, way: int | None) -> int:
    return self.description.num_outputs if way is None else way

  def _check_labels(self, labels: Any, way: int | None) -> None:
    is_regression = self.description.problem == "regression"
    if is_regression or isinstance(labels, jax.core.Tracer) or not jnp.size(labels):
      return
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
      raise ValueError(
        f"support.targets has dtype {jnp.result_type(labels)}; give integers, the "
        "index of each example's class, counted from 0"
      )
    # NumPy, because inside jit operations of jnp are traced even on concrete arrays.
    numbers = np.asarray(labels)
    limit, low, high = self._way(way), int(numbers.min()), int(numbers.max())
    if low < 0:
      raise ValueError(
        f"support.targets has labels from {low}; number the classes from 0"
      )
    if high >= limit:
      raise ValueError(
        f"support.targets has labels up to {high}, but way is {limit}; pass "
        f"way={high + 1} (with a linear head at most {self.description.num_outputs}), "
        "or number the classes from 0"
      )

  def _check(self, inputs: Any) -> None:
    wanted = self.description.input_shape
    if jnp.shape(inputs)[1:] != wanted:
      raise ValueError(
        f"inputs must be [n, {', '.join(map(str, wanted))}], got "
        f"{list(jnp.shape(inputs))}; resize them to the size of the training images"
      )
    kind = jnp.result_type(inputs)
    if isinstance(inputs, jax.core.Tracer) or not jnp.size(inputs):
      largest = 0.0
    else:
      largest = float(np.max(np.asarray(inputs)))
    is_pixels = len(wanted) == 3
    if not jnp.issubdtype(kind, jnp.floating) or (is_pixels and largest > 2):
      raise ValueError(
        f"inputs has {kind} values up to {largest:g}; give floats, with images in "
        "[0, 1]: divide uint8 by 255"
      )


def _any_way() -> str:
  """The algorithms whose learners support any number of classes."""
  known = _catalogue.outlines("algorithm").values()
  *most, last = [each.name for each in known if getattr(each, "any_way", False)]
  return f"{', '.join(most)} or {last}"


def _rebuilt(description: Description, params: Params) -> Learner:
  return build(description).replace(jax.tree.map(jnp.asarray, params))


def build(
  description: Description, *, seed: int = 0, execution: Execution | None = None
) -> Learner:
  """Builds a learner from its description, with initial parameters.

  Args:
    description: the description.
    seed: the seed of the initial parameters.
    execution: how it is computed; `Execution()` if None.

  Returns:
    The learner, with initial `params`.

  Raises:
    ValueError: if the network does not fit the inputs, or the parts do not fit
      together.

  Example:
    >>> from jsharp.algorithms.maml import MAML
    >>> from jsharp.models.mlp import SineNetwork
    >>> learner = build(Description(
    ...   algorithm=MAML(), network=SineNetwork(), problem="regression",
    ...   num_outputs=1, input_shape=(1,)))
    >>> x = jnp.ones((5, 1))
    >>> adapted = learner.adapt(Batch(x, x))
    >>> learner.predict(adapted, x).shape
    (5, 1)
  """
  is_regression = description.problem == "regression"
  criterion = losses.squared_error if is_regression else losses.cross_entropy
  shape = (1, description.num_outputs) if is_regression else (1,)
  made = description.algorithm.make(
    Problem(
      network=description.network,
      num_outputs=description.num_outputs,
      inputs=jnp.zeros((1, *description.input_shape), jnp.float32),
      targets=jnp.zeros(shape, jnp.float32 if is_regression else jnp.int32),
      criterion=criterion,
      key=jax.random.key(seed),
      sharpness=description.sharpness,
      outer=description.outer,
      precision=description.precision,
      execution=execution or Execution(),
    )
  )
  if not isinstance(made, Made):
    raise ValueError(
      f"{type(description.algorithm).__name__}.make returned {made!r}; return a "
      "jsharp.algorithms.Made"
    )
  algorithm = made.algorithm(description.num_outputs)
  params = algorithm.init(made.params).params
  return Learner(description, params, made, criterion)
