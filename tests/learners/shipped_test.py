"""The learners that come with jsharp: they work, are small, and have true cards."""

import functools
import os
import pathlib
import re
import tempfile

import numpy as np
from absl.testing import absltest

import jsharp
from jsharp import data
from jsharp.learners import _shipped, evaluations_of

QUICK_TO_COMPILE = jsharp.Execution(inner_steps="scanned", convolution="direct")


@functools.cache
def loaded(name):
  return jsharp.load(name, execution=QUICK_TO_COMPILE)


class ShippedTest(absltest.TestCase):
  def test_each_one_names_what_it_has_never_seen(self):
    drawings = data.characters.load()["test"].images.reshape(100, 20, 28, 28)
    truth = np.repeat(np.arange(5), 5)
    for name in jsharp.models_available():
      with self.subTest(name):
        learner = loaded(name)
        if learner.description.input_shape != (28, 28, 1):
          continue
        classifier = learner.classifier().fit(drawings[:5, 0], range(5))
        # Two in three at least, where chance is one in five.
        self.assertGreater(
          classifier.score(drawings[:5, 1:6].reshape(-1, 28, 28), truth), 0.66
        )

  def test_cards(self):
    for name in jsharp.models_available():
      with self.subTest(name):
        text = (_shipped.directory_of(name) / "README.md").read_text()
        self.assertStartsWith(text, f"# {name}\n")
        self.assertRegex(text, r"test accuracy +\d\d\.\d\d ± \d\.\d\d %")
        self.assertRegex(text, r"Commit [0-9a-f]{40}")
        self.assertIn(f'jsharp.load("{name}")', text)
        learner = loaded(name).description
        if not learner.algorithm.any_way:
          self.assertIn(f"Up to {learner.num_outputs} classes", text)
        self.assertEmpty(re.findall(r"--data_dir=(?!DIRECTORY)", text))

  def test_they_are_small_enough_for_a_wheel(self):
    files = pathlib.Path(_shipped._ROOT).rglob("*")
    self.assertLess(sum(os.path.getsize(path) for path in files), 4_000_000)

  def test_a_directory_of_that_name_goes_first(self):
    name = jsharp.models_available()[0]
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as directory:
      os.chdir(directory)
      try:
        self.assertEqual(evaluations_of(name), pathlib.Path("evaluations", name))
        os.mkdir(name)
        self.assertEqual(evaluations_of(name), pathlib.Path(name, "evaluations"))
        with self.assertRaisesRegex(FileNotFoundError, f"written by jsharp.*{name}"):
          jsharp.load(name)
      finally:
        os.chdir(here)


if __name__ == "__main__":
  absltest.main()
