"""The differences between few-shot runs and ordinary runs in a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jsharp.evaluation.budget import UNITS, Budget, gradients_per_task

if TYPE_CHECKING:
  from jsharp.training.runs import MetaRun, OrdinaryRun


class TaskRuns:
  """Runs that meta-learn: their length is a number of meta-steps."""

  units = UNITS
  length = "num_steps"
  tested = "test tasks"
  costs = ("meta-steps", "tasks per step", "example gradients per task", "tasks/s")

  @staticmethod
  def amount(run: MetaRun, budget: Budget, tasks_per_second: float | None) -> int:
    """The meta-steps that a budget pays for.

    Raises:
      ValueError: if it pays for less than one, or the algorithm defines no cost.
    """
    if not run.algorithm.meta_learns:
      return 1
    return budget.num_steps(
      run.phases(),
      num_tasks=run.training.num_tasks,
      tasks_per_second=tasks_per_second,
    )

  @staticmethod
  def flags(num_steps: int, validations: int, seeds: Sequence[int]) -> dict[str, int]:
    """The flags of a run of this length."""
    every = max(1, num_steps // validations)
    return {"num_seeds": len(seeds), "num_steps": num_steps, "eval_every": every}

  @staticmethod
  def num_tested(run: MetaRun, results: Sequence[Mapping[str, Any]]) -> int:
    """The number of test tasks."""
    return run.testing.eval_tasks

  @staticmethod
  def cells(
    run: MetaRun, num_steps: int, results: Sequence[Mapping[str, Any]]
  ) -> list[str]:
    """The entries of `costs`."""
    return [
      f"{num_steps:,}",
      str(run.training.num_tasks),
      f"{gradients_per_task(run.phases(), num_steps):g}",
      f"{_mean(results, 'tasks_per_second'):.1f}",
    ]


class OrdinaryRuns:
  """Runs of ordinary training: their length is a number of epochs.

  A budget in "epochs" is a number of passes over the training images. A budget in
  "gradient_epochs" counts the gradients of each image, two for a step of SAM, so that
  200 epochs of SAM and 400 of SGD cost the same.
  """

  units = ("epochs", "gradient_epochs")
  length = "num_epochs"
  tested = "test images"
  costs = ("epochs", "batch size", "gradients per image", "images/s")

  @classmethod
  def amount(cls, run: OrdinaryRun, budget: Budget, rate: float | None = None) -> int:
    """The number of whole epochs that a budget pays for.

    Raises:
      ValueError: if it pays for less than one.
    """
    epochs = int(budget.amount)
    if budget.unit == "gradient_epochs":
      # Costs grow with every epoch, by at least one gradient per image.
      low, high = 0, epochs
      while low < high:
        middle = (low + high + 1) // 2
        if cls.gradients(run, middle) <= budget.amount:
          low = middle
        else:
          high = middle - 1
      epochs = low
    if epochs < 1:
      raise ValueError(
        f"the budget of {budget.amount:g} {budget.unit} does not pay for one epoch; "
        "raise it"
      )
    return epochs

  @staticmethod
  def gradients(run: OrdinaryRun, num_epochs: int) -> float:
    """Gradients per training image in a number of epochs."""
    fine = 1000  # Steps per epoch, since SAM may start within an epoch.
    counted = run.algorithm.num_gradients(num_epochs * fine, steps_per_epoch=fine)
    return counted / fine

  @staticmethod
  def flags(num_epochs: int, validations: int, seeds: Sequence[int]) -> dict[str, int]:
    """The flags of a run of this length."""
    return {"num_epochs": num_epochs, "eval_every": max(1, num_epochs // validations)}

  @staticmethod
  def num_tested(run: OrdinaryRun, results: Sequence[Mapping[str, Any]]) -> int:
    """The number of test images."""
    return int(results[0]["num_eval_examples"])

  @classmethod
  def cells(
    cls, run: OrdinaryRun, num_epochs: int, results: Sequence[Mapping[str, Any]]
  ) -> list[str]:
    """The entries of `costs`."""
    return [
      f"{num_epochs:,}",
      str(run.training.batch_size),
      f"{cls.gradients(run, num_epochs):g}",
      f"{_mean(results, 'examples_per_second'):.1f}",
    ]


Kind = type[TaskRuns] | type[OrdinaryRuns]


def _mean(results: Sequence[Mapping[str, Any]], name: str) -> float:
  return sum(result[name] for result in results) / len(results)


def kind_of(experiment: Any) -> Kind:
  """The kind of an experiment's runs, judged by its program's choices."""
  kinds = {choice.kind for choice in experiment.program.choices().values()}
  return TaskRuns if "algorithm" in kinds else OrdinaryRuns
