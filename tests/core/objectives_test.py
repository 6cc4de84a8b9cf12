"""over_tasks: chunks of any size agree with a Python loop, in value and order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

import jsharp
from jsharp.algorithms import maml, reptile
from jsharp.core.objectives import over_tasks, sum_over_devices
from jsharp.nn._divided import TASK_AXIS


def per_task(w, task):
  value, gradient = jax.value_and_grad(lambda w: jnp.sum(jnp.sin(w * task["x"])))(w)
  return (value, gradient), {"loss": value, "vector": w * task["y"]}


class OverTasksTest(parameterized.TestCase):
  @parameterized.parameters(None, 1, 2, 3, 5, 7, 100, "in_order")
  def test_every_chunk_size_equals_a_python_loop(self, chunk):
    with jax.enable_x64(True):
      generator = np.random.default_rng(0)
      tasks = {
        "x": jnp.asarray(generator.normal(size=(7, 3))),
        "y": jnp.asarray(generator.normal(size=(7,))),
      }
      w = jnp.array([0.1, -0.4, 2.0])
      mean, collected = jax.jit(over_tasks(per_task, chunk=chunk))(w, tasks)
      pick = lambda i: jax.tree.map(lambda x: x[i], tasks)
      loop = [per_task(w, pick(i)) for i in range(7)]
      expected_mean = jax.tree.map(lambda *x: sum(x) / 7, *[a for a, _ in loop])
      expected = jax.tree.map(lambda *x: jnp.stack(x), *[c for _, c in loop])
      close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
      jax.tree.map(close, mean, expected_mean)
      jax.tree.map(close, collected, expected)

  def test_order_of_tasks_does_not_change_the_mean(self):
    with jax.enable_x64(True):
      tasks = {"x": jnp.linspace(-1, 2, 15).reshape(5, 3), "y": jnp.arange(5.0)}
      order = jnp.array([3, 1, 4, 0, 2])
      mapped = jax.jit(over_tasks(per_task, chunk=2))
      mean, collected = mapped(jnp.ones(3), tasks)
      shuffled = mapped(jnp.ones(3), jax.tree.map(lambda x: x[order], tasks))
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15),
        (mean, jax.tree.map(lambda x: x[order], collected)),
        shuffled,
      )

  @parameterized.product(
    [
      {"dtype": bool, "value": 1},
      {"dtype": jnp.int8, "value": 100},
      {"dtype": jnp.int32, "value": 2**30},
      {"dtype": jnp.bfloat16, "value": 1},
      {"dtype": jnp.float16, "value": 3000},
      {"dtype": jnp.float8_e4m3fn, "value": 1},
    ],
    chunk=[1, 100, 512, "in_order"],
  )
  def test_sums_outgrow_no_dtype(self, dtype, value, chunk):
    x = jnp.full(512, value).astype(dtype)
    mapped = jax.jit(over_tasks(lambda w, t: (t, ()), chunk=chunk))
    mean, _ = mapped(0.0, x)
    self.assertEqual(float(mean), float(value))
    is_inexact = jnp.issubdtype(dtype, jnp.inexact)
    self.assertEqual(mean.dtype, dtype if is_inexact else jnp.float32)

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_many_tasks_in_half_precision_take_the_whole_step(self, dtype):
    loss_fn = lambda w, batch: (4096 * jnp.sum(w * batch.inputs), {})
    batch = jsharp.Batch(jnp.ones((512, 1), dtype), None)
    for algorithm in (
      maml(loss_fn, optax.sgd(0.0), optax.sgd(2.0**-12), num_inner_steps=1),
      reptile(loss_fn, optax.sgd(2.0**-12), optax.sgd(1.0), num_inner_steps=1),
    ):
      state = algorithm.init(jnp.zeros((), dtype))
      state, _ = jax.jit(algorithm.step)(state, jsharp.Task(batch, batch))
      self.assertEqual(float(state.params), -1.0)
      self.assertEqual(state.params.dtype, dtype)

  def test_memory_does_not_grow_with_the_number_of_tasks(self):
    def temporary_bytes(num_tasks):
      def work(w, x):
        return jnp.sum(jnp.sin(w * x)), ()

      tasks = jax.ShapeDtypeStruct((num_tasks, 4096), jnp.float32)
      compiled = jax.jit(over_tasks(work, chunk=2)).lower(
        jax.ShapeDtypeStruct((4096,), jnp.float32), tasks
      )
      return compiled.compile().memory_analysis().temp_size_in_bytes

    self.assertLess(temporary_bytes(64), 1.5 * temporary_bytes(8) + 4096)

  def test_devices_send_one_message_per_dtype(self):
    mesh = jax.make_mesh((1,), (TASK_AXIS,))
    total = jax.shard_map(sum_over_devices, mesh=mesh, in_specs=P(), out_specs=P())
    tree = {
      "a": jnp.arange(6.0).reshape(2, 3),
      "b": [jnp.float32(7), jnp.arange(3)],
      "c": jnp.zeros((0, 2)),
      "d": jnp.arange(4.0, dtype=jnp.bfloat16),
    }
    jax.tree.map(np.testing.assert_array_equal, total(tree), tree)
    self.assertEqual(str(jax.make_jaxpr(total)(tree)).count("psum"), 3)

  def test_bad_input_is_named(self):
    with self.assertRaisesRegex(ValueError, "chunk.*0"):
      jsharp.over_tasks(per_task, chunk=0)
    with self.assertRaisesRegex(ValueError, "chunk.*in_order.*sorted"):
      jsharp.over_tasks(per_task, chunk="sorted")
    for tasks in (
      {"x": jnp.ones((2, 3)), "y": jnp.ones(3)},
      {"x": jnp.ones((0, 3)), "y": jnp.ones(0)},
      {},
    ):
      with self.assertRaisesRegex(ValueError, "num_tasks"):
        over_tasks(per_task)(jnp.ones(3), tasks)
    with self.assertRaisesRegex(ValueError, r"tasks\['x'\] has 2, tasks\['y'\] has no"):
      over_tasks(per_task)(jnp.ones(3), {"x": jnp.ones(2), "y": 1.0})

  def test_a_list_of_tasks_is_to_be_stacked(self):
    batch = jsharp.Batch(jnp.ones((4, 1)), jnp.ones((4, 1)))
    tasks = [jsharp.Task(batch, batch)] * 3
    loss_fn = lambda w, batch: (jnp.sum(w * batch.inputs), {})
    algorithm = maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
    state = algorithm.init(1.0)
    with self.assertRaisesRegex(ValueError, "tasks is a list of 3.*stack") as caught:
      algorithm.step(state, tasks)
    advice = str(caught.exception).split("stack them: ")[1]
    stacked = eval(advice, {"jax": jax, "jnp": jnp, "tasks": tasks})
    self.assertEqual(algorithm.step(state, stacked)[1]["loss"].shape, (3,))


if __name__ == "__main__":
  absltest.main()
