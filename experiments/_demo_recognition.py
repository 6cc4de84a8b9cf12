"""The demo's answers: class probabilities of pictures, given examples.

A request contains everything that its answer needs. Between requests one classifier per
learner is kept, with a digest of the examples that it was fitted to, so that a drawing
in progress is recognised without fitting again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import _demo_drawing as drawing
from experiments._demo_drawing import RefusedError

if TYPE_CHECKING:
  from jsharp.data.pictures import Looks
  from jsharp.learners import FewShotClassifier

MAX_CLASSES = 50
MAX_EXAMPLES = 250


class Choice:
  """A learner that can be chosen on the page.

  Attributes:
    name: its name, as given.
    looks: how its images are prepared.
    takes: "drawings" or "photographs".
    hand: the look of its drawings.
    max_classes: the largest number of classes that it distinguishes here.
    about: its algorithm and its data, in words.
  """

  def __init__(self, name: str, learner: Any):
    """Wraps a few-shot learner of images.

    Raises:
      ValueError: if the learner is of another kind.
    """
    from jsharp.learners import Learner

    about = learner.description
    if (
      not isinstance(learner, Learner)
      or about.problem != "classification"
      or len(about.input_shape) != 3
      or about.input_shape[2] not in (1, 3)
    ):
      raise ValueError(
        f"--model={name} is not a few-shot classifier of images; name one, such as a "
        "run of experiments.omniglot or experiments.miniimagenet"
      )
    self.name = name
    self.looks: Looks = about.looks
    is_drawn = about.looks.light_ink or about.source is None
    is_gray = self.looks.shape[2] == 1
    self.takes = "drawings" if is_drawn and is_gray else "photographs"
    source = about.source.name if about.source else "other data"
    self.hand = drawing.HANDS.get(source, drawing.HANDS["omniglot"])
    head = MAX_CLASSES if about.algorithm.any_way else about.num_outputs
    self.max_classes = min(MAX_CLASSES, head)
    height, width, _ = self.looks.shape
    self.about = f"{about.algorithm.name}, trained on {source}, {height}×{width} pixels"
    self._classifier: FewShotClassifier = learner.classifier()
    self._digest = ""

  def rank(self) -> tuple[bool, bool, bool]:
    """How well it suits a first visit: larger is better."""
    is_drawn = self.takes == "drawings"
    return is_drawn, self.max_classes == MAX_CLASSES, "omniglot" in self.about

  def for_page(self) -> dict[str, Any]:
    """The facts for the page, as JSON values."""
    shown = ("name", "about", "takes", "max_classes")
    return {**{key: getattr(self, key) for key in shown}, "pen": self.hand.pen}

  def image(self, picture: Any) -> np.ndarray:
    """Prepares a picture of a request for the learner.

    Args:
      picture: an object with "strokes" or with "photo"; see `Recogniser.answer`.

    Returns:
      uint8 `[height, width, channels]`.

    Raises:
      RefusedError: if it is anything else.
    """
    from jsharp.data import pictures

    if isinstance(picture, Mapping) and "strokes" in picture:
      strokes = drawing.strokes_of(picture["strokes"])
      size = self.looks.shape[:2]
      pixels = drawing.render(strokes, size=size, hand=self.hand)
    elif isinstance(picture, Mapping) and "photo" in picture:
      pixels = drawing.photograph(picture["photo"])
      if self.takes == "drawings":
        pixels = drawing.inked(pixels, self.hand)
    else:
      raise RefusedError("a picture is an object with strokes or with a photo.")
    return pictures.read([pixels], self.looks)[0]

  def probabilities(
    self, classes: Sequence[Sequence[Any]], query: np.ndarray
  ) -> np.ndarray:
    """The probability of each class.

    Args:
      classes: pictures of a request, a sequence for each class.
      query: the image to recognise, from `image`.

    Returns:
      `[len(classes)]`.
    """
    digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode()).hexdigest()
    if digest != self._digest:
      self._digest = ""
      images = [self.image(picture) for group in classes for picture in group]
      labels = [label for label, group in enumerate(classes) for _ in group]
      self._classifier.fit(images, labels)
      self._digest = digest
    return self._classifier.predict_proba(query[None])[0]


class Recogniser:
  """Recognises pictures with several learners, one request at a time.

  Attributes:
    choices: the learners by name.
  """

  def __init__(self, learners: Mapping[str, Any], *, sort: bool = False):
    """Wraps learners by name.

    Args:
      learners: from `jsharp.load`; the page starts with the first.
      sort: whether to put learners for drawings, any number of classes and real
        handwriting first.

    Raises:
      ValueError: if one is not a few-shot classifier of images.
    """
    choices = [Choice(name, learner) for name, learner in learners.items()]
    if sort:
      choices.sort(key=Choice.rank, reverse=True)
    self.choices = {choice.name: choice for choice in choices}

  def answer(self, request: Any) -> dict[str, Any]:
    """Recognises the picture of a request.

    Args:
      request: an object with "learner", a name; "classes", a list of lists of pictures;
        and "query", a picture, or None to prepare for one. A picture is
        `{"strokes": ...}`, each stroke a list of points `[x, y]` from 0 to 1, or
        `{"photo": ...}`, the result of `drawing.upload` in base64.

    Returns:
      "probabilities", one for each class; "seen", the query as the learner sees it; and
      "milliseconds". Empty without a query.

    Raises:
      RefusedError: if the request is invalid; the message says why.
    """
    started = time.perf_counter()
    if not isinstance(request, Mapping):
      raise RefusedError("a request is an object with learner, classes and query.")
    choice = self.choices.get(str(request.get("learner")))
    if choice is None:
      raise RefusedError(
        f"There is no learner {request.get('learner')!r} here; choose one of "
        f"{', '.join(self.choices)}."
      )
    classes = _checked(request.get("classes"), choice)
    picture = request.get("query")
    query = choice.image(classes[0][0] if picture is None else picture)
    probabilities = choice.probabilities(classes, query)
    if picture is None:
      return {}
    return {
      "probabilities": [float(value) for value in probabilities],
      "seen": drawing.data_url(query),
      "milliseconds": round(1000 * (time.perf_counter() - started), 1),
    }

  def warm_up(self, name: str) -> None:
    """Compiles a learner's program for the three classes that a page starts with.

    Args:
      name: the learner's name.
    """
    classes = [[{"strokes": [[[x, 0.0], [0.5, 1.0]]]}] for x in (0.0, 0.5, 1.0)]
    self.answer({"learner": name, "classes": classes})


def _checked(classes: Any, choice: Choice) -> list[list[Any]]:
  """The classes of a request.

  Raises:
    RefusedError: if there are too few or too many, or one has no example.
  """
  if not isinstance(classes, list) or not all(isinstance(c, list) for c in classes):
    raise RefusedError("classes must be a list of lists of pictures.")
  if not 2 <= len(classes) <= choice.max_classes:
    raise RefusedError(
      f"There are {len(classes)} classes, but {choice.name} distinguishes 2 to "
      f"{choice.max_classes}."
    )
  if not all(classes):
    raise RefusedError("Every class needs an example.")
  if sum(map(len, classes)) > MAX_EXAMPLES:
    raise RefusedError(f"There are more than {MAX_EXAMPLES} examples; remove some.")
  return classes
