"""The tasks of the image experiments: their shapes, their noise, their distortion."""

import functools
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

from experiments.task_flags import DISTORTIONS, counts, numbers
from jsharp.data import check_task_shape, sample_task
from jsharp.data.corruption import with_distortion, with_label_noise
from jsharp.types import Task


class Kind(NamedTuple):
  """One kind of task.

  Attributes:
    name: what sets it apart, empty for the kind that a run is judged by.
    shape: `way`, `shot` and `query_shot`.
    support_label_noise: share of wrong support labels.
    query_label_noise: share of wrong query labels.
    distortion: `(low, high)` for each of rotation, shear and scale.
  """

  name: dict[str, Any]
  shape: dict[str, int]
  support_label_noise: float
  query_label_noise: float
  distortion: dict[str, tuple[float, float]]

  def check(self, dataset: Any) -> None:
    """Refuses a dataset that cannot give such tasks.

    Raises:
      ValueError: see `jsharp.data.check_task_shape`.
    """
    check_task_shape(dataset, **self.shape)

  def sampler(self) -> Callable[..., Any]:
    """`sample(key, dataset) -> Task`."""
    sample: Callable[..., Task] = functools.partial(sample_task, **self.shape)  # type: ignore[arg-type]
    if self.support_label_noise or self.query_label_noise:
      sample = with_label_noise(
        sample,
        way=self.shape["way"],
        support_rate=self.support_label_noise,
        query_rate=self.query_label_noise,
      )
    if any(span != (DISTORTIONS[name],) * 2 for name, span in self.distortion.items()):
      sample = with_distortion(sample, **self.distortion)
    return sample


def training_kinds(settings: SimpleNamespace) -> list[Kind]:
  """The kinds of task that training draws from, at least one."""
  ways = counts(settings.train_way) or [settings.way]
  shots = counts(settings.train_shot) or [settings.shot]
  return [
    Kind(
      name={"way": way, "shot": shot},
      shape={"way": way, "shot": shot, "query_shot": settings.query_shot},
      support_label_noise=settings.support_label_noise,
      query_label_noise=settings.query_label_noise,
      distortion=_distortion(settings),
    )
    for way, shot in itertools.product(ways, shots)
  ]


def test_kind(settings: SimpleNamespace) -> Kind:
  """The kind of task that validation and test measure."""
  return Kind(
    name={},
    shape={
      "way": settings.way,
      "shot": settings.shot,
      "query_shot": settings.eval_query_shot,
    },
    support_label_noise=settings.support_label_noise,
    query_label_noise=0.0,
    distortion=_distortion(settings),
  )


def variations(settings: SimpleNamespace) -> Iterator[Kind]:
  """The further kinds of task that the chosen checkpoint is tested on."""
  usual = test_kind(settings)
  if settings.eval_way or settings.eval_shot:
    for way, shot in itertools.product(
      counts(settings.eval_way) or [settings.way],
      counts(settings.eval_shot) or [settings.shot],
    ):
      shape = {**usual.shape, "way": way, "shot": shot}
      yield usual._replace(name={"way": way, "shot": shot}, shape=shape)
  for rate in numbers(settings.eval_support_label_noise):
    yield usual._replace(name={"support_label_noise": rate}, support_label_noise=rate)
  for kind in DISTORTIONS:
    for value in numbers(getattr(settings, f"eval_{kind}")):
      distortion = {**usual.distortion, kind: (value, value)}
      yield usual._replace(name={kind: value}, distortion=distortion)


def largest_way(settings: SimpleNamespace) -> int:
  """The outputs that a model with a linear head needs."""
  return max([settings.way, *counts(settings.train_way), *counts(settings.eval_way)])


def protocol(settings: SimpleNamespace) -> dict[str, Any]:
  """What a reader of the figures must know of the tasks."""
  kinds = training_kinds(settings)
  usual = test_kind(settings)
  facts: dict[str, Any] = {**usual.shape}
  facts["eval_query_shot"] = facts.pop("query_shot")
  facts["query_shot"] = settings.query_shot
  if [kind.name for kind in kinds] != [{"way": settings.way, "shot": settings.shot}]:
    facts["in training"] = " or ".join(
      f"{kind.shape['way']}-way {kind.shape['shot']}-shot" for kind in kinds
    )
  for name in ("support_label_noise", "query_label_noise"):
    if rate := getattr(settings, name):
      facts[name] = rate
  for name, span in usual.distortion.items():
    if span != (DISTORTIONS[name],) * 2:
      facts[name] = f"{span[0]:g} to {span[1]:g}"
  return facts


def _distortion(settings: SimpleNamespace) -> dict[str, tuple[float, float]]:
  ranges = {}
  for name, neutral in DISTORTIONS.items():
    low, high = numbers(getattr(settings, name)) or (neutral, neutral)
    ranges[name] = (low, high)
  return ranges
