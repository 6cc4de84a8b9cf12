"""Images in host memory: the tasks, numbers and bits of images on the device."""

import functools
import pathlib
import tempfile
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from jsharp import Execution, algorithms, data, losses
from jsharp.data import HostImages, prefetch
from jsharp.data._shelf import Shelf
from jsharp.data.corruption import with_distortion, with_label_noise
from jsharp.data.prefetch import THREAD_NAME, Prefetch
from jsharp.evaluation.tasks import evaluate, evaluator, task_list
from jsharp.models import MLP, as_functions
from jsharp.normalization import query_loss, transductive
from jsharp.training import devices
from jsharp.training.dispatch import Dispatcher, NonFiniteLossError, make_dispatch
from jsharp.training.mixture import mixture
from tests.virtual_devices import run_on_eight

SHAPE = {"way": 3, "shot": 1, "query_shot": 2}
NUM_TASKS = 4


def make_dataset(num_rotations=1):
  images = np.random.default_rng(0).integers(0, 256, (28, 3, 3, 1), np.uint8)
  arrays = {f"class{i}": images[4 * i : 4 * i + 4] for i in range(7)}
  return data.Dataset.from_class_arrays(
    arrays, split="train", num_rotations=num_rotations
  )


def sample_tasks(step, dataset, part=(0, 1), *, shot=1):
  num_tasks = NUM_TASKS // part[1]
  return data.sample_tasks(
    data.task_key(0, step),
    dataset,
    num_tasks=num_tasks,
    first_task=part[0] * num_tasks,
    **{**SHAPE, "shot": shot},
  )


@functools.cache
def learner():
  init_fn, apply_fn = as_functions(MLP(features=(4, 3)))
  algorithm = algorithms.fomaml(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(0.1),
    optax.sgd(0.1),
    num_inner_steps=1,
    execution=Execution(task_chunk="in_order"),
  )
  return algorithm, init_fn(jax.random.key(0), jnp.zeros((1, 3, 3, 1)))


def evaluate_tasks():
  _, apply_fn = as_functions(MLP(features=(4, 3)))
  query_loss_fn = query_loss(transductive(apply_fn), losses.cross_entropy)
  execution = Execution(task_chunk="in_order")
  return evaluator(learner()[0].adapt, query_loss_fn, execution=execution)


def wait_for(images, num_entries):
  """Until that much was gathered ahead, two steps of support and query each."""
  deadline = time.monotonic() + 5
  while len(images.shelf._entries) < num_entries and time.monotonic() < deadline:
    time.sleep(0.005)


def slow(algorithm, images, num_entries=4):
  """The same, each step as long as the prefetch needs for two others."""

  def wait(loss):
    wait_for(images, num_entries)
    return np.asarray(loss)

  def step(state, tasks):
    state, metrics = algorithm.step(state, tasks)
    loss = jax.pure_callback(wait, metrics["loss"], metrics["loss"])
    return state, {**metrics, "loss": loss}

  return algorithm._replace(step=step)


def started(algorithm, params):
  """A first state; a copy, because a dispatch consumes it."""
  return jax.tree.map(lambda x: jnp.array(x, copy=True), algorithm.init(params))


def trained(algorithm, draw, dataset, num_steps, params):
  """State, losses and dispatcher after some steps in one dispatch."""
  dispatcher = Dispatcher(algorithm, draw, num_tasks=NUM_TASKS)
  state = started(algorithm, params)
  dispatcher.compile(state, dataset)
  dispatcher.length = num_steps
  state, done = dispatcher.run(state, dataset, num_steps)
  return state, done, dispatcher


def assert_same(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def prefetch_threads():
  return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class Gathers:
  """Counts gathers by the prefetch and by callbacks."""

  def __init__(self, test):
    self.ahead = self.late = 0
    gather = HostImages.gather

    def counted(images, rows):
      if threading.current_thread().name == THREAD_NAME:
        self.ahead += 1
      else:
        self.late += 1
      return gather(images, rows)

    test.enter_context(mock.patch.object(HostImages, "gather", counted))


class HostImagesTest(parameterized.TestCase):
  def test_tasks_are_those_of_the_device(self):
    sample = functools.partial(data.sample_task, **SHAPE)
    change = functools.partial(with_distortion, rotation=(-90.0, 90.0))
    changed = with_label_noise(change(sample), way=3, support_rate=0.4)
    dataset = make_dataset(num_rotations=4)
    one, many = jax.jit(changed), jax.jit(jax.vmap(changed, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(5), 6)
    host, device = dataset.on_host(), dataset.on_device()
    assert_same(one(keys[0], host), one(keys[0], device))
    assert_same(many(keys, host), many(keys, device))
    assert_same(sample(keys[1], host), sample(keys[1], device))  # without jit
    self.assertIsInstance(host.images, HostImages)

  def test_a_memory_map_is_read_where_it_is_asked_for(self):
    dataset = make_dataset()
    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory) / "images.npy"
      np.save(path, dataset.images)
      images = HostImages(np.load(path, mmap_mode="r"))
      found = jax.jit(lambda images, rows: images[rows])(images, jnp.array([[5], [2]]))
    np.testing.assert_array_equal(found, dataset.images[[[5], [2]]])

  def test_looks_like_the_array(self):
    dataset = make_dataset()
    host = dataset.on_host()
    self.assertEqual(host.fingerprint(), dataset.fingerprint())
    self.assertEqual(repr(host), repr(dataset))
    self.assertIs(host.on_host().images, host.images)
    self.assertIsInstance(host.on_device().images, jax.Array)
    np.testing.assert_array_equal(host.on_device().images, dataset.images)
    np.testing.assert_array_equal(host.images[2:4], dataset.images[2:4])
    self.assertLen(host.images, 28)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, r"float32 of shape \(2, 3\)"):
      HostImages(np.zeros((2, 3), np.float32))
    with self.assertRaisesRegex(TypeError, "rows is float32"):
      make_dataset().on_host().images[jnp.ones(2)]

  def test_evaluation(self):
    measure, (_, params) = evaluate_tasks(), learner()
    tasks = task_list(
      functools.partial(data.sample_task, **SHAPE), seed=3, stream="test"
    )
    host, device = (
      evaluate(measure, params, tasks, dataset, num_tasks=5, chunk=2)
      for dataset in (make_dataset().on_host(), make_dataset().on_device())
    )
    assert_same(host, device)

  def test_training(self):
    algorithm, params = learner()
    host, device = (
      trained(algorithm, sample_tasks, dataset, 6, params)
      for dataset in (make_dataset().on_host(), make_dataset().on_device())
    )
    self.assertEqual(host[1].num_steps, 6)
    self.assertGreater(np.ptp(host[1].metrics["loss"]), 0)
    assert_same(host[0], device[0])
    assert_same(host[1].metrics, device[1].metrics)
    self.assertTrue(host[2]._prefetch.active)
    self.assertFalse(device[2]._prefetch.active)


class ShelfTest(absltest.TestCase):
  def test_two_steps_ahead_and_nothing_that_is_late(self):
    entries = {}
    shelf = Shelf(3, entries)
    gather = lambda: np.zeros(1)
    for step in (3, 4):
      self.assertEqual(shelf.wait_for_room(step), step)
      self.assertFalse(shelf.put(("support", step), step, gather))
      self.assertFalse(shelf.put(("query", step), step, gather))
    waiting = threading.Thread(target=shelf.wait_for_room, args=(5,))
    waiting.start()
    waiting.join(0.05)
    self.assertTrue(waiting.is_alive())
    self.assertIsNotNone(shelf.take(("query", 3)))
    waiting.join()
    self.assertIsNone(shelf.take(("query", 3)))  # once
    self.assertIsNone(shelf.take(("support", 6)))
    self.assertTrue(shelf.put(("support", 6), 6, gather))  # the other was faster
    self.assertEqual(shelf.wait_for_room(5), 7)
    self.assertEmpty(entries)
    shelf.skip_to(10)
    self.assertEqual(shelf.wait_for_room(8), 10)
    shelf.close()
    self.assertIsNone(shelf.wait_for_room(7))
    self.assertFalse(shelf.put("x", 7, gather))
    self.assertEmpty(entries)


class PrefetchTest(parameterized.TestCase):
  def assert_over(self, images, ahead, num_entries=0):
    self.assertEmpty(prefetch_threads())
    self.assertIsNone(images.shelf)
    self.assertLen(ahead._entries, num_entries)

  @parameterized.named_parameters(
    ("one_shape", False),
    ("several_shapes", True),
  )
  def test_callbacks_find_the_images_ready(self, several):
    algorithm, params = learner()
    draw = sample_tasks
    gathers, dataset = Gathers(self), make_dataset().on_host()
    algorithm = slow(algorithm, dataset.images)
    if several:
      samplers = [functools.partial(sample_tasks, shot=shot) for shot in (1, 2)]
      algorithm, draw = mixture([algorithm] * 2, samplers)
    state, done, dispatcher = trained(algorithm, draw, dataset, 5, params)
    self.assertEqual(done.num_steps, 5)
    self.assertLessEqual(gathers.late, 2)  # of the first step
    # Two steps more wait for the next dispatch, which has none to gather late.
    self.assert_over(dataset.images, dispatcher._prefetch, num_entries=4)
    before = gathers.late
    for _ in range(2):
      dispatcher.length = 1
      state, _ = dispatcher.run(state, dataset, 1)
    self.assertEqual(gathers.late, before)
    self.assertEqual(int(state.step), 7)
    self.assertEqual(gathers.ahead + gathers.late, 2 * (7 + 2))

  @parameterized.parameters("cpu", "an accelerator")
  def test_rows_known_before_and_found_out_meanwhile(self, platform):
    gathers, dataset = Gathers(self), make_dataset().on_host()
    draw = jax.jit(sample_tasks)
    expected = [draw(step, make_dataset().on_device()) for step in range(5)]
    draw(0, dataset)
    ahead, late = Prefetch(sample_tasks, dataset), gathers.late
    rows_of, by = ahead._rows_of, set()

    def rows_by(step):
      by.add(threading.current_thread().name == THREAD_NAME)
      return rows_of(step)

    ahead._rows_of = rows_by
    with mock.patch.object(prefetch.jax, "default_backend", lambda: platform):
      with ahead.steps(0, 5):
        for step in range(5):
          time.sleep(0.2)
          assert_same(draw(step, dataset), expected[step])
        time.sleep(0.2)
      self.assertEqual(gathers.late, late)
      self.assertEqual(by, {platform != "cpu"})
      self.assert_over(dataset.images, ahead, num_entries=4)
      ahead.clear()
      self.assert_over(dataset.images, ahead)

  @parameterized.parameters("cpu", "an accelerator")
  def test_catches_up_with_training_that_was_faster(self, platform):
    num_steps, gathers, dataset = 40, Gathers(self), make_dataset().on_host()
    draw = jax.jit(sample_tasks)
    expected = [draw(step, make_dataset().on_device()) for step in range(num_steps)]
    ahead = Prefetch(sample_tasks, dataset)
    rows_of = ahead._rows_of

    def rows_of_slowly(step):
      if threading.current_thread().name == THREAD_NAME:
        time.sleep(0.02)
      return rows_of(step)

    ahead._rows_of = rows_of_slowly
    late = []
    with (
      mock.patch.object(prefetch.jax, "default_backend", lambda: platform),
      ahead.steps(0, num_steps),
    ):
      for step in range(num_steps):
        if step >= 10:
          wait_for(dataset.images, 4)
        assert_same(draw(step, dataset), expected[step])
        self.assertLessEqual(len(ahead._entries), 8)
        late.append(gathers.late)
    self.assertEqual(late[-1], late[-5])
    self.assertTrue(ahead.active)
    self.assertEmpty(prefetch_threads())

  def test_a_gather_that_fails_is_made_by_the_callback(self):
    dataset = make_dataset().on_host()
    draw = jax.jit(sample_tasks)
    expected = [draw(step, make_dataset().on_device()) for step in range(4)]
    ahead = Prefetch(sample_tasks, dataset)
    gather = HostImages.gather

    def gather_or_fail(images, rows):
      if threading.current_thread().name == THREAD_NAME:
        raise OSError("no such block")
      return gather(images, rows)

    with (
      mock.patch.object(HostImages, "gather", gather_or_fail),
      self.assertLogs("absl", "WARNING") as logs,
    ):
      for first in (0, 2):
        with ahead.steps(first, 2):
          for step in (first, first + 1):
            time.sleep(0.05)
            assert_same(draw(step, dataset), expected[step])
    self.assertLen(logs.output, 1)
    self.assertRegex(logs.output[0], "OSError: no such block")
    self.assertFalse(ahead.active)
    self.assert_over(dataset.images, ahead)

  @parameterized.named_parameters(
    ("looks_at_all_images", lambda step, dataset: [][0], "IndexError"),
    ("reads_none", lambda step, dataset: dataset.counts, "reads no images"),
  )
  def test_a_sampler_that_cannot_be_foreseen(self, draw, message):
    dataset = make_dataset().on_host()
    with self.assertLogs("absl", "WARNING") as logs:
      ahead = Prefetch(draw, dataset)
    self.assertRegex(logs.output[0], message)
    with ahead.steps(0, 5):
      self.assertIsNone(dataset.images.shelf)

  def test_without_a_cpu_platform(self):
    def local_devices(backend=None):
      raise RuntimeError(f"Unknown backend {backend}")

    with (
      mock.patch.object(prefetch.jax, "local_devices", local_devices),
      self.assertLogs("absl", "WARNING") as logs,
    ):
      ahead = Prefetch(sample_tasks, make_dataset().on_host())
    self.assertRegex(logs.output[0], "Unknown backend cpu")
    self.assertFalse(ahead.active)

  def test_an_early_end_leaves_nothing_behind(self):
    algorithm, params = learner()

    def step(state, tasks):
      broken = jnp.where(state.step == 2, jnp.nan, 1.0)
      after, metrics = algorithm.step(state, tasks)
      return after, {**metrics, "loss": metrics["loss"] * broken}

    dataset = make_dataset().on_host()
    breaks = slow(algorithm._replace(step=step), dataset.images)
    _, done, dispatcher = trained(breaks, sample_tasks, dataset, 6, params)
    self.assertIsInstance(done.error, NonFiniteLossError)
    self.assertEqual(done.num_steps, 2)
    self.assert_over(dataset.images, dispatcher._prefetch)

  def test_an_error_leaves_nothing_behind(self):
    dataset = make_dataset().on_host()
    ahead = Prefetch(sample_tasks, dataset)
    with self.assertRaises(KeyboardInterrupt), ahead.steps(0, 3):
      time.sleep(0.05)
      raise KeyboardInterrupt
    self.assert_over(dataset.images, ahead)


class OnEightDevices(parameterized.TestCase):
  """Run by `DevicesTest`, in the other process."""

  __test__ = False  # pytest leaves it alone in this one

  def _steps_on_the_device(self, mesh):
    algorithm, params = learner()
    dispatch = make_dispatch(algorithm, sample_tasks, capacity=5, mesh=mesh)
    dataset = make_dataset().on_device()
    state, dataset = devices.replicate((started(algorithm, params), dataset), mesh)
    dispatch = jax.jit(
      dispatch, compiler_options=devices.compiler_options(devices.execution_for())
    )
    return jax.device_get(dispatch(state, jnp.int32(5), dataset))

  def test_every_part_is_gathered_ahead_and_equals_the_device(self):
    algorithm, params = learner()
    mesh = devices.task_mesh(2, num_tasks=NUM_TASKS)
    gathers, dataset = Gathers(self), make_dataset().on_host()
    algorithm = slow(algorithm, dataset.images, num_entries=8)
    dispatcher = Dispatcher(
      algorithm,
      sample_tasks,
      num_tasks=NUM_TASKS,
      mesh=mesh,
      execution=devices.execution_for(),
    )
    state, dataset = devices.replicate((started(algorithm, params), dataset), mesh)
    dispatcher.compile(state, dataset)
    dispatcher.length = 5
    state, done = dispatcher.run(state, dataset, 5)
    self.assertEqual(done.num_steps, 5)
    self.assertLessEqual(gathers.late, 4)  # of the first step
    self.assertLen(dispatcher._prefetch._entries, 2 * 2 * 2)
    expected = self._steps_on_the_device(mesh)
    assert_same(done.metrics["loss"], expected.metrics["loss"])
    assert_same(jax.device_get(state), expected.state)


class DevicesTest(absltest.TestCase):
  def test_on_eight_virtual_devices(self):
    # As --deterministic has it: programs around the same step are fused differently.
    flags = "--xla_cpu_max_isa=AVX"
    run_on_eight(self, "tests.data.host_test", num_tests=1, xla_flags=flags)


if __name__ == "__main__":
  absltest.main()
