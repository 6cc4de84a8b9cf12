"""Reading runs that have ended, and comparing what they are."""

import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from jsharp import options
from jsharp.algorithms import OuterLoop, Sharpness
from jsharp.algorithms.maml import MAML
from jsharp.data.characters import Characters
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.models.conv4 import Conv4Options
from jsharp.models.mlp import SineNetwork
from jsharp.training import (
  FinishedRun,
  check_comparable,
  description_of,
  read_run,
)
from jsharp.training import options as loops
from jsharp.training.runs import FewShotRun, SineRun


def run(**changes):
  parts = {
    "algorithm": MAML(inner_lr=0.5),
    "sharpness": Sharpness(),
    "network": Conv4Options(num_filters=8),
    "outer": OuterLoop(),
    "training": loops.MetaTraining(),
    "testing": loops.Testing(),
    "run": loops.Run(),
    "machine": loops.Machine(),
    "data": Characters(),
    "tasks": Tasks(),
  }
  return FewShotRun(**{**parts, **changes})


def sines():
  parts = {name: getattr(run(), name) for name in ("outer", "training", "testing")}
  parts |= {"algorithm": MAML(), "sharpness": Sharpness(), "network": SineNetwork()}
  return SineRun(**parts, run=loops.Run(), machine=loops.Machine(), tasks=SineTasks())


def write(path, description, *, experiment="omniglot", step=30):
  """Leaves what a finished run leaves."""
  path.mkdir()
  identity = {"seed": 0, "fingerprints": {"test": "12ab"}}
  record = {"experiment": experiment, "run": options.to_json(description)}
  checkpoint = {"step": step, "of": 40}
  for name, content in (
    ("run.json", {"identity": identity}),
    ("description.json", {**record, "learners": {}}),
    ("result.json", {"accuracy": 0.5, "protocol": {"checkpoint": checkpoint}}),
  ):
    (path / name).write_text(json.dumps(content))
  return path


class ReadRunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.parameters(run, sines)
  def test_gives_what_was_run(self, make):
    path = write(self.root / "a", make(), experiment="question")
    found = read_run(path)
    self.assertEqual(found.description, make())
    self.assertIs(type(found.description), type(make()))
    self.assertEqual((found.best_step, found.last_step), (30, 40))
    self.assertEqual(found.experiment, "question")
    self.assertEqual(found.fingerprints, {"test": "12ab"})
    self.assertEqual(found.result["accuracy"], 0.5)
    self.assertFalse(found.has_path)

  def test_digests_follow_the_identity_and_not_the_result(self):
    one = read_run(write(self.root / "a", run()))
    same = read_run(write(self.root / "b", run(), step=10))
    self.assertEqual(one.digest, same.digest)
    text = (one.path / "run.json").read_text()
    (one.path / "run.json").write_text(text.replace("0", "1"))
    self.assertNotEqual(read_run(one.path).digest, same.digest)

  def test_one_of_several_seeds_is_described_by_its_run(self):
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory, "run")
      write(path, run(tasks=Tasks(way=6)))
      (path / "seed_1").mkdir()
      self.assertEqual(description_of(path / "seed_1"), description_of(path))
      self.assertEqual(description_of(path / "seed_1").tasks.way, 6)
      self.assertIsNone(description_of(path / "checkpoints"))

  def test_a_path(self):
    path = write(self.root / "a", run())
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "path_00000000.npz").touch()
    self.assertTrue(read_run(path).has_path)

  def test_refusals(self):
    path = write(self.root / "a", run())
    for name, message in (
      ("result.json", "(?s)a is not finished.*experiments.omniglot --flagfile=.*a/"),
      ("description.json", "not a run directory .no readable description.json"),
      ("run.json", "not a run directory .no readable run.json.*name the --run_dir"),
    ):
      (path / name).write_text("{}")
      if name == "run.json":
        (path / name).unlink()
      with self.assertRaisesRegex(ValueError, message):
        read_run(path)

  def test_refuses_a_description_of_another_version(self):
    path = write(self.root / "a", run())
    text = (path / "description.json").read_text()
    (path / "description.json").write_text(text.replace("inner_lr", "rate"))
    with self.assertRaisesRegex(ValueError, "description.json: run.algorithm: unknown"):
      read_run(path)


class ComparableTest(parameterized.TestCase):
  @parameterized.parameters(
    {"algorithm": MAML(inner_lr=0.1)},
    {"run": loops.Run(seed=3, run_dir="elsewhere")},
    {"training": loops.MetaTraining(num_steps=7)},
    {"testing": loops.Testing(eval_tasks=7)},
    {"machine": loops.Machine(task_chunk=2)},
    {"tasks": Tasks(query_shot=4, eval_query_shot=1)},
  )
  def test_runs_may_differ_in_what_they_are_trained_with(self, **changes):
    self.check(run(**changes))

  @parameterized.parameters(
    ("tasks.shot: 1 there, 2 here", {"tasks": Tasks(shot=2)}),
    ("data.image_size: 28 there, 8 here", {"data": Characters(image_size=8)}),
    ("test_data: None there, characters here", {"test_data": Characters()}),
    ("network.num_filters: 8 there, 9 here", {"network": Conv4Options(num_filters=9)}),
  )
  def test_runs_share_tasks_and_network(self, message, changes):
    with self.assertRaisesRegex(ValueError, f"(?s)b has other tasks.*  {message}"):
      self.check(run(**changes))

  def test_runs_share_data(self):
    with self.assertRaisesRegex(ValueError, "data themselves, by their fingerprints"):
      self.check(run(), "b", {"test": "other"})

  def check(self, description, name="b", fingerprints=None):
    first = FinishedRun(
      pathlib.Path("a"), "omniglot", run(), {}, {"test": "12ab"}, "", 1, 1, False
    )
    other = first._replace(path=pathlib.Path(name), description=description)
    check_comparable(
      first, other._replace(fingerprints=fingerprints or first.fingerprints)
    )


if __name__ == "__main__":
  absltest.main()
