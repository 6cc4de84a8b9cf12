"""Measuring a trained learner on a fixed list of tasks."""

import functools
from typing import Any, Literal, get_args

import numpy as np

from jsharp import normalization
from jsharp._checks import check_choice
from jsharp.core.execution import Execution
from jsharp.data.tasks import Kind
from jsharp.evaluation.side_by_side import fixed_tasks
from jsharp.evaluation.tasks import evaluate, evaluator
from jsharp.learners import Learner
from jsharp.normalization import query_loss

Policy = Literal["transductive", "support_statistics", "per_query"]
"""Which examples' statistics normalise a query example, see `jsharp.normalization`."""


def measure_learner(
  learner: Learner,
  kind: Kind,
  dataset: Any,
  *,
  num_tasks: int = 600,
  seed: int = 0,
  policy: Policy = "transductive",
  num_steps: int | None = None,
  execution: Execution = Execution(),
) -> dict[str, np.ndarray]:
  """Measures a learner on the first tasks of a fixed list.

  The list is the same as in a run's test. It depends only on the dataset, the kind of
  task and the seed, so with the same arguments two learners are measured on the same
  tasks.

  Args:
    learner: the learner to measure.
    kind: the kind of task, such as `jsharp.data.tasks.Tasks(way=5, shot=1).test()`.
    dataset: a `jsharp.data.Dataset` with images of the learner's shape.
    num_tasks: the number of tasks; 600 in the papers.
    seed: the seed of the list.
    policy: which examples' statistics normalise a query example.
    num_steps: inner steps; None for the learner's own number.
    execution: how it is computed.

  Returns:
    "loss" and "accuracy", each `[num_tasks]`.

  Raises:
    ValueError: if the tasks have more classes than the learner's head has outputs, the
      dataset is too small for such tasks, or an argument is invalid.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.data import characters
    >>> from jsharp.data.tasks import Tasks
    >>> from jsharp.learners import Description, build
    >>> from jsharp.models.mlp import MLPOptions
    >>> learner = build(Description(
    ...   algorithm=ProtoNet(), network=MLPOptions(), num_outputs=2,
    ...   input_shape=(8, 8, 1)))
    >>> dataset = characters.load(size=8)["test"]
    >>> kind = Tasks(way=3, query_shot=2).test()
    >>> measure_learner(learner, kind, dataset, num_tasks=4)["accuracy"].shape
    (4,)
  """
  check_choice("policy", policy, get_args(Policy))
  way = kind.shape["way"]
  learner.check_way(way)
  kind.check(dataset)
  options = learner.inner_steps(num_steps)
  predict = getattr(normalization, policy)(learner.apply_fn(way))
  adapt = functools.partial(
    learner.algorithm(way).adapt, **{**learner.made.at_test, **options}
  )
  return evaluate(
    evaluator(adapt, query_loss(predict, learner.criterion), execution=execution),
    learner.params,
    fixed_tasks(kind, "test", seed=seed),
    dataset,
    num_tasks=num_tasks,
    execution=execution,
  )
