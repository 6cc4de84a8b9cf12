"""Tests of jsharp.evaluation.report."""

import hashlib
import json
import pathlib
import subprocess
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.evaluation import report

CLASSIFICATION = {
  "experiment": "omniglot",
  "test_accuracy": 0.98765,
  "test_accuracy_ci95": 0.0012,
  "test_accuracy_inductive": 0.9,
  "test_accuracy_inductive_ci95": 0.01,
  "num_eval_tasks": 600,
  "tasks_per_second": 123.456,
  "protocol": {
    "algorithm": {"name": "maml"},
    "data": {f"split {i}": "0123456789abcdef" for i in range(5)},
    "git_commit": None,
    "command": "python -m experiments.omniglot " + "--flag " * 50,
  },
}


class SummariseTest(absltest.TestCase):
  def test_mean_and_interval_per_metric(self):
    metrics = {"loss": np.array([1.0, 3.0]), "accuracy": np.array([0.5, 0.5])}
    result = report.summarise(metrics)
    self.assertEqual(result["test_loss"], 2.0)
    self.assertAlmostEqual(result["test_loss_ci95"], 1.96)
    self.assertEqual(result["test_accuracy_ci95"], 0.0)
    self.assertLen(result, 4)


class ReadColumnTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory())) / "a"

  def test_reads_what_csv_table_writes(self):
    values = np.random.default_rng(0).normal(size=(7, 3))
    self.path.write_text(report.csv_table({"loss": values[:, 0], "accuracy": values}))
    np.testing.assert_array_equal(
      report.read_column(self.path, "loss"), values[:, :1].T
    )
    np.testing.assert_array_equal(report.read_column(self.path, "accuracy"), values.T)
    np.testing.assert_array_equal(report.read_column(self.path, None), values[:, 2:].T)

  def test_several_seeds_have_a_row_each(self):
    self.path.write_text("task,loss,accuracy_0,accuracy_1\n0,9,0.25,0.5\n1,9,0.5,1.0\n")
    columns = report.read_column(self.path, "accuracy")
    np.testing.assert_array_equal(columns, [[0.25, 0.5], [0.5, 1.0]])
    np.testing.assert_array_equal(report.read_column(self.path, "loss"), [[9, 9]])
    with self.assertRaisesRegex(ValueError, "no column 'mse'; it has task, loss"):
      report.read_column(self.path, "mse")

  def test_damage_is_named(self):
    content = "task,loss\n0,9\n1,8\n"
    self.path.write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    self.assertEqual(
      report.read_column(self.path, "loss", sha256=digest).tolist(), [[9, 8]]
    )
    for damaged, given, message in (
      (
        content.replace("8", "9"),
        digest,
        "is damaged: its SHA-256 is not the one in r",
      ),
      (content.replace("8", "x"), None, "is damaged: could not convert .*'x'"),
      (content.replace(",8", ""), None, "line 3 of .* has 1 values for 2 columns"),
      ("", None, "is empty"),
    ):
      self.path.write_text(damaged)
      with self.assertRaisesRegex(ValueError, message):
        report.read_column(self.path, "loss", sha256=given)


class ErrorsTest(absltest.TestCase):
  def test_errors_and_losses_of_test_and_training(self):
    tested = {"accuracy": np.array([1.0, 1, 1, 0]), "loss": np.array([0.0, 1, 2, 3])}
    seen = {"accuracy": np.array([1.0, 0.0]), "loss": np.array([4.0, 6.0])}
    result = report.errors(tested, seen)
    interval = result.pop("test_error_ci95")
    self.assertAlmostEqual(interval, 1.96 * 0.5 / 2)
    self.assertEqual(
      result,
      {
        "test_error": 0.25,
        "test_accuracy": 0.75,
        "test_accuracy_ci95": interval,
        "test_loss": 1.5,
        "train_error": 0.5,
        "train_loss": 5.0,
        "num_eval_examples": 4,
        "num_train_eval_examples": 2,
      },
    )


class EnvironmentTest(absltest.TestCase):
  def test_is_json_and_names_every_package(self):
    environment = json.loads(json.dumps(report.environment(), allow_nan=False))
    self.assertContainsSubset(
      ("python", "jsharp", *report.PACKAGES), environment["versions"]
    )
    self.assertIn("cpu", environment["device"])

  def test_commit_is_marked_when_files_differ(self):
    checkout = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.assertIsNone(report.git_commit(checkout))

    def git(*arguments):
      identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
      subprocess.run(
        ["git", "-C", checkout, *identity, *arguments], check=True, capture_output=True
      )

    git("init")
    self.assertIsNone(report.git_commit(checkout))
    (checkout / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    commit = report.git_commit(checkout)
    self.assertLen(commit, 40)
    (checkout / "file").write_text("two")
    self.assertEqual(report.git_commit(checkout), f"{commit}+changes")


class ProtocolCardTest(parameterized.TestCase):
  def test_classification(self):
    card = report.protocol_card(CLASSIFICATION)
    self.assertIn("98.77 ± 0.12 %  transductive", card)
    self.assertIn("90.00 ± 1.00 %  inductive", card)
    self.assertIn("123.5", card)
    self.assertNotIn("git commit", card)
    self.assertNotIn("--flag", card)

  def test_lines_are_short_and_aligned(self):
    lines = report.protocol_card(CLASSIFICATION).splitlines()
    self.assertLessEqual(max(map(len, lines)), 88)
    self.assertEqual({line[22:24] for line in lines[1:]}, {"  "})
    self.assertTrue(all(line[24] != " " for line in lines[1:]))

  def test_card_of_what_json_gives_back(self):
    result = {**CLASSIFICATION, "test_accuracy": float("nan")}
    again = json.loads(json.dumps(report.jsonable(result), allow_nan=False))
    self.assertIn("nan ± 0.12 %", report.protocol_card(again))


if __name__ == "__main__":
  absltest.main()
