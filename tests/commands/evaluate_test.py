"""`python -m jsharp.evaluate` against the evaluation that it stands on."""

import contextlib
import functools
import io
import json
import os
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from jsharp import evaluation, learners
from jsharp._commands import evaluate
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.data import characters
from jsharp.data.characters import Characters
from jsharp.data.tasks import Tasks
from jsharp.models.mlp import MLPOptions, SineNetwork

# Adapts by a network that normalises, which policies are about.
STEPS = MAML(inner_lr=0.4, num_inner_steps=1)


def learner(algorithm, *, size=8, seed=0):
  network = MLPOptions() if algorithm is STEPS else SineNetwork()
  return learners.build(
    learners.Description(
      algorithm=algorithm,
      network=network,
      num_outputs=3,
      input_shape=(size, size, 1),
      source=Characters(image_size=size),
    ),
    seed=seed,
  )


class EvaluateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    for number in range(2):
      learners.save(learner(ProtoNet(), seed=number), cls.root / f"protonet{number}")
    learners.save(learner(STEPS), cls.root / "maml")

  def call(self, *arguments, model="protonet0"):
    out, err = io.StringIO(), io.StringIO()
    models = ",".join(str(self.root / name) for name in model.split(","))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = evaluate.start([f"--model={models}", *arguments], flags.FlagValues())
    return code, out.getvalue(), err.getvalue()

  def record(self, model, name):
    path = self.root / model / "evaluations" / f"{name}.json"
    return json.loads(path.read_text())

  def test_it_is_the_evaluation_of_the_library(self):
    code, out, _ = self.call(
      "--way=4", "--shot=2", "--query_shot=3", "--eval_tasks=5", "--eval_name=wide"
    )
    self.assertEqual(code, 0)
    self.assertIn("wide.json", out)
    record = self.record("protonet0", "wide")
    kind = Tasks(way=4, shot=2, eval_query_shot=3).test()
    expected = evaluation.measure_learner(
      learner(ProtoNet()), kind, characters.load(size=8)["test"], num_tasks=5
    )
    np.testing.assert_allclose(record["per_task"]["accuracy"], expected["accuracy"])
    mean = record["figures"]["test_accuracy"]
    self.assertAlmostEqual(mean, expected["accuracy"].mean(), places=6)
    self.assertIn(f"{100 * mean:.2f}", out)
    self.assertEqual(record["protocol"]["task"]["way"], 4)
    self.assertEqual(record["measured"]["policy"], "transductive")

  def test_the_learner_stays_as_it_is_and_nothing_is_measured_twice(self):
    before = (self.root / "protonet1" / "model.safetensors").read_bytes()
    arguments = ("--way=2", "--eval_tasks=3", "--eval_name=once")
    self.call(*arguments, model="protonet1")
    path = self.root / "protonet1" / "evaluations" / "once.json"
    written = path.stat().st_mtime_ns
    code, out, err = self.call(*arguments, model="protonet1")
    self.assertEqual((code, path.stat().st_mtime_ns), (0, written))
    self.assertIn("already has this evaluation", err)
    self.assertIn("test accuracy", out)
    code, _, err = self.call("--way=3", "--eval_name=once", model="protonet1")
    self.assertEqual((code, path.stat().st_mtime_ns), (2, written))
    self.assertIn("another --eval_name", err)
    model = self.root / "protonet1" / "model.safetensors"
    self.assertEqual(model.read_bytes(), before)

  def test_tables_of_several_learners_with_paired_differences(self):
    both = "protonet0,protonet1"
    code, out, _ = self.call("--way=3", "--eval_tasks=6", model=both)
    self.assertEqual(code, 0)
    _, again, _ = self.call("--table", model=both)
    for text in (out, again):
      self.assertIn("| learner | characters 3-way 1-shot transductive", text)
    (column,) = {
      evaluate._column(record)
      for record in evaluate._records(str(self.root / "protonet0"))
      if record["protocol"]["task"]["way"] == 3
    }
    values = [
      np.array(record["per_task"]["accuracy"])
      for name in both.split(",")
      for record in evaluate._records(str(self.root / name))
      if evaluate._column(record) == column
    ]
    difference = 100 * (values[1] - values[0]).mean()
    self.assertIn(f"{difference:+.2f}", again)

  def test_evaluations_of_other_parameters_are_left_out_of_tables(self):
    learners.save(learner(ProtoNet()), self.root / "changed")
    self.call("--way=2", "--eval_tasks=2", model="changed")
    learners.save(learner(ProtoNet(), seed=9), self.root / "changed")
    code, out, err = self.call("--table", model="changed")
    self.assertEqual((code, out), (2, ""))
    self.assertRegex(
      err, "changed/evaluations/.*belongs to other parameters than those of .* now"
    )

  def test_nothing_is_measured_that_cannot_be_written_or_means_nothing(self):
    with mock.patch.object(os, "access", return_value=False):
      code, out, err = self.call("--way=2", "--eval_tasks=2", "--eval_name=shut")
    self.assertEqual((code, out), (2, ""))
    self.assertIn("cannot write an evaluation", err)
    for name, change in (("lost", jnp.nan), ("steep", 3e38)):
      made = learner(STEPS)
      made = made.replace(jax.tree.map(functools.partial(jnp.add, change), made.params))
      learners.save(made, self.root / name)
    arguments = ("--way=2", "--eval_tasks=2")
    self.assertIn("its training diverged", self.call(*arguments, model="lost")[2])
    self.assertIn("on 2 of 2 tasks, so", self.call(*arguments, model="steep")[2])

  def test_policies_steps_and_distortions_are_other_evaluations(self):
    for number, extra in enumerate(
      (
        ["--policy=support_statistics"],
        ["--num_eval_inner_steps=3", "--rotation=90,90"],
        ["--split=val", "--support_label_noise=0.5"],
      )
    ):
      code, _, err = self.call("--eval_tasks=2", "--way=2", *extra, model="maml")
      self.assertEqual(code, 0, err)
      names = list((self.root / "maml" / "evaluations").glob("*.json"))
      self.assertLen(names, number + 1)

  def test_images_of_another_size_are_fitted_and_it_is_recorded(self):
    code, _, err = self.call(
      "--dataset=characters", "--image_size=12", "--eval_tasks=2", "--eval_name=larger"
    )
    self.assertEqual(code, 0, err)
    data = self.record("protonet0", "larger")["protocol"]["data"]
    self.assertEqual(data["images"], "12x12 gray to 8x8 gray, box filter")

  @parameterized.parameters(
    (["--way=4"], "maml", "a task has 4 classes, but the head of this maml has 3"),
    (["--shot=40"], "protonet0", "shot"),
    (["--num_eval_inner_steps=2", "--way=2"], "protonet0", "takes no inner steps"),
    (["--dataset=omniglot"], "protonet0", "--data_dir"),
    (["--way=1"], "protonet0", "way"),
    (["--eval_name=../escape"], "protonet0", "eval_name"),
    ([], "nowhere", "does not contain a learner"),
  )
  def test_refuses(self, arguments, model, message):
    code, out, err = self.call(*arguments, model=model)
    self.assertEqual((code, out), (2, ""))
    self.assertIn(message, err)

  def test_refuses_what_names_no_images_and_evaluations_that_are_damaged(self):
    waves = learners.Description(
      algorithm=MAML(),
      network=SineNetwork(),
      problem="regression",
      num_outputs=1,
      input_shape=(1,),
    )
    learners.save(learners.build(waves), self.root / "waves")
    self.assertIn("solves a regression", self.call(model="waves")[2])
    self.assertIn("no evaluations yet", self.call("--table", model="waves")[2])
    (self.root / "waves" / "evaluations").mkdir()
    (self.root / "waves" / "evaluations" / "x.json").write_text("{")
    self.assertIn("x.json is not an evaluation", self.call("--table", model="waves")[2])


if __name__ == "__main__":
  absltest.main()
