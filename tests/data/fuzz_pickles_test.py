"""Tests of benchmarks.fuzz_pickles: it runs, and it finds what it looks for."""

import os
import pathlib
import random
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from benchmarks import fuzz_pickles
from jsharp.data import _pickles
from tests.data import fixtures

_ROOT = pathlib.Path(__file__).parents[2]


class FuzzPicklesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.out = fixtures.temporary_dir(self)
    self.check = fuzz_pickles.make_check(self.out / "current.pkl")

  def _run(self, *arguments):
    command = [sys.executable, "-m", "benchmarks.fuzz_pickles", *arguments]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    return subprocess.run(
      command, cwd=_ROOT, env=environment, capture_output=True, text=True
    )

  def test_a_short_run(self):
    done = self._run("--seconds=1", "--engine=mutation", f"--out={self.out}")
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r"Done \d+ runs")
    seeds = len(list((self.out / "seeds").iterdir()))
    self.assertLen(fuzz_pickles.make_seeds(), seeds)

  def test_a_child_that_fails_changes_the_exit_code(self):
    # A folder among the seeds, which the child cannot read.
    (self.out / "seeds" / "aaa").mkdir(parents=True)
    done = self._run("--seconds=0", "--engine=mutation", f"--out={self.out}")
    self.assertEqual(done.returncode, 1)
    self.assertIn("Exit code 1: see finding.pkl and log.txt", done.stdout)

  def test_seeds_load_or_are_refused(self):
    outcomes = [self.check(seed) for seed in fuzz_pickles.make_seeds()]
    self.assertContainsSubset(["2 classes", "0 classes"], outcomes)
    for message in ("asks for", "dtype 'O8'", "not a dict", "another size, alignment"):
      self.assertTrue(any(message in outcome for outcome in outcomes), message)

  @parameterized.parameters(
    (TypeError("x"), TypeError), (ValueError("no name"), RuntimeError)
  )
  def test_another_exception_is_a_finding(self, error, expected):
    with (
      mock.patch.object(_pickles, "class_arrays", side_effect=error),
      self.assertRaises(expected),
    ):
      self.check(b"")

  def test_mutations_follow_the_seed(self):
    seeds, tokens = fuzz_pickles.make_seeds(), fuzz_pickles.make_tokens()

    def mutated(seed):
      choose = random.Random(seed)
      return [fuzz_pickles.mutate(s, choose, seeds, tokens) for s in (b"", *seeds)]

    self.assertEqual(mutated(0), mutated(0))
    self.assertNotEqual(mutated(0), mutated(1))


if __name__ == "__main__":
  absltest.main()
