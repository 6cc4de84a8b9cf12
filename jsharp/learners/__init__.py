"""Learners: a description, the parameters that were learned, and the files of both."""

from jsharp.learners._classifier import (
  Classifier,
  ClassifierDescription,
  build_classifier,
)
from jsharp.learners._description import Description, check_parts
from jsharp.learners._files import from_json, load, save, to_json
from jsharp.learners._learner import Learner, build

__all__ = [
  "Classifier",
  "ClassifierDescription",
  "Description",
  "Learner",
  "build",
  "build_classifier",
  "check_parts",
  "from_json",
  "load",
  "save",
  "to_json",
]
