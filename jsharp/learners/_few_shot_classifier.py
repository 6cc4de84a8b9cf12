"""A trained learner as an image classifier with scikit-learn's methods."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jsharp import tree
from jsharp._checks import check_choice
from jsharp.core.execution import PORTABLE
from jsharp.data import pictures
from jsharp.data.episodes import UNIT
from jsharp.learners._export import Exportable, ToExport
from jsharp.learners._prediction import Policy, naming
from jsharp.types import Batch, Params

if TYPE_CHECKING:
  from jsharp.learners._learner import Learner

_BUCKETS = (1, 8, 64)
"""Batch sizes of predictions: one program is compiled for each."""


class _Programs(NamedTuple):
  """The compiled functions for one number of classes.

  Attributes:
    adapt: `adapt(params, support) -> (adapted, known)`.
    predict: `predict(adapted, known, images) -> [n, way]` probabilities.
  """

  adapt: Callable[[Params, Batch], tuple[Any, Any]]
  predict: Callable[[Any, Any, jax.Array], jax.Array]


class _Fitted(NamedTuple):
  """The result of `fit`."""

  classes: list[Hashable]
  num_examples: int
  adapted: Any
  known: Any


class NotFittedError(ValueError, AttributeError):
  """A classifier was used before `fit`; like scikit-learn's error of this name."""


class FewShotClassifier(Exportable):
  """Learns new classes from a few images of each, and classifies further images.

  Created by `Learner.classifier`. `fit` adapts the learner to the examples; `predict`
  classifies images. Both prepare images like the learner's training images: size,
  channels and, for handwriting, light ink on a dark ground. See
  `jsharp.data.pictures.read` for the kinds of images that are accepted.

  Under the policy "inductive" every image is normalised by the statistics of the
  examples, so an answer does not depend on the other images of the call. Under
  "transductive" all images of one call are one normalisation batch, as in the papers'
  tables, which is more accurate for many images that are evenly distributed over the
  classes.

  The first `fit` with some number of examples and classes compiles, and so does the
  first `predict`. Inductive predictions are padded to 1, 8 or 64 images, so at most
  three programs are compiled.

  Attributes:
    learner: the learner; its parameters do not change.
    policy: "inductive" or "transductive".
    num_steps: inner steps of `fit`; None for the learner's own number.

  Example:
    >>> from jsharp.algorithms.protonet import ProtoNet
    >>> from jsharp.learners import Description, build
    >>> from jsharp.models.mlp import MLPOptions
    >>> learner = build(Description(
    ...   algorithm=ProtoNet(), network=MLPOptions(), num_outputs=2,
    ...   input_shape=(4, 4, 1)))
    >>> black, white = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    >>> classifier = learner.classifier().fit([black[0], white[0]], ["night", "day"])
    >>> classifier.classes_.tolist()
    ['day', 'night']
    >>> classifier.predict(black).tolist(), classifier.predict_proba(black).shape
    (['night'], (1, 2))
  """

  def __init__(
    self,
    learner: "Learner",
    policy: Policy = "inductive",
    num_steps: int | None = None,
  ):
    if learner.description.problem != "classification":
      raise ValueError(
        f"the learner solves a {learner.description.problem}, but a classifier needs a "
        "learner that was trained on classes; load another one"
      )
    self.num_steps = learner.inner_steps(num_steps).get("num_steps")
    self.learner = learner
    check_choice("policy", policy, get_args(Policy))
    self.policy = policy
    self._programs: dict[int, _Programs] = {}
    self._fitted: _Fitted | None = None

  def fit(self, images: Any, labels: Iterable[Hashable] | None = None) -> Self:
    """Adapts to examples of the classes to be distinguished.

    Args:
      images: the examples, any number per class: see `jsharp.data.pictures.read`. Or
        the path of a directory with one folder of images per class; `labels` is then
        left out.
      labels: the class of each example, any hashable value.

    Returns:
      The classifier itself.

    Raises:
      ValueError: for fewer than two classes, more classes than the learner's head has
        outputs, different numbers of labels and images, a label that is NaN, images
        that cannot be read, or an adaptation that ends in NaN.
      FileNotFoundError: if a file or directory is missing.

    Example:
      See `FewShotClassifier`.
    """
    pixels, named = self._examples(images, labels)
    classes = _sorted_classes(named)
    if len(classes) < 2:
      raise ValueError(
        f"all examples belong to the class {classes[0]!r}; give examples of at least 2 "
        "classes"
      )
    self.learner.check_way(len(classes))
    number = {name: index for index, name in enumerate(classes)}
    targets = np.array([number[name] for name in named], np.int32)
    support = Batch(jnp.asarray(_floats(pixels)), jnp.asarray(targets))
    programs = self._programs_for(len(classes))
    adapted, known = programs.adapt(self.learner.params, support)
    if not tree.is_finite(adapted):
      raise ValueError(
        "adaptation to the examples ended in NaN or infinity; "
        + (
          "pass a smaller num_steps, or use another learner"
          if tree.is_finite(self.learner.params)
          else "the learner's parameters are not finite: its training has diverged"
        )
      )
    self._fitted = _Fitted(classes, len(named), adapted, known)
    return self

  def predict(self, images: Any) -> np.ndarray:
    """The most probable class of each image.

    Args:
      images: see `jsharp.data.pictures.read`.

    Returns:
      `[n]` labels, as they were given to `fit`.

    Raises:
      NotFittedError: before `fit`.
      ValueError: if images cannot be read; the message lists all of them.

    Example:
      See `FewShotClassifier`.
    """
    return self.classes_[self.predict_proba(images).argmax(axis=1)]

  def predict_proba(self, images: Any) -> np.ndarray:
    """The probability of each class for each image.

    Args:
      images: see `jsharp.data.pictures.read`.

    Returns:
      `[n, way]` float32, in the order of `classes_`; each row sums to 1.

    Raises:
      ValueError: as `predict` does.

    Example:
      See `FewShotClassifier`.
    """
    fitted = self._after_fit()
    pixels = pictures.read(images, self.learner.description.looks)
    way = len(fitted.classes)
    predict = self._programs_for(way).predict
    if self.policy == "transductive":
      groups, sizes = [pixels] if len(pixels) else [], [len(pixels)]
    else:
      groups = [
        pixels[i : i + _BUCKETS[-1]] for i in range(0, len(pixels), _BUCKETS[-1])
      ]
      sizes = [next(size for size in _BUCKETS if size >= len(g)) for g in groups]
    found = [np.zeros((0, way), np.float32)]
    for group, size in zip(groups, sizes, strict=False):
      padded = np.zeros((size, *pixels.shape[1:]), np.float32)
      padded[: len(group)] = _floats(group)
      rows = predict(fitted.adapted, fitted.known, jnp.asarray(padded))
      found.append(np.asarray(rows)[: len(group)])
    return np.concatenate(found)

  def score(self, images: Any, labels: Iterable[Hashable] | None = None) -> float:
    """The accuracy on labelled images.

    Args:
      images: as in `fit`.
      labels: as in `fit`.

    Returns:
      The accuracy, from 0 to 1.

    Raises:
      ValueError: as `predict` does, or if there are no images.

    Example:
      See `FewShotClassifier`.
    """
    self._after_fit()
    pixels, named = self._examples(images, labels)
    found = self.predict(pixels).tolist()
    return float(np.mean([a == b for a, b in zip(found, named, strict=True)]))

  @property
  def classes_(self) -> np.ndarray:
    """`[way]` labels, sorted if possible, otherwise in the order of the examples."""
    classes = self._after_fit().classes
    kinds = {type(name) for name in classes}
    if len(kinds) == 1 and kinds <= {str, bool, int, float, np.datetime64}:
      found = np.array(classes)
      if list(found) == classes:  # Integers may be too large for NumPy.
        return found
    found = np.empty(len(classes), object)
    for index, name in enumerate(classes):  # A tuple is a single label too.
      found[index] = name
    return found

  @property
  def num_examples(self) -> int:
    """The number of examples given to `fit`."""
    return self._after_fit().num_examples

  def get_params(self, deep: bool = True) -> dict[str, Any]:
    """The arguments of the classifier, for scikit-learn."""
    del deep
    return {
      "learner": self.learner,
      "policy": self.policy,
      "num_steps": self.num_steps,
    }

  def set_params(self, **params: Any) -> Self:
    """Changes the arguments of the classifier, and forgets its classes."""
    self.__init__(**{**self.get_params(), **params})  # type: ignore[misc]
    return self

  def __getstate__(self) -> dict[str, Any]:
    """For pickle: leaves out compiled programs."""
    return {**self.__dict__, "_programs": {}}

  def __sklearn_clone__(self) -> "FewShotClassifier":
    """A copy without classes, which shares compiled programs."""
    clone = FewShotClassifier(**self.get_params())
    clone._programs = self._programs
    return clone

  def __sklearn_tags__(self) -> Any:
    """The tags that scikit-learn checks before it uses a classifier."""
    from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

    return Tags(
      estimator_type="classifier",
      target_tags=TargetTags(required=True),
      classifier_tags=ClassifierTags(),
      input_tags=InputTags(three_d_array=True),
    )

  def __sklearn_is_fitted__(self) -> bool:
    """Whether `fit` was called."""
    return self._fitted is not None

  def __repr__(self) -> str:
    """The learner's algorithm and network, and the classes after `fit`."""
    about = self.learner.description
    known = f", {len(self._fitted.classes)} classes" if self._fitted else ""
    return (
      f"FewShotClassifier({about.algorithm.name} on {about.network.name}, "
      f"{self.policy}{known})"
    )

  def _examples(
    self, images: Any, labels: Iterable[Hashable] | None
  ) -> tuple[np.ndarray, list[Hashable]]:
    if labels is None:
      if not pictures.is_path(images):
        raise ValueError(
          "labels is missing; give the class of each image, or pass the path of a "
          "directory with one folder of images per class"
        )
      images, folders = pictures.class_folders(images)
      named: list[Hashable] = [*folders]
    else:
      named = _as_list(labels)
    pixels = pictures.read(images, self.learner.description.looks)
    if len(pixels) != len(named):
      raise ValueError(
        f"{len(pixels)} images and {len(named)} labels; give one label per image"
      )
    if not named:
      raise ValueError("there are no images; give at least one example of each class")
    return pixels, list(named)

  def _after_fit(self) -> _Fitted:
    if self._fitted is None:
      raise NotFittedError(
        "the classifier has no classes yet; call fit(images, labels) first"
      )
    return self._fitted

  def _to_export(self) -> ToExport:
    fitted, about = self._after_fit(), self.learner.description
    learner = self.learner.with_execution(PORTABLE)
    predict = naming(learner, len(fitted.classes), self.policy).predict
    return ToExport(
      lambda images: predict(fitted.adapted, fitted.known, images),
      about.input_shape,
      {
        "policy": self.policy,
        "classes": [
          name if isinstance(name, str | int | float | bool) else repr(name)
          for name in fitted.classes
        ],
        "looks": dataclasses.asdict(about.looks),
      },
    )

  def _programs_for(self, way: int) -> _Programs:
    if way not in self._programs:
      learner = self.learner
      options = {**learner.made.at_test, **learner.inner_steps(self.num_steps)}
      adapt = functools.partial(learner.algorithm(way).adapt, **options)
      prepare, predict = naming(learner, way, self.policy)

      def fit(params: Params, support: Batch) -> tuple[Any, Any]:
        adapted = adapt(params, support)
        return adapted, prepare(adapted, support)

      self._programs[way] = _Programs(jax.jit(fit), jax.jit(predict))
    return self._programs[way]


def _floats(pixels: np.ndarray) -> np.ndarray:
  return pixels.astype(np.float32) * UNIT  # As in sampled tasks.


def _as_list(labels: Iterable[Hashable]) -> list[Hashable]:
  """The labels as Python values, so that NumPy's 1 and 1 are the same class."""
  if hasattr(labels, "__array__"):
    labels = np.asarray(labels).ravel()
  return [
    label.item() if isinstance(label, np.bool | np.number | np.str_) else label
    for label in labels
  ]


def _sorted_classes(labels: Sequence[Hashable]) -> list[Hashable]:
  try:
    found = list(dict.fromkeys(labels))
    kinds = {(label, isinstance(label, bool)) for label in labels}
  except TypeError as error:
    raise ValueError(f"labels must be hashable ({error})") from error
  if unequal := [label for label in found if label != label]:
    raise ValueError(
      f"labels has {unequal[0]!r}, which is not equal to itself; give every image a "
      "class"
    )
  if len(kinds) > len(found):
    raise ValueError(
      "labels mixes True or False with the numbers 1 or 0, which are equal in Python; "
      "use other names for the classes"
    )
  try:
    return sorted(found)  # type: ignore[type-var]
  except TypeError:
    return found
