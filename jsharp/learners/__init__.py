"""Learners: descriptions with trained parameters, and their files.

`build` makes a learner from a `Description`, `save` and `load` store it on disk, and
`Learner.classifier` gives it the methods of a scikit-learn classifier.
"""

from jsharp.learners._classifier import (
  Classifier,
  ClassifierDescription,
  build_classifier,
  relabelled,
)
from jsharp.learners._description import Description, check_parts
from jsharp.learners._few_shot_classifier import FewShotClassifier, NotFittedError
from jsharp.learners._files import AnyLearner, from_json, load, save, to_json
from jsharp.learners._initial import initial, initial_backbone
from jsharp.learners._learner import Learner, build
from jsharp.learners._policy import PolicyDescription, PolicyLearner, build_policy
from jsharp.learners._shipped import evaluations_of, models_available

__all__ = [
  "AnyLearner",
  "Classifier",
  "ClassifierDescription",
  "Description",
  "FewShotClassifier",
  "Learner",
  "NotFittedError",
  "PolicyDescription",
  "PolicyLearner",
  "build",
  "build_classifier",
  "build_policy",
  "check_parts",
  "evaluations_of",
  "from_json",
  "initial",
  "initial_backbone",
  "load",
  "models_available",
  "relabelled",
  "save",
  "to_json",
]
