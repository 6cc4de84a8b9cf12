"""Kinds of few-shot tasks: shape, label noise and distortion."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from jsharp.data.corruption import with_distortion, with_label_noise
from jsharp.data.dataset import Dataset
from jsharp.data.episodes import check_task_shape, sample_task
from jsharp.data.varied_tasks import check_varied_shape, sample_varied_task
from jsharp.options import (
  Options,
  Role,
  at_least,
  between,
  each,
  finite,
  interval,
  option,
)
from jsharp.types import Task

NEUTRAL = {"rotation": 0.0, "shear": 0.0, "scale": 1.0}
"""The kinds of distortion, and the values without effect."""

_COUNT = at_least(1)
_COUNTS = "must be integers of at least 1, such as 5,10."
_RANGE = "must be LOW,HIGH with LOW <= HIGH, such as 0.8,1.2."
_NUMBERS = "must be finite numbers, such as 0,30,60."


class Kind(NamedTuple):
  """One kind of task.

  Attributes:
    name: the settings that distinguish it; empty for the kind that a run is judged by.
    shape: `way`, `shot` and `query_shot`.
    support_label_noise: fraction of wrong support labels.
    query_label_noise: fraction of wrong query labels.
    distortion: `(low, high)` for each of rotation, shear and scale.
    min_way: for varied tasks with unbalanced support sets: the smallest number of
      classes, up to `way`; None for tasks of a fixed shape.
    domain: for varied tasks: the only domain; None for any domain.
  """

  name: dict[str, Any]
  shape: dict[str, int]
  support_label_noise: float
  query_label_noise: float
  distortion: dict[str, tuple[float, float]]
  min_way: int | None = None
  domain: int | None = None

  def check(self, dataset: Dataset) -> None:
    """Checks that a dataset is large enough for such tasks.

    Raises:
      ValueError: see `jsharp.data.check_task_shape`; or if tasks of a fixed shape would
        mix the classes of several domains.
    """
    if self.min_way is not None:
      check_varied_shape(dataset, **self.varied)
    elif len(dataset.domains) > 1:
      names = ", ".join(name for name, _ in dataset.domains)
      way = self.shape["way"]
      raise ValueError(
        f"tasks of the domains {names} need --min_way, without which a task would mix "
        f"their classes; --min_way={way} gives every task {way} classes of one domain"
      )
    else:
      check_task_shape(dataset, **self.shape)

  @property
  def varied(self) -> dict[str, int]:
    """The shape of varied tasks."""
    way, shot, query_shot = (self.shape[n] for n in ("way", "shot", "query_shot"))
    return {
      "way": way,
      "min_way": self.min_way or way,
      "num_support": way * shot,
      "num_query": way * query_shot,
    }

  def sampler(self) -> Callable[..., Task]:
    """`sample(key, dataset) -> Task`."""
    sample: Callable[..., Task] = functools.partial(sample_task, **self.shape)  # type: ignore[arg-type]
    if self.min_way is not None:
      sample = functools.partial(
        sample_varied_task,
        domain=self.domain,
        **self.varied,  # type: ignore[arg-type]
      )
    if self.support_label_noise or self.query_label_noise:
      sample = with_label_noise(
        sample,
        way=self.shape["way"] if self.min_way is None else None,
        support_rate=self.support_label_noise,
        query_rate=self.query_label_noise,
      )
    if any(span != (NEUTRAL[name],) * 2 for name, span in self.distortion.items()):
      sample = with_distortion(sample, **self.distortion)
    return sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Options):
  """Few-shot tasks of images: in training, at validation and test."""

  role: ClassVar[Role] = Role.TESTING

  way: int = option(
    5, "Classes per task.", check=at_least(2, "a task needs at least 2 classes.")
  )
  min_way: int | None = option(
    None,
    "Draw tasks of varying way with unbalanced support sets, as in Meta-Dataset: from "
    "--min_way to --way classes, --way times --shot support examples in random "
    "proportions, --way times --query_shot query examples. Default: all tasks have the "
    "same shape.",
    check=at_least(2, "a task needs at least 2 classes."),
    added=True,
  )
  shot: int = option(1, "Support examples per class and task.", check=_COUNT)
  query_shot: int | None = option(
    None,
    "Query examples per class and task. In classification the query set is also one "
    "normalisation batch, so this number changes the result. Default: as --shot.",
    check=_COUNT,
    role=Role.TRAINING,
  )
  eval_query_shot: int | None = option(
    None,
    "Query examples per class at validation and test. Default: as --query_shot.",
    check=_COUNT,
  )
  val_query_shot: int | None = option(
    None,
    "Query examples per class at validation. More of them measure each task better, so "
    "chance decides less about the checkpoint that is tested. Default: as at test.",
    check=_COUNT,
    added=True,
  )
  train_way: tuple[int, ...] | None = option(
    None,
    "Classes per task in training. With several numbers, as in 5,10,20, every "
    "meta-step draws one of them. Default: as --way.",
    check=each(_COUNT, _COUNTS),
    role=Role.TRAINING,
  )
  train_shot: tuple[int, ...] | None = option(
    None,
    "Support examples per class and task in training. With several numbers, as in "
    "5,10,20, every meta-step draws one of them. Default: as --shot.",
    check=each(_COUNT, _COUNTS),
    role=Role.TRAINING,
  )
  eval_way: tuple[int, ...] | None = option(
    None,
    "Additional values of --way for the test, as in 5,20; each is reported separately.",
    check=each(_COUNT, _COUNTS),
    shared=False,
  )
  eval_shot: tuple[int, ...] | None = option(
    None,
    "Additional values of --shot for the test, as in 1,5; each is reported separately.",
    check=each(_COUNT, _COUNTS),
    shared=False,
  )
  support_label_noise: float = option(
    0.0,
    "Fraction of wrong labels in the support sets, in training and at test.",
    check=between(0, 1, "0.2 is 20 percent."),
  )
  query_label_noise: float = option(
    0.0,
    "Fraction of wrong labels in the query sets in training; at test they are always "
    "correct.",
    check=between(0, 1, "0.2 is 20 percent."),
    role=Role.TRAINING,
  )
  eval_support_label_noise: tuple[float, ...] | None = option(
    None,
    "Additional fractions of wrong support labels for the test, as in 0,0.2,0.4; each "
    "is reported separately.",
    check=each(between(0, 1), "must be fractions from 0 to 1."),
    shared=False,
  )
  rotation: tuple[float, ...] | None = option(
    None,
    "LOW,HIGH: rotate all images of a task by the same angle in degrees, drawn "
    "uniformly for each task, as in -20,20. In training, validation and test.",
    check=interval(_RANGE),
  )
  eval_rotation: tuple[float, ...] | None = option(
    None,
    "Additional rotations for the test, as in 0,30,60; each is reported separately.",
    check=each(finite(), _NUMBERS),
    shared=False,
  )
  shear: tuple[float, ...] | None = option(
    None,
    "LOW,HIGH: shear all images of a task by the same amount in columns per row, drawn "
    "uniformly for each task. In training, validation and test.",
    check=interval(_RANGE),
  )
  eval_shear: tuple[float, ...] | None = option(
    None,
    "Additional shears for the test; each is reported separately.",
    check=each(finite(), _NUMBERS),
    shared=False,
  )
  scale: tuple[float, ...] | None = option(
    None,
    "LOW,HIGH: scale all images of a task by the same factor, drawn uniformly for each "
    "task, as in 0.8,1.2. In training, validation and test.",
    check=interval(_RANGE),
  )
  eval_scale: tuple[float, ...] | None = option(
    None,
    "Additional scales for the test; each is reported separately.",
    check=each(finite(), _NUMBERS),
    shared=False,
  )

  def complete(self) -> None:
    self._set("query_shot", self.shot)
    self._set("eval_query_shot", self.query_shot)
    if self.min_way is not None:
      if self.min_way > self.way:
        raise ValueError(
          f"--min_way={self.min_way} is above --way={self.way}, the largest number of "
          "classes of a task; lower it"
        )
      for name in ("train_way", "train_shot", "eval_way", "eval_shot"):
        if getattr(self, name) is not None:
          raise ValueError(
            f"--min_way={self.min_way} varies the way and shot of every task; leave "
            f"--{name} out"
          )
    for name, neutral in NEUTRAL.items():  # A range without effect becomes None.
      if getattr(self, name) == (neutral, neutral):
        object.__setattr__(self, name, None)

  def training(self) -> list[Kind]:
    """The kinds of task in training, at least one."""
    return [
      Kind(
        name={"way": way, "shot": shot},
        shape={"way": way, "shot": shot, "query_shot": self.query_shot or shot},
        support_label_noise=self.support_label_noise,
        query_label_noise=self.query_label_noise,
        distortion=self._distortion(),
        min_way=self.min_way,
      )
      for way, shot in itertools.product(
        self.train_way or (self.way,), self.train_shot or (self.shot,)
      )
    ]

  def validation(self) -> Kind:
    """The kind of task at validation."""
    usual = self.test()
    query_shot = self.val_query_shot or usual.shape["query_shot"]
    return usual._replace(shape={**usual.shape, "query_shot": query_shot})

  def test(self) -> Kind:
    """The kind of task at test."""
    query_shot = self.eval_query_shot or self.shot
    return Kind(
      name={},
      shape={"way": self.way, "shot": self.shot, "query_shot": query_shot},
      support_label_noise=self.support_label_noise,
      query_label_noise=0.0,
      distortion=self._distortion(),
      min_way=self.min_way,
    )

  def variations(self) -> Iterator[Kind]:
    """The additional kinds of task in the test."""
    usual = self.test()
    if self.eval_way or self.eval_shot:
      for way, shot in itertools.product(
        self.eval_way or (self.way,), self.eval_shot or (self.shot,)
      ):
        shape = {**usual.shape, "way": way, "shot": shot}
        yield usual._replace(name={"way": way, "shot": shot}, shape=shape)
    for rate in self.eval_support_label_noise or ():
      yield usual._replace(name={"support_label_noise": rate}, support_label_noise=rate)
    for kind in NEUTRAL:
      for value in getattr(self, f"eval_{kind}") or ():
        distortion = {**usual.distortion, kind: (value, value)}
        yield usual._replace(name={kind: value}, distortion=distortion)

  def by_domain(self, dataset: Dataset) -> Iterator[Kind]:
    """Varied tasks of each single domain, if there are several domains."""
    if self.min_way is not None:
      for number, (name, _) in enumerate(dataset.domains):
        yield self.test()._replace(name={"domain": name}, domain=number)

  def check(self, datasets: Mapping[str, Dataset]) -> None:
    """Checks that the datasets are large enough for all kinds of task.

    Args:
      datasets: the splits "train", "val" and "test".

    Raises:
      ValueError: see `jsharp.data.check_task_shape`.
    """
    usual = self.test()
    for split, kinds in (
      ("train", self.training()),
      ("val", [self.validation()]),
      ("test", [usual, *self.variations()]),
    ):
      for kind in kinds:
        kind.check(datasets[split])

  @property
  def largest_way(self) -> int:
    """The number of outputs that a network with a linear head needs."""
    return max([self.way, *(self.train_way or ()), *(self.eval_way or ())])

  def protocol(self) -> dict[str, Any]:
    """The facts about the tasks to report with a result."""
    kinds, usual = self.training(), self.test()
    facts: dict[str, Any] = {
      "way": self.way,
      "shot": self.shot,
      "eval_query_shot": self.eval_query_shot,
      "query_shot": self.query_shot,
    }
    if self.val_query_shot is not None:
      facts["val_query_shot"] = self.val_query_shot
    if self.min_way is not None:
      facts["way"] = f"{self.min_way} to {self.way}, unbalanced"
    if [kind.name for kind in kinds] != [{"way": self.way, "shot": self.shot}]:
      facts["in training"] = " or ".join(
        f"{kind.shape['way']}-way {kind.shape['shot']}-shot" for kind in kinds
      )
    for name in ("support_label_noise", "query_label_noise"):
      if rate := getattr(self, name):
        facts[name] = rate
    for name, span in usual.distortion.items():
      if span != (NEUTRAL[name],) * 2:
        facts[name] = f"{span[0]:g} to {span[1]:g}"
    return facts

  def examples(self) -> list[tuple[int, int]]:
    """Support and query examples of each kind of training task."""
    return [
      (k.shape["way"] * k.shape["shot"], k.shape["way"] * k.shape["query_shot"])
      for k in self.training()
    ]

  def _distortion(self) -> dict[str, tuple[float, float]]:
    ranges = {}
    for name, neutral in NEUTRAL.items():
      low, high = getattr(self, name) or (neutral, neutral)
      ranges[name] = (low, high)
    return ranges
