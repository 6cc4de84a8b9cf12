"""What the flags of algorithms make of them."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments import choices, method_options, methods, sinusoid
from jsharp.data import sinusoid as sines
from tests.experiments.flags_test import settings


def method(*arguments):
  chosen = settings("sinusoid", "--hidden_width=8", *arguments)
  return methods.make(chosen, sinusoid._networks(chosen))


def adapted(*arguments):
  made = method("--inner_lr=0.1", *arguments)
  algorithm = made.build(1)
  support = sines.sample_task(jax.random.key(3), shot=5, query_shot=5).support
  params = algorithm.init(made.params).params
  return jax.jit(made.adapt(1))(params, support), made.params


class MethodsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))

  @parameterized.parameters(
    ["--algorithm=maml_plus_plus"],
    ["--algorithm=maml_plus_plus", "--nolearn_rates"],
    ["--algorithm=meta_sgd", "--initial_rates=0.1,0.1"],
    ["--algorithm=reptile"],
  )
  def test_the_inner_rate_is_that_of_the_flag(self, *arguments):
    actual, _ = adapted("--num_eval_inner_steps=1", *arguments)
    expected, start = adapted("--num_eval_inner_steps=1", "--algorithm=maml")
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), expected, start)
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-3)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      actual,
      expected,
    )

  @parameterized.parameters(
    ("protonet", False, {}),
    ("reptile", True, {"inner_lr": 2.0}),
    ("anil", False, {"inner_lr": 2.0}),
    ("maml", True, {"inner_lr": 2.0}),
    ("meta_sgd", True, {"inner_lr": None}),
  )
  def test_the_protocol_says_what_was_done(self, algorithm, adapts_norm, inner):
    chosen = settings("omniglot", f"--algorithm={algorithm}", "--adapt_norm")
    self.assertEqual(method_options.adapts_norm(chosen), adapts_norm)
    facts = choices.protocol(chosen)["inner loop"]
    self.assertEqual({name: facts.get(name) for name in inner}, inner)
    self.assertEqual(bool(facts), bool(inner))

  @parameterized.parameters("cavia", "maml_plus_plus")
  def test_second_order_by_less_memory_gives_the_same_step(self, algorithm):
    def step(second_order):
      made = method(
        f"--algorithm={algorithm}",
        f"--second_order={second_order}",
        "--num_inner_steps=2",
        "--num_eval_inner_steps=2",
      )
      built = made.build(1)
      tasks = sines.sample_tasks(jax.random.key(3), num_tasks=2, shot=5, query_shot=5)
      state = built.init(made.params)
      return jax.jit(built.step)(state, tasks), jax.make_jaxpr(built.step)(state, tasks)

    expected, _ = step("stored")
    actual, jaxpr = step("forward_over_reverse")
    self.assertIn("optimization_barrier", str(jaxpr))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5),
      actual,
      expected,
    )

  def test_second_order_is_refused_where_nothing_reads_it(self):
    path = ["--algorithm=maml_plus_plus", "--running_statistics", "--model=conv4"]
    chosen = settings("omniglot", *path, "--second_order=recomputed")
    networks = choices.networks(chosen, (28, 28, 1), 5)
    with self.assertRaisesRegex(ValueError, "second_order=recomputed.*running stat"):
      methods.check(chosen, networks)

  @parameterized.parameters("protonet", "ridge")
  def test_classifiers_are_refused_for_a_regression(self, algorithm):
    with self.assertRaisesRegex(ValueError, f"{algorithm} classifies, sinusoid is"):
      method(f"--algorithm={algorithm}")

  def test_an_ensemble_is_refused_for_a_regression(self):
    with self.assertRaisesRegex(ValueError, "--ensemble=5 averages class"):
      method("--ensemble=5")


if __name__ == "__main__":
  absltest.main()
