import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import sinusoid


def _fit(task):
  """Amplitude and phase (in [0, 2 pi)) of the wave through a task's support."""
  x = np.asarray(task.support.inputs, np.float64)
  design = np.concatenate([np.sin(x), -np.cos(x)], axis=1)
  (cos, sin), *_ = np.linalg.lstsq(design, np.asarray(task.support.targets)[:, 0])
  return math.hypot(cos, sin), math.atan2(sin, cos) % (2 * math.pi)


class SinusoidTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.sample = functools.partial(sinusoid.sample_tasks, shot=5, query_shot=10)

  def test_tasks_have_the_published_distribution(self):
    tasks = jax.jit(functools.partial(self.sample, num_tasks=1000))(jax.random.key(0))
    self.assertEqual(tasks.support.inputs.shape, (1000, 5, 1))
    self.assertEqual(tasks.query.targets.shape, (1000, 10, 1))
    self.assertEqual(tasks.query.targets.dtype, jnp.float32)
    waves = []
    for i in range(1000):
      task = jax.tree.map(lambda a, i=i: np.asarray(a[i]), tasks)
      amplitude, phase = _fit(task)
      waves.append((amplitude, phase))
      expected = amplitude * np.sin(task.query.inputs - phase)
      np.testing.assert_allclose(task.query.targets, expected, atol=1e-2)
    inputs = np.concatenate([tasks.support.inputs, tasks.query.inputs], 1)
    for values, low, high in (
      (np.array(waves)[:, 0], 0.1, 5.0),
      (np.array(waves)[:, 1], 0.0, math.pi),
      (inputs, -5.0, 5.0),
    ):
      spread = high - low
      self.assertGreater(values.min(), low - 1e-2)
      self.assertLess(values.max(), high + 1e-2)
      self.assertLess(values.min(), low + 0.02 * spread)
      self.assertGreater(values.max(), high - 0.02 * spread)
      self.assertAlmostEqual(values.mean(), (low + high) / 2, delta=0.05 * spread)
      self.assertAlmostEqual(values.std(), spread / math.sqrt(12), delta=0.03 * spread)

  def test_support_and_query_points_differ(self):
    task = sinusoid.sample_task(jax.random.key(0), shot=5, query_shot=10)
    shared = np.intersect1d(task.support.inputs, task.query.inputs)
    self.assertEmpty(shared)

  def test_ranges_are_arguments(self):
    task = sinusoid.sample_task(
      jax.random.key(0),
      shot=20,
      query_shot=1,
      amplitudes=(2.0, 2.0),
      phases=(4.0, 4.0),
      inputs=(1.0, 2.0),
    )
    amplitude, phase = _fit(task)
    self.assertAlmostEqual(amplitude, 2.0, places=3)
    self.assertAlmostEqual(phase, 4.0, places=3)
    self.assertBetween(float(task.support.inputs.min()), 1.0, 2.0)

  def test_tasks_drawn_in_parts_are_those_of_a_loop(self):
    key = jax.random.key(3)
    tasks = jax.jit(functools.partial(self.sample, num_tasks=2, first_task=1))(key)
    for i in range(2):
      one = sinusoid.sample_task(jax.random.fold_in(key, i + 1), shot=5, query_shot=10)
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        one,
        jax.tree.map(lambda a, i=i: a[i], tasks),
      )

  @parameterized.named_parameters(
    ("shot", {"shot": 0}, "shot is 0"),
    ("query_shot", {"query_shot": -1}, "query_shot is -1"),
    ("swapped", {"phases": (1.0, 0.0)}, "phases is"),
    ("infinite", {"inputs": (0.0, math.inf)}, "inputs is"),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      sinusoid.sample_task(
        jax.random.key(0), **({"shot": 1, "query_shot": 1} | changes)
      )


if __name__ == "__main__":
  absltest.main()
