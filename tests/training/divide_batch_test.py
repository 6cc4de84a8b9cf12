"""Ordinary training on eight devices: the steps of one, and groups that they share.

The tests run in a process of their own that has eight virtual CPU devices and computes
in float64: this file, called as a program.
"""

import functools
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from flax import linen as nn

import jsharp
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.data import augmentation, examples
from jsharp.data.streams import Stream
from jsharp.models._residual import Conv, head
from jsharp.models._shake import shake_shake
from jsharp.models.drop_block import DropBlock
from jsharp.nn import RunningBatchNorm, _conv_forms, _winograd, conv2d
from jsharp.perturbations import SharpGroups
from jsharp.training import devices
from jsharp.training.dispatch import make_dispatch
from jsharp.training.loop import train
from jsharp.training.run_directory import RunDirectory
from jsharp.types import Batch, MetaState, Variables
from tests.virtual_devices import run_on_eight

BATCH_SIZE = 16
PER_DEVICE = BATCH_SIZE // 8
RHO, RATE = 0.1, 0.5
KEY = jax.random.key(5)
QUICK = "--xla_backend_optimization_level=0"  # Compilation takes most of the time.
ROUNDING = 1e-12  # Sums of a few hundred float64 numbers in another order.


class Everything(nn.Module):
  """All layers that depend on the other images of a batch or draw random numbers."""

  @nn.compact
  def __call__(self, inputs, train):
    x = nn.relu(RunningBatchNorm()(Conv(3)(inputs), train))
    x = DropBlock(0.3, size=2)(x, train)
    return head(3, shake_shake(self, x, jnp.square(x), train))


INIT_FN, LOSS_FN = classifier(Everything())


def start():
  variables = jax.jit(INIT_FN)(jax.random.key(1), jnp.zeros((1, 4, 4, 2)))
  # DropBlock reaches its rate after 40,000 passes.
  statistics = {**variables.statistics, "DropBlock_0": {"passes": jnp.float32(4e4)}}
  return variables._replace(statistics=statistics)


def data():
  images = np.random.RandomState(0).randint(0, 256, (40, 4, 4, 2)).astype(np.uint8)
  labels = np.eye(3, dtype=np.float32)[np.arange(40) % 3]
  ones = np.ones(2, np.float32)
  # Exact in float32, so that only float64 is rounded.
  return examples.Examples(images, labels, 128 * ones, ones / 128)


def mixed(key, batch):
  order = jax.random.permutation(key, BATCH_SIZE)
  batch = jax.tree.map(lambda x: x.astype(jnp.float64), batch)
  return jax.tree.map(lambda x: 0.7 * x + 0.3 * x[order], batch)


def sample_batch(step, data):
  return examples.sample_batch(
    0,
    step,
    data,
    batch_size=BATCH_SIZE,
    augment=augmentation.random_flip,
    mix=mixed,
  )


def algorithm(name):
  options = {
    "groups": {"groups": SharpGroups(jsharp.sam_ascent(RHO), PER_DEVICE)},
    "ghosts": {"statistics_batch_size": PER_DEVICE},
    "quarters": {"statistics_batch_size": BATCH_SIZE // 4},
  }
  links = [jsharp.sam(RHO)] if name in ("sam", "ghosts") else []
  optimizer = optax.chain(*links, optax.sgd(RATE, momentum=0.9))
  return supervised(LOSS_FN, optimizer, key=KEY, **options.get(name, {}))


@functools.cache
def compiled(name, num_devices):
  """The dispatch of up to three steps, with its state and data."""
  mesh = None
  ordinary = algorithm(name)
  arguments = ordinary.init(start()), data()
  if num_devices > 1:
    mesh = devices.task_mesh(num_devices, num_tasks=BATCH_SIZE)
    arguments = devices.replicate(arguments, mesh)
  dispatch = make_dispatch(
    ordinary, sample_batch, capacity=3, mesh=mesh, divide="batch"
  )
  state, held = arguments
  return jax.jit(dispatch).lower(state, jnp.int32(3), held).compile(), state, held


def steps(name, num_devices, num_steps=3):
  """The dispatch of some steps, on the host."""
  dispatch, state, held = compiled(name, num_devices)
  return jax.device_get(dispatch(state, jnp.int32(num_steps), held))


@jax.jit
def gradient_of_part(params, statistics, batch, key):
  def loss(params):
    metrics, found = LOSS_FN(Variables(params, statistics), batch, True, key)
    return metrics["loss"].mean(), found

  return jax.grad(loss, has_aux=True)(params)


def shard_by_shard(per_device):
  """The first step written as a loop over the parts of eight devices.

  Args:
    per_device: whether each part has a perturbation of its own, or all have one.

  Returns:
    Parameters and running statistics after the step.
  """
  params, statistics = start()
  batch = jax.jit(sample_batch)(jnp.int32(0), data())
  keys = jax.random.split(jax.random.fold_in(KEY, 0), 8)

  def part(i, params):
    rows = slice(i * PER_DEVICE, (i + 1) * PER_DEVICE)
    mine = jax.tree.map(lambda x: x[rows], batch)
    return gradient_of_part(params, statistics, mine, keys[i])

  def mean(parts):
    return jax.tree.map(lambda *x: sum(x) / len(x), *parts)

  clean = [part(i, params) for i in range(8)]
  directions = [grads for grads, _ in clean]
  if not per_device:
    directions = [mean(directions)] * 8

  def sharp(i):
    size = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(directions[i])))
    above = jax.tree.map(lambda w, g: w + RHO * g / size, params, directions[i])
    return part(i, above)[0]

  grads = mean([sharp(i) for i in range(8)])
  moved = jax.tree.map(lambda w, g: w - RATE * g, params, grads)
  return moved, mean([found for _, found in clean])


class OnEightDevices(absltest.TestCase):
  """Run by `DivideBatchTest`, in the other process."""

  __test__ = False  # pytest leaves it alone in this one

  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)

  def assert_same(self, actual, expected, tolerance=ROUNDING):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
      actual,
      expected,
    )

  def difference(self, first, second):
    """The largest difference between two pytrees."""
    pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)

  def test_equals_one_device(self):
    for name in ("sgd", "sam"):
      one, eight = (steps(name, n) for n in (1, 8))
      self.assertEqual(one.state.params.params["head"]["kernel"].dtype, np.float64)
      self.assertEqual(eight.metrics["loss"].shape, (3, BATCH_SIZE))
      self.assert_same(eight, one)
    for num_devices in (1, 8):
      activations = f"f64[{BATCH_SIZE // num_devices},4,4,3]"
      program = compiled("sam", num_devices)[0].as_text()
      self.assertIn(activations, program)
      self.assertEqual("f64[16,4,4,3]" in program, num_devices == 1)
    plain = steps("sgd", 1)
    self.assertGreater(self.difference(plain.state.params, one.state.params), 1e-4)

  def test_statistics_and_a_perturbation_of_each_device(self):
    eight = steps("groups", 8, 1).state.params
    self.assert_same(eight, Variables(*shard_by_shard(per_device=True)))
    whole = steps("sam", 8, 1).state.params
    self.assertGreater(self.difference(eight.params, whole.params), 1e-4)
    self.assertGreater(self.difference(eight.statistics, whole.statistics), 1e-4)

  def test_statistics_of_each_device_and_one_perturbation(self):
    eight = steps("ghosts", 8, 1).state.params
    self.assert_same(eight, Variables(*shard_by_shard(per_device=False)))
    for other in ("sam", "groups"):
      params = steps(other, 8, 1).state.params.params
      self.assertGreater(self.difference(eight.params, params), 1e-4)

  def test_a_run_goes_on_with_another_number_of_devices(self):
    def loss_fn(variables, batch, train):
      errors = batch.inputs @ variables.params - batch.targets
      return {"loss": errors**2}, variables.statistics + batch.inputs.mean(0)

    def batch_of(step):
      x = jax.random.normal(jax.random.fold_in(KEY, step), (BATCH_SIZE, 3))
      return Batch(x[:, :2], x[:, 2])

    class Batches(Stream):
      def __init__(self):
        self.spec = jax.eval_shape(batch_of, 0)

      def batches(self, first=0):
        for step in range(first, 6):
          yield jax.device_get(batch_of(step))

    def drawn(step, data):
      return batch_of(step) if data is None else data

    optimizer = optax.chain(jsharp.sam(RHO), optax.sgd(0.1, momentum=0.9))
    linear = supervised(loss_fn, optimizer)

    def trained(directory, *stages):
      for num_steps, num_devices, held in stages:
        with RunDirectory.open(directory, identity={}) as run:
          result = train(
            linear,
            Variables(jnp.array([1.0, -2.0]), jnp.zeros(2)),
            drawn,
            held,
            run=run,
            num_steps=num_steps,
            num_tasks=BATCH_SIZE,
            progress=False,
            num_devices=num_devices,
            divide="batch",
          )
      return result.state

    with tempfile.TemporaryDirectory() as directory:
      path = pathlib.Path(directory)
      expected = trained(path / "one", (6, 1, None))
      stages = (2, 2, None), (4, 8, Batches()), (6, 1, None)
      self.assert_same(trained(path / "many", *stages), expected)

  @mock.patch.object(_conv_forms, "_CHUNK_PIXELS", 72)
  @mock.patch.object(_winograd, "_CHUNK_ENTRIES", 5_000)
  def test_convolutions_do_not_gather_the_examples(self):
    # With these constants every form is a loop over parts of the batch.
    random = np.random.RandomState(0)
    x, w = random.normal(size=(16, 6, 6, 16)), random.normal(size=(3, 3, 16, 16))

    def values(divided, args):
      def loss(x, w, form):
        return jnp.sin(conv2d(x, w, convolution=form)).sum()

      def all_forms(args):
        forms = ("direct", "im2col", "winograd")
        return [jax.value_and_grad(loss, (0, 1))(*args, form) for form in forms]

      if not divided:
        return jax.jit(all_forms).lower(args).compile()
      step = devices.divide_batch(
        lambda state, images: (state, all_forms((images, state.params))),
        lambda step, images: images,
        devices.task_mesh(8, num_tasks=16),
      )
      state = MetaState(jnp.int32(0), args[1], ())
      return jax.jit(step).lower(state, args[0]).compile()

    one, eight = (values(divided, (x, w)) for divided in (False, True))
    _, found = eight(MetaState(jnp.int32(0), w, ()), x)
    self.assert_same(found, one((x, w)), tolerance=1e-11)
    self.assertNotIn("all-gather", eight.as_text())

  def test_groups_that_devices_cannot_share(self):
    with self.assertRaisesRegex(ValueError, "4 tasks or groups .* among 8 devices"):
      compiled("quarters", 8)


class DivideBatchTest(absltest.TestCase):
  def test_on_eight_virtual_devices(self):
    run_on_eight(self, "tests.training.divide_batch_test", num_tests=6, xla_flags=QUICK)


if __name__ == "__main__":
  jax.config.update("jax_enable_x64", True)
  absltest.main()
