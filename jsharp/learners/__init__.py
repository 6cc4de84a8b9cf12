"""Learners: a description, the parameters that were learned, and the files of both."""

from jsharp.learners._description import Description, check_parts
from jsharp.learners._files import from_json, load, save, to_json
from jsharp.learners._learner import Learner, build

__all__ = [
  "Description",
  "Learner",
  "build",
  "check_parts",
  "from_json",
  "load",
  "save",
  "to_json",
]
