"""Meta-steps on eight devices: the tasks, the numbers and the bits of one.

JAX's devices are fixed when it starts, so most tests run in a process of their own that
has eight virtual CPU devices: this file, called as a program.
"""

import functools
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from jsharp import algorithms, losses
from jsharp.core.execution import Execution
from jsharp.core.objectives import over_tasks
from jsharp.data import sinusoid, task_key
from jsharp.evaluation import tasks as evaluation
from jsharp.models import MLP, as_functions
from jsharp.training import devices
from jsharp.training.dispatch import make_dispatch
from jsharp.training.loop import train
from jsharp.training.mixture import mixture
from jsharp.training.over_seeds import over_seeds
from jsharp.training.run_directory import RunDirectory
from jsharp.types import Batch, Task
from tests.virtual_devices import run_on_eight

NUM_TASKS = 8
IN_ORDER = Execution(task_chunk="in_order")
INIT_FN, APPLY_FN = as_functions(MLP(features=(8, 1)))
LOSS_FN = losses.batch_loss(APPLY_FN, losses.squared_error)


def start():
  return INIT_FN(jax.random.key(0), jnp.zeros((1, 1)))


def sample_tasks(step, data, part=(0, 1), *, shot=5):
  num_tasks = NUM_TASKS // part[1]
  return sinusoid.sample_tasks(
    task_key(0, step),
    num_tasks=num_tasks,
    shot=shot,
    query_shot=5,
    first_task=part[0] * num_tasks,
  )


def sine_learner(name="fomaml", **options):
  if name == "sharp_maml":
    options = {"outer_rho": 0.05, **options}  # The inner loop is a task's own.
  if name == "reptile":
    options = {"outer_optimizer": optax.sgd(0.5), **options}
  return getattr(algorithms, name)(
    LOSS_FN,
    **{
      "inner_optimizer": optax.sgd(0.01),
      "outer_optimizer": optax.adam(1e-3),
      "num_inner_steps": 1,
      **options,
    },
  )


def steps(algorithm, draw, num_devices, params, *, num_steps=3, data=None):
  """The dispatch of some steps, on the host."""
  mesh = devices.task_mesh(num_devices, num_tasks=NUM_TASKS)
  dispatch = make_dispatch(algorithm, draw, capacity=num_steps, mesh=mesh)
  state = devices.replicate(algorithm.init(params), mesh)
  data = devices.replicate(data, mesh)
  return jax.device_get(jax.jit(dispatch)(state, jnp.int32(num_steps), data))


class OnEightDevices(parameterized.TestCase):
  """Run by `DevicesTest`, in the other process."""

  __test__ = False  # pytest leaves it alone in this one

  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)

  def assert_same(self, actual, expected, rtol):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol),
      actual,
      expected,
    )

  @parameterized.parameters("sharp_maml", "reptile")
  def test_equals_one_device_to_rounding(self, name):
    algorithm = sine_learner(name)
    expected = steps(algorithm, sample_tasks, 1, start())
    actual = steps(algorithm, sample_tasks, 4, start())
    self.assertEqual(actual.metrics["loss"].shape, (3, NUM_TASKS))
    self.assertGreater(np.ptp(actual.metrics["loss"][0]), 0)
    self.assert_same(actual, expected, 2e-5)

  def test_in_order_gives_the_same_bits(self):
    algorithm = sine_learner("sharp_maml", execution=IN_ORDER)
    expected = steps(algorithm, sample_tasks, 1, start())
    # Of eight devices each has one task, whose bits would be the same in any order.
    actual = steps(algorithm, sample_tasks, 2, start())
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

  def test_images(self):
    init_fn, apply_fn = as_functions(MLP(features=(8, 3), normalize=True))
    loss_fn = losses.batch_loss(apply_fn, losses.cross_entropy)
    algorithm = algorithms.fomaml(
      loss_fn,
      optax.sgd(0.1),
      optax.adam(1e-3),
      num_inner_steps=1,
      execution=IN_ORDER,
    )
    images = jax.random.normal(jax.random.key(1), (NUM_TASKS, 3, 4, 4, 1))

    def draw(step, data, part):
      size = NUM_TASKS // part[1]
      mine = jax.lax.dynamic_slice_in_dim(data, part[0] * size, size)
      labels = jnp.tile(jnp.arange(3), (size, 1))
      return Task(Batch(mine, labels), Batch(mine[:, ::-1], labels[:, ::-1]))

    params = init_fn(jax.random.key(0), images[0])
    expected, actual = (
      steps(algorithm, draw, n, params, num_steps=1, data=images) for n in (1, 4)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

  def test_several_seeds(self):
    algorithm = over_seeds([sine_learner(), sine_learner()], together=False)

    def draw(step, data, part):
      one = sample_tasks(step, data, part)
      return jax.tree.map(lambda x: jnp.stack([x, x[:, ::-1]]), one)

    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), start())
    expected, actual = (steps(algorithm, draw, n, params) for n in (1, 2))
    self.assertEqual(actual.metrics["loss"].shape, (3, 2 * NUM_TASKS))
    self.assert_same(actual, expected, 2e-5)

  def test_several_shapes(self):
    samplers = [functools.partial(sample_tasks, shot=shot) for shot in (3, 7)]
    algorithm, draw = mixture([sine_learner()] * 2, samplers)
    expected, actual = (steps(algorithm, draw, n, start()) for n in (1, 4))
    self.assert_same(actual, expected, 2e-5)

  def test_a_loss_that_is_not_finite_names_its_task(self):
    def draw(step, data, part):
      tasks = sample_tasks(step, data, part)
      number = part[0] * (NUM_TASKS // part[1]) + jnp.arange(NUM_TASKS // part[1])
      broken = jnp.where(number == 5, jnp.nan, 1.0)[:, None, None]
      return jax.tree.map(lambda x: x * broken, tasks)

    result = steps(sine_learner(), draw, 4, start())
    self.assertEqual((bool(result.finite), int(result.num_done)), (False, 0))
    self.assertEqual(np.flatnonzero(np.isnan(result.metrics["loss"][0])).tolist(), [5])

  def test_a_run_goes_on_with_another_number_of_devices(self):
    algorithm = sine_learner(execution=IN_ORDER)
    seen = []

    def validate(params):
      seen.append({len(leaf.devices()) for leaf in jax.tree.leaves(params)})
      return {"accuracy": 0.0}

    def trained(directory, *stages):
      for num_steps, num_devices in stages:
        with RunDirectory.open(directory, identity={}) as run:
          result = train(
            algorithm,
            start(),
            sample_tasks,
            None,
            run=run,
            num_steps=num_steps,
            num_tasks=NUM_TASKS,
            validate=validate,
            progress=False,
            num_devices=num_devices,
          )
      return jax.device_get(result.state)

    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory)
      expected = trained(path / "one", (6, 1))
      actual = trained(path / "many", (3, 2), (6, 1))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    self.assertEqual(seen, [{1}] * len(seen))

  def test_constants_lie_once_in_memory(self):
    mesh = devices.task_mesh(4, num_tasks=4)
    tree = {"x": jnp.arange(1000.0), "key": jax.random.key(3), "number": 2}
    for constant, places in ((True, 1), (False, 4)):
      copies = devices.replicate(tree, mesh, constant=constant)
      shards = copies["x"].addressable_shards
      self.assertLen({s.data.unsafe_buffer_pointer() for s in shards}, places)
      self.assertLen(shards, 4)
      np.testing.assert_array_equal(copies["x"], tree["x"])
      self.assertEqual(copies["key"], tree["key"])

  @parameterized.parameters((11, 4), (3, 20), (24, 8))
  def test_evaluation_is_divided(self, num_tasks, chunk):
    shapes = []

    def draw(index, data):
      return data["x"][index % 5] + jax.random.normal(data["key"], ())

    def evaluate_tasks(params, tasks):
      shapes.append(tasks.shape)
      return {"loss": params * tasks, "row": jnp.stack([tasks, -tasks], 1)}

    data = {"x": jnp.arange(5.0), "key": jax.random.key(0)}
    arguments = draw, data
    options = {"num_tasks": num_tasks, "chunk": chunk}
    actual = evaluation.evaluate(
      evaluate_tasks,
      jnp.float32(3),
      *arguments,
      **options,
      execution=devices.execution_for(),
    )
    divided = -(-min(chunk, num_tasks) // 8)
    self.assertEqual(shapes, [(divided,)])
    expected = evaluation.evaluate(
      evaluate_tasks, jnp.float32(3), *arguments, **options
    )
    self.assertEqual(expected["row"].shape, (num_tasks, 2))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)

  @parameterized.parameters(None, "in_order")
  def test_a_derivative_through_the_mean_is_refused(self, chunk):
    mesh = devices.task_mesh(2, num_tasks=2)
    mean = over_tasks(lambda w, x: (w * x, ()), chunk=chunk)
    gradient = jax.shard_map(
      lambda w, x: jax.grad(lambda w: mean(w, x)[0])(w),
      mesh=mesh,
      in_specs=(P(), P("tasks")),
      out_specs=P(),
      check_vma=False,
    )
    with self.assertRaisesRegex(ValueError, "take the gradient inside task_fn"):
      jax.jit(gradient)(jnp.float32(1), jnp.array([1.0, 3.0]))

  def test_tasks_that_cannot_be_shared_are_refused(self):
    for num_tasks, nearest in ((9, 8), (15, 16), (3, 8)):
      with self.assertRaisesRegex(ValueError, f"nearest number that can is {nearest}$"):
        devices.task_mesh(8, num_tasks=num_tasks)


class DevicesTest(parameterized.TestCase):
  def test_on_eight_virtual_devices(self):
    # As --deterministic has it: else products and sums are contracted, or not, as
    # fusions fall.
    flags = "--xla_cpu_max_isa=AVX"
    run_on_eight(self, "tests.training.devices_test", num_tests=15, xla_flags=flags)

  @parameterized.parameters(
    ("cpu", 1, 1, True),
    ("cpu", 2, 1, False),
    ("cpu", 2, 2, True),
    ("cpu", 8, 4, False),
    ("cpu", 2, 8, True),
    ("gpu", 1, 1, False),
  )
  def test_execution_by_platform_cores_and_devices(self, platform, cores, count, one):
    with (
      mock.patch.object(jax, "default_backend", return_value=platform),
      mock.patch.object(devices, "num_cores", return_value=cores),
      mock.patch.object(jax, "local_device_count", return_value=count),
    ):
      found = devices.execution_for(task_chunk=3)
      self.assertEqual(found, devices.execution_for(task_chunk=3, one_core_each=one))
      for answer in (True, False):
        asked = devices.execution_for(one_core_each=answer)
        self.assertEqual(asked.single_threaded, answer)
    self.assertEqual(found.single_threaded, one)
    self.assertEqual(found.inner_steps, "recomputed" if one else "unrolled")
    self.assertEqual(found.convolution, "auto_winograd" if one else "auto")
    self.assertEqual(found.task_chunk, 3)

  def test_what_is_asked_for_goes_before_what_suits(self):
    found = devices.execution_for(convolution="direct", one_core_each=True)
    self.assertEqual(found.convolution, "direct")
    with self.assertRaisesRegex(ValueError, "convolution must be one of"):
      devices.execution_for(convolution="fft")

  def test_products_of_one_thread(self):
    one, several = Execution(single_threaded=True), Execution()
    expected = {"xla_cpu_multi_thread_eigen": False}
    self.assertEqual(devices.compiler_options(one), expected)
    self.assertEqual(devices.compiler_options(several), {})
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
      self.assertEqual(devices.compiler_options(one), {})
      self.assertIsNone(devices.parts_of_cpu(one))

  def test_the_defaults_are_those_of_several_cores(self):
    self.assertEqual(devices.execution_for(one_core_each=False), Execution())

  def test_more_devices_than_there_are(self):
    with self.assertRaisesRegex(ValueError, "num_devices=999.*device_count=999"):
      devices.task_mesh(999, num_tasks=999)


if __name__ == "__main__":
  absltest.main()
