"""What the algorithms cost in gradients of single examples, by hand."""

import dataclasses
from typing import ClassVar

from absl.testing import absltest, parameterized

from jsharp import _catalogue
from jsharp.algorithms import Algorithm, Sharpness
from jsharp.evaluation import Budget, gradients_per_task, steps_paid


def made(name, **values):
  return _catalogue.find("algorithm", name)(**values)


class CostTest(parameterized.TestCase):
  @parameterized.parameters(
    # support 5, query 5, 3 inner steps
    ("maml", {}, {}, 3 * 3 * 5 + 5),
    ("fomaml", {}, {}, 3 * 5 + 5),
    ("sharp_maml_low", {}, {}, 3 * 6 * 5 + 5),
    ("sharp_maml_up", {}, {}, 2 * (3 * 3 * 5 + 5)),
    ("sharp_maml_both", {}, {}, 2 * (3 * 6 * 5 + 5)),
    ("maml", {}, {"sharpness": "both"}, 2 * (3 * 6 * 5 + 5)),
    ("sharp_maml_low", {}, {"differentiate_perturbation": False}, 3 * 4 * 5 + 5),
    ("anil", {}, {}, 5 + 5),
    ("boil", {}, {}, 3 * 3 * 5 + 5),
    ("meta_sgd", {}, {}, 3 * 3 * 5 + 5),
    ("reptile", {"inner_batch_size": 2}, {}, 3 * 2),
    ("reptile", {"inner_batch_size": 9}, {}, 3 * 5),
    ("reptile", {}, {}, 3 * 5),
    ("imaml", {"num_cg_steps": 4}, {}, (3 + 8 + 2) * 5 + 5),
    ("maml_plus_plus", {}, {}, 3 * 3 * 5 + 3 * 5),
    ("proto_maml", {}, {}, (1 + 3 * 3) * 5 + 5),
    ("proto_maml", {"first_order": True}, {}, (1 + 3) * 5 + 5),
    ("proto_maml", {}, {"sharpness": "both"}, 2 * ((1 + 3 * 6) * 5 + 5)),
  )
  def test_costs_by_hand(self, name, own, sharpness, expected):
    algorithm = made(name, num_inner_steps=3, **own)
    phases = algorithm.phases(5, 5, Sharpness(**sharpness))
    self.assertEqual(gradients_per_task(phases, 5), expected)
    budget = Budget("gradients", 10000.0)
    self.assertEqual(budget.num_steps(phases, num_tasks=2), 10000 // (2 * expected))

  @parameterized.parameters("protonet", "ridge", "black_box")
  def test_without_inner_steps_every_example_is_one_gradient(self, name):
    for sharpness, factor in (("none", 1), ("up", 2)):
      phases = made(name).phases(60, 300, Sharpness(sharpness=sharpness))
      self.assertEqual(gradients_per_task(phases, 5), factor * (60 + 300))

  @parameterized.parameters((4, 10), (10, 4), (0, 10), (10, 10))
  def test_phases_of_maml_plus_plus_by_hand(self, first_order, all_losses):
    algorithm = made(
      "maml_plus_plus",
      num_inner_steps=3,
      first_order_steps=first_order,
      multi_step_loss_steps=all_losses,
    )
    phases = algorithm.phases(5, 10, Sharpness())
    # Exact 3 gradients per inner step, first order 1.
    costs = [
      3 * 5 * (1 if step < first_order else 3) + 10 * (3 if step < all_losses else 1)
      for step in range(20)
    ]
    for steps in (1, 4, 7, 10, 20):
      total = sum(costs[:steps])
      self.assertAlmostEqual(gradients_per_task(phases, steps), total / steps)
      self.assertAlmostEqual(steps_paid(phases, 2 * total, num_tasks=2), steps)
    half = 2 * (sum(costs[:12]) + costs[12] / 2)
    self.assertAlmostEqual(steps_paid(phases, half, num_tasks=2), 12.5)
    last = algorithm.last_phase().phases(5, 10, Sharpness())
    self.assertEqual([cost for _, cost in last], [costs[-1]])

  def test_an_algorithm_without_a_price_is_named(self):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class New(Algorithm):
      name: ClassVar[str] = "new"

    with self.assertRaisesRegex(ValueError, "--algorithm=new does not define its cost"):
      New().phases(5, 5, Sharpness())


if __name__ == "__main__":
  absltest.main()
