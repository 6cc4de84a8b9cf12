"""Descriptions of whole runs: their costs, and what comparisons share."""

from absl.testing import absltest, parameterized

from jsharp import _catalogue, options
from jsharp.algorithms import OuterLoop, Sharpness
from jsharp.data.characters import Characters
from jsharp.data.sinusoid import SineTasks
from jsharp.data.tasks import Tasks
from jsharp.evaluation import gradients_per_task, steps_paid
from jsharp.models.conv4 import Conv4Options
from jsharp.models.mlp import SineNetwork
from jsharp.options import Role
from jsharp.training import options as loop
from jsharp.training.options import Machine, MetaTraining, Placement, Run
from jsharp.training.runs import FewShotRun, SineRun


def common(algorithm, values, sharpness="none"):
  return {
    "algorithm": _catalogue.find("algorithm", algorithm)(**values),
    "sharpness": Sharpness(sharpness=sharpness),
    "outer": OuterLoop(),
    "training": MetaTraining(num_tasks=3),
    "testing": loop.Testing(),
    "run": Run(),
    "machine": Machine(),
  }


def images(algorithm="maml", values=None, sharpness="none", placement=None, **tasks):
  return FewShotRun(
    **common(algorithm, values or {}, sharpness),
    network=Conv4Options(),
    data=Characters(),
    placement=placement or Placement(),
    tasks=Tasks(**tasks),
  )


class RunsTest(parameterized.TestCase):
  @parameterized.parameters(
    # 5-way 1-shot, query_shot 1
    (
      "reptile",
      {"inner_batch_size": 10, "num_inner_steps": 5},
      "none",
      {"train_shot": (10,)},
      5 * 10,
    ),
    (
      "protonet",
      {},
      "none",
      {"train_way": (60,), "query_shot": 5, "eval_query_shot": 1},
      60 + 300,
    ),
    (
      "protonet",
      {},
      "none",
      {"train_way": (5, 15), "train_shot": (1, 3)},
      (5 + 15 + 15 + 45) / 4 + (5 + 15) / 2,
    ),
    ("cavia", {"num_inner_steps": 2}, "none", {}, 2 * 3 * 5 + 5),
    ("anil", {"num_inner_steps": 2}, "none", {}, 5 + 5),
    ("ridge", {}, "up", {}, 2 * (5 + 5)),
  )
  def test_costs_of_images_by_hand(self, name, values, sharpness, tasks, expected):
    phases = images(name, values, sharpness, **tasks).phases()
    self.assertEqual(gradients_per_task(phases, 7), expected)
    self.assertAlmostEqual(steps_paid(phases, 6 * 3 * expected, num_tasks=3), 6)

  def test_phases_of_several_kinds_of_task_are_means(self):
    values = {"num_inner_steps": 2, "multi_step_loss_steps": 10}
    run = images("maml_plus_plus", values, train_way=(2, 4))
    self.assertEqual([end for end, _ in run.phases()], [10.0, float("inf")])
    self.assertEqual([cost for _, cost in run.phases()], [2 * 3 * 3 + 2 * 3, 18 + 3])

  def test_costs_of_sine_waves_by_hand(self):
    run = SineRun(
      **common("maml", {"num_inner_steps": 2}),
      network=SineNetwork(),
      tasks=SineTasks(shot=10, query_shot=4),
    )
    self.assertEqual(run.phases(), [(float("inf"), 2 * 3 * 10 + 4)])

  def test_comparisons_share_the_tasks_of_the_test_and_where_the_data_lie(self):
    run = images(
      way=4, placement=Placement(data_dir="here"), eval_way=(20,), train_shot=(2,)
    )
    shared = options.select(run, lambda field: field.shared)
    self.assertContainsSubset(
      {
        "data": "characters",
        "data.image_size": 28,
        "placement.data_dir": "here",
        "tasks.way": 4,
        "testing.eval_tasks": 600,
      },
      shared,
    )
    for name in ("tasks.eval_way", "tasks.train_shot", "run.seed", "placement.images"):
      self.assertNotIn(name, shared)
    testing = options.select(run, lambda field: field.role is Role.TESTING)
    self.assertIn("tasks.eval_way", testing)


if __name__ == "__main__":
  absltest.main()
