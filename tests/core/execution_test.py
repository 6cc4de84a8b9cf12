"""Execution: what it refuses, and that its values change nothing but rounding."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.algorithms import maml_plus_plus
from jsharp.core.adaptation import optimised, repeated
from tests import quadratics as quad
from tests.algorithms import conformance_test as table

# Those that hand something of their own from one inner step to the next.
OWN_STEPS = {
  name: table.ALGORITHMS[name]
  for name in (
    "maml",
    "sharp_maml_equation_14",
    "maml_plus_plus",
    "reptile_keep_inner_state",
    "imaml",
  )
}

INNER_STEPS = ("unrolled", "scanned", "recomputed")


def meta_gradient(constructor, **options):
  """A function of parameters and tasks, for its program and its value."""
  algorithm = constructor(quad.loss_fn, optax.sgd(0.1), optax.sgd(1.0), **options)

  def gradient(w, tasks):
    state, metrics = algorithm.step(algorithm.init(w), tasks)
    return jax.tree.map(jnp.subtract, algorithm.init(w).params, state.params), metrics

  return gradient


def loops(constructor, num_steps, **options):
  """How many loops of the number of inner steps are in the program."""
  gradient = meta_gradient(constructor, num_inner_steps=num_steps, **options)
  tasks = quad.on_device(quad.random_tasks(1))
  w = jnp.asarray(quad.start(), jnp.float32)
  return str(jax.make_jaxpr(gradient)(w, tasks)).count(f"length={num_steps}\n")


class ExecutionTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"task_chunk": 0}, "task_chunk must be an integer of at least 1, got 0"),
    ({"task_chunk": "all"}, "task_chunk must be an integer.*got 'all'"),
    ({"inner_steps": "looped"}, "inner_steps must be one of unrolled, .*got 'looped'"),
    ({"max_unrolled": -1}, "max_unrolled must be an integer of at least 0, got -1"),
    ({"convolution": "fft"}, "convolution must be one of auto, .*got 'fft'"),
  )
  def test_bad_values_are_named(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jsharp.Execution(**options)

  def test_it_is_static(self):
    execution = jsharp.Execution(task_chunk=2)
    self.assertEqual(hash(execution), hash(jsharp.Execution(task_chunk=2)))
    with self.assertRaises(AttributeError):
      execution.task_chunk = 3

  @parameterized.named_parameters(*OWN_STEPS.items())
  def test_algorithms_agree_under_every_execution(self, constructor):
    # Two chunks of two tasks and a rest of one.
    executions = [{"inner_steps": "recomputed", "task_chunk": 2}]
    if constructor in map(OWN_STEPS.get, ("maml", "reptile_keep_inner_state")):
      executions.append({"max_unrolled": 1, "task_chunk": "in_order"})
    with jax.enable_x64(True):
      expected = table.two_steps(constructor, table.tasks())
      for options in executions:
        with self.subTest(**options):
          execution = jsharp.Execution(**options)
          actual = table.two_steps(constructor, table.tasks(), execution=execution)
          table.assert_close(actual, expected)

  @parameterized.parameters("meta_sgd", "cavia", "proto_maml")
  def test_the_steps_of_maml_are_executed_as_told(self, name):
    execution = jsharp.Execution(inner_steps="scanned", task_chunk=2)
    with jax.enable_x64(True):
      algorithm = table.build(
        table.ALGORITHMS[name], num_inner_steps=7, execution=execution
      )
      state = algorithm.init(table.start())
      program = str(jax.make_jaxpr(algorithm.step)(state, table.tasks()))
    for length in (7, table.NUM_TASKS // 2):
      self.assertIn(f"length={length}\n", program)

  @parameterized.product(
    constructor=(
      jsharp.maml,
      functools.partial(jsharp.anil, head=lambda w: True),
      functools.partial(jsharp.imaml, proximity=2.0),
      jsharp.meta_sgd,
      functools.partial(maml_plus_plus, inner_lr=0.1),
      jsharp.reptile,
      functools.partial(
        jsharp.sharp_maml, inner_rho=0.1, outer_rho=0.1, reuse_perturbation=True
      ),
    )
  )
  def test_one_loop_serves_all(self, constructor):
    for num_steps, options, looped in (
      (3, {}, False),
      (12, {}, True),
      (3, {"max_unrolled": 3}, False),
      (3, {"max_unrolled": 2}, True),
      (3, {"inner_steps": "scanned"}, True),
      (3, {"inner_steps": "recomputed"}, True),
    ):
      with self.subTest(num_steps=num_steps, **options):
        execution = jsharp.Execution(**options)
        found = loops(constructor, num_steps, execution=execution)
        self.assertEqual(found > 0, looped)


class LoopTest(parameterized.TestCase):
  @parameterized.product(num_steps=(0, 1, 2, 5), inner_steps=INNER_STEPS)
  def test_what_is_seen_is_stacked(self, num_steps, inner_steps):
    execution = jsharp.Execution(inner_steps=inner_steps)
    step = lambda carry, i: (carry + i + 1, {"before": carry})
    carry, seen = repeated(step, jnp.int32(0), num_steps=num_steps, execution=execution)
    self.assertEqual(int(carry), num_steps * (num_steps + 1) // 2)
    if num_steps == 0:
      self.assertIsNone(seen)
    else:
      expected = [i * (i + 1) // 2 for i in range(num_steps)]
      np.testing.assert_array_equal(seen["before"], expected)

  @parameterized.parameters(*INNER_STEPS)
  def test_the_optimizer_goes_on_from_a_given_state(self, inner_steps):
    optimizer = optax.sgd(0.1, momentum=0.5)
    loss_at = lambda i, w: (jnp.sum(w**2), i)
    run = functools.partial(
      optimised,
      optimizer,
      loss_at,
      execution=jsharp.Execution(inner_steps=inner_steps),
    )
    whole, _, seen = run(jnp.float32(1), num_steps=4, see=lambda i, w, aux: (w, aux))
    half, state, _ = run(jnp.float32(1), num_steps=2)
    actual, _, nothing = run(half, state, num_steps=2)
    np.testing.assert_allclose(actual, whole, rtol=1e-6)
    np.testing.assert_allclose(seen[0][-1], whole, rtol=1e-6)
    np.testing.assert_array_equal(seen[1], np.arange(4))
    self.assertIsNone(nothing)

  def test_no_steps_change_nothing(self):
    params, _, seen = optimised(optax.sgd(1.0), None, 3.0, num_steps=0)
    self.assertEqual((params, seen), (3.0, None))


class NetworkTest(parameterized.TestCase):
  def test_the_form_of_convolution_is_the_networks(self):
    from jsharp.models import Conv4, as_functions

    execution = jsharp.Execution(convolution="im2col")
    init_fn, apply_fn = as_functions(
      Conv4(3, num_filters=8, convolution=execution.convolution)
    )
    x = jnp.ones((3, 16, 16, 8))
    params = jax.eval_shape(init_fn, jax.random.key(0), x)
    loss_fn = losses.batch_loss(apply_fn, losses.cross_entropy)
    algorithm = jsharp.maml(
      loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1, execution=execution
    )
    batch = jsharp.Batch(x[None], jnp.arange(3)[None])
    state = jax.eval_shape(algorithm.init, params)
    program = str(jax.make_jaxpr(algorithm.step)(state, jsharp.Task(batch, batch)))
    self.assertIn("form='im2col'", program)
    for other in ("direct", "winograd", "shifted"):
      self.assertNotIn(f"form='{other}'", program)


class ExplicitTest(absltest.TestCase):
  def test_what_is_computed_asks_no_machine_and_no_context(self):
    # Only `execution_for` looks at the machine; all else is told by an `Execution`.
    root = pathlib.Path(jsharp.__file__).parent
    asks = re.compile("cpu_count|sched_getaffinity|ContextVar|local_device_count")
    found = [
      str(path.relative_to(root))
      for folder in ("core", "algorithms", "learners", "models", "nn", "perturbations")
      for path in sorted((root / folder).rglob("*.py"))
      if asks.search(path.read_text())
    ]
    self.assertEqual(found, [])


if __name__ == "__main__":
  absltest.main()
