"""SAM on a mesh of eight devices: whose batch perturbs, and sharded parameters.

JAX's devices are fixed when it starts, so the tests run in a process of their own
that has eight virtual CPU devices: this file, called as a program.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jsharp
from jsharp import perturbations
from tests.virtual_devices import run_on_eight

RHO = 0.3
AXES = ("outer", "inner")


def loss(w, data):
  x, y = data
  return jnp.mean(jnp.square(jnp.tanh(x @ w) - y))


def example_data():
  generator = np.random.default_rng(0)
  x = jnp.asarray(generator.normal(size=(16, 3)), jnp.float32)
  y = jnp.asarray(generator.normal(size=16), jnp.float32)
  return x, y


def links():
  return {
    "sam": jsharp.sam(RHO),
    "asam": jsharp.asam(RHO),
    "gsam": jsharp.gsam(RHO),
    "wsam": jsharp.wsam(RHO),
    "looksam": jsharp.looksam(RHO, every=2),
    "friendly_sam": jsharp.friendly_sam(RHO),
    "vasso": jsharp.vasso(RHO),
    "sam_every": jsharp.sam_every(RHO, every=2),
    "late_sam": jsharp.late_sam(RHO, start=1),
    "le_sam": jsharp.le_sam(0.5),
    "per_leaf_p3": jsharp.sam(RHO, p=3.0, per_leaf=True),
  }


class OnEightDevices(parameterized.TestCase):
  """Run by `DevicesTest`, in the other process."""

  __test__ = False  # pytest leaves it alone in this one

  def setUp(self):
    super().setUp()
    self.assertLen(jax.devices(), 8)
    self.w = jnp.array([0.5, -1.0, 0.25])
    self.x, self.y = example_data()

  @parameterized.named_parameters(
    ("every_device_its_own", (), 8),
    ("groups_along_inner", ("inner",), 2),
    ("groups_along_outer", ("outer",), 4),
    ("one_of_the_full_batch", AXES, 1),
  )
  def test_whose_batch_perturbs(self, axes, num_groups):
    mesh = jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)
    ascent = jsharp.sam_ascent(RHO)
    if axes:
      ascent = optax.chain(perturbations.pmean(axes), ascent)
    link = jsharp.sharpness_aware(ascent)

    def gradient(w, x, y):
      # A gradient of its own for each device, rather than their sum.
      w = jax.lax.pcast(w, AXES, to="varying")
      grad_fn = lambda w: jax.grad(loss)(w, (x, y))
      sharp, _ = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
      return jax.lax.pmean(sharp, AXES)

    actual = jax.jit(
      jax.shard_map(
        gradient, mesh=mesh, in_specs=(P(), P(AXES), P(AXES)), out_specs=P()
      )
    )(self.w, self.x, self.y)

    device = np.arange(8).reshape(2, 4).repeat(2, axis=1)  # of each example
    group = {
      8: np.arange(8).reshape(2, 4),
      2: np.array([[0] * 4, [1] * 4]),
      4: np.array([[0, 1, 2, 3]] * 2),
      1: np.zeros((2, 4), int),
    }[num_groups].repeat(2, axis=1)
    self.assertEqual(device.shape, group.shape)
    total = 0
    for index in range(num_groups):
      rows = np.flatnonzero(group.ravel() == index)
      data = (self.x[rows], self.y[rows])
      g = jax.grad(loss)(self.w, data)
      e = RHO * g / jnp.linalg.norm(g)
      total += jax.grad(loss)(self.w + e, data) * len(rows) / 16
    np.testing.assert_allclose(actual, total, rtol=1e-5)

  def test_a_mean_inside_the_loss_gives_the_full_batch_perturbation(self):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mean_loss = lambda w, data: jax.lax.pmean(loss(w, data), "data")
    sharp = jsharp.sharpen(mean_loss, jsharp.sam_ascent(RHO))
    actual = jax.jit(
      jax.shard_map(
        lambda w, x, y: jax.grad(sharp)(w, (x, y)),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
      )
    )(self.w, self.x, self.y)
    data = (self.x, self.y)
    g = jax.grad(loss)(self.w, data)
    e = RHO * g / jnp.linalg.norm(g)
    np.testing.assert_allclose(actual, jax.grad(loss)(self.w + e, data), rtol=1e-5)

  @parameterized.parameters(
    *((name, AxisType.Explicit) for name in (*links(), "momentum_sam")),
    ("looksam", AxisType.Auto),
  )
  def test_sharded_parameters(self, name, kind):
    """Values, shardings and the state's types through a scan of four steps."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(kind,))
    w = {"a": jnp.linspace(-1.0, 1.0, 16), "b": jnp.ones((8, 2))}
    if name == "momentum_sam":
      tx = jsharp.momentum_sam(optax.sgd(0.1, momentum=0.9), RHO)
    else:
      tx = optax.chain(links()[name], optax.sgd(0.1, momentum=0.9))
    of_tree = lambda w: jnp.sum(jnp.sin(w["a"]) ** 2) + jnp.sum(w["b"] ** 4)

    def train(w):
      def body(carry, _):
        w, state = carry
        grad_fn = jax.grad(of_tree)
        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return (optax.apply_updates(w, updates), state), None

      return jax.lax.scan(body, (w, tx.init(w)), length=4)[0][0]

    expected = jax.jit(train)(w)
    with jax.set_mesh(mesh):
      sharded = jax.device_put(w, NamedSharding(mesh, P("model")))
      actual = jax.jit(train)(sharded)
    for new, old, alone in zip(
      *map(jax.tree.leaves, (actual, sharded, expected)), strict=True
    ):
      self.assertTrue(new.sharding.is_equivalent_to(old.sharding, new.ndim))
      np.testing.assert_allclose(new, alone, rtol=1e-5, atol=1e-6)


class DevicesTest(absltest.TestCase):
  def test_on_eight_virtual_devices(self):
    run_on_eight(self, "tests.perturbations.devices_test", num_tests=18)


if __name__ == "__main__":
  absltest.main()
