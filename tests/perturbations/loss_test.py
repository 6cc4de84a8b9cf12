"""The loss transformation: clean value, sharp gradient, exact higher derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.test_util import check_grads

import jsharp
from jsharp import perturbations
from tests.perturbations import problems

RHO = 0.3


@jax.jit
def sharp_gradient(w, data, rho=RHO):
  """Written out, and free of jsharp's own pieces."""
  g = jax.grad(problems.loss)(w, data)
  size = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(g)))
  moved = jax.tree.map(lambda w, g: w + rho * g / size, w, g)
  return jax.grad(problems.loss)(moved, data)


def assert_close(actual, expected, rtol=1e-10):
  np.testing.assert_allclose(problems.flat(actual), problems.flat(expected), rtol=rtol)


class SharpenTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.enable_x64(True))
    self.w, self.data = problems.params(jnp.float64), problems.batch(dtype=jnp.float64)
    self.sharp = jsharp.sharpen(problems.loss, jsharp.sam_ascent(RHO))

  def test_value_is_clean_and_gradient_sharp(self):
    value, gradient = jax.jit(jax.value_and_grad(self.sharp))(self.w, self.data)
    self.assertAlmostEqual(float(value), float(problems.loss(self.w, self.data)))
    assert_close(gradient, sharp_gradient(self.w, self.data))

  def test_forward_mode_agrees(self):
    direction = jax.tree.map(jnp.ones_like, self.w)
    value, slope = jax.jvp(lambda w: self.sharp(w, self.data), (self.w,), (direction,))
    self.assertAlmostEqual(float(value), float(problems.loss(self.w, self.data)))
    expected = problems.flat(sharp_gradient(self.w, self.data)).sum()
    self.assertAlmostEqual(float(slope), expected)

  def test_higher_derivatives_are_those_of_the_sharp_gradient(self):
    """The derivative of the gradient, and of that, by the formula written out."""
    weights = jax.tree.map(jnp.cos, self.w)

    def projected(gradient_fn):
      def value(w):
        products = jax.tree.map(lambda g, c: jnp.sum(g * c), gradient_fn(w), weights)
        return sum(jax.tree.leaves(products))

      return value

    ours = projected(lambda w: jax.grad(self.sharp)(w, self.data))
    theirs = projected(lambda w: sharp_gradient(w, self.data))
    third = lambda f: jax.grad(lambda w: jnp.sum(problems_vector(jax.grad(f)(w)) ** 2))
    assert_close(jax.jit(third(ours))(self.w), jax.jit(third(theirs))(self.w))
    check_grads(jax.jit(ours), (self.w,), order=1, modes=("fwd", "rev"), rtol=1e-6)

  def test_meta_gradient_through_inner_steps(self):
    def adapted_loss(gradient_fn, w):
      for _ in range(2):
        w = jax.tree.map(lambda w, g: w - 0.1 * g, w, gradient_fn(w))
      return problems.loss(w, problems.batch(1, dtype=jnp.float64))

    ours = lambda w: adapted_loss(lambda w: jax.grad(self.sharp)(w, self.data), w)
    theirs = lambda w: adapted_loss(lambda w: sharp_gradient(w, self.data), w)
    actual, expected = (jax.jit(jax.grad(f))(self.w) for f in (ours, theirs))
    assert_close(actual, expected)

  def test_the_radius_can_be_meta_learned(self):
    def after_a_step(gradient_fn, rho):
      w = jax.tree.map(lambda w, g: w - 0.1 * g, self.w, gradient_fn(rho))
      return problems.loss(w, problems.batch(1, dtype=jnp.float64))

    def ours(rho):
      sharp = jsharp.sharpen(problems.loss, jsharp.sam_ascent(rho))
      return after_a_step(lambda rho: jax.grad(sharp)(self.w, self.data), rho)

    theirs = functools.partial(
      after_a_step, lambda rho: sharp_gradient(self.w, self.data, rho)
    )
    rho = jnp.asarray(0.2)
    actual, expected = (float(jax.jit(jax.grad(f))(rho)) for f in (ours, theirs))
    self.assertAlmostEqual(actual, expected)
    forward = jax.jit(lambda rho: jax.jvp(ours, (rho,), (jnp.ones_like(rho),))[1])
    self.assertAlmostEqual(float(forward(rho)), expected)

  def test_what_the_loss_closes_over_is_differentiated_at_the_perturbed_point(self):
    x, y = self.data

    def value(offset):
      shifted = lambda w: problems.loss(w, (x, y + offset))
      return jsharp.sharpen(shifted, jsharp.sam_ascent(RHO))(self.w)

    g = problems.flat(jax.grad(problems.loss)(self.w, self.data))
    moved = problems.unflat(problems.flat(self.w) + RHO * problems.unit(g), self.w)
    expected = jax.grad(lambda offset: problems.loss(moved, (x, y + offset)))(0.0)
    self.assertAlmostEqual(float(jax.grad(value)(0.0)), float(expected))

  def test_an_argument_is_differentiated_at_the_perturbed_point(self):
    by_data = jax.jit(jax.grad(self.sharp, argnums=1))(self.w, self.data)
    g = problems.flat(jax.grad(problems.loss)(self.w, self.data))
    moved = problems.unflat(problems.flat(self.w) + RHO * problems.unit(g), self.w)
    assert_close(by_data, jax.grad(problems.loss, argnums=1)(moved, self.data))

  def test_aux_is_that_of_the_clean_pass(self):
    def loss_fn(w, data, *, train):
      value = problems.loss(w, data)
      return value, {"loss": value, "kernel": w["kernel"], "train": train}

    sharp = jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO), has_aux=True)
    (value, aux), gradient = jax.value_and_grad(sharp, has_aux=True)(
      self.w, self.data, train=True
    )
    self.assertEqual(float(value), float(aux["loss"]))
    assert_close(aux["kernel"], self.w["kernel"], rtol=0)
    self.assertTrue(aux["train"])
    assert_close(gradient, sharp_gradient(self.w, self.data))

  def test_aux_has_its_clean_derivative(self):
    sharp = jsharp.sharpen(
      lambda w, data: (problems.loss(w, data), problems.loss(w, data)),
      jsharp.sam_ascent(RHO),
      has_aux=True,
    )
    gradient = jax.grad(lambda w: sharp(w, self.data)[1])(self.w)
    assert_close(gradient, jax.grad(problems.loss)(self.w, self.data))

  def test_vmap_over_tasks_with_labels_that_it_closes_over(self):
    """Integers that are batched by `vmap` and reach the loss by its closure."""
    x = jnp.arange(24.0).reshape(2, 4, 3) / 10
    labels = jnp.array([[0, 1, 1, 0], [1, 0, 1, 1]])

    def gradient(w, x, labels, transform):
      def loss_fn(w):
        logits = x @ w
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

      return jax.grad(transform(loss_fn))(w)

    w = self.w["kernel"]
    sharp = lambda loss_fn: jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO))

    def written_out(loss_fn):
      def perturbed(w):
        g = jax.lax.stop_gradient(jax.grad(loss_fn)(w))
        return loss_fn(w + RHO * g / jnp.linalg.norm(g))

      return perturbed

    together = jax.jit(jax.vmap(lambda x, y: gradient(w, x, y, sharp)))(x, labels)
    alone = jax.jit(functools.partial(gradient, transform=written_out))
    for task in range(2):
      expected = alone(w, x[task], labels[task])
      np.testing.assert_allclose(together[task], expected, rtol=1e-10)

  def test_scan_and_remat(self):
    def train(gradient_fn):
      def body(w, _):
        return jax.tree.map(lambda w, g: w - 0.1 * g, w, gradient_fn(w)), None

      return jax.lax.scan(body, self.w, length=3)[0]

    ours = train(jax.grad(jax.checkpoint(lambda w: self.sharp(w, self.data))))
    assert_close(ours, train(lambda w: sharp_gradient(w, self.data)))

  def test_value_alone_costs_one_evaluation(self):
    counts = []

    def loss_fn(w):
      jax.debug.callback(lambda: counts.append(1))
      return jnp.sum(w**2)

    sharp = jax.jit(jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO)))
    sharp(jnp.ones(3))
    jax.effects_barrier()
    self.assertLen(counts, 1)

  def test_an_ascent_with_state_is_refused(self):
    for ascent in (
      jsharp.sam_ascent(optax.constant_schedule(0.1)),
      optax.chain(perturbations.follow_running_mean(0.9), jsharp.sam_ascent(0.1)),
    ):
      with self.assertRaisesRegex(ValueError, "use the ascent in an optimizer"):
        jsharp.sharpen(problems.loss, ascent)(self.w, self.data)
    stateful = jsharp.sam_ascent(optax.constant_schedule(0.1))
    with self.assertRaisesRegex(ValueError, "fixed radius"):
      jsharp.functional_sam(lambda w: w, jnp.sum, stateful)(jnp.ones(2))


def problems_vector(tree):
  return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


class TrainersTest(parameterized.TestCase):
  def test_flax_train_state(self):
    tx = optax.sgd(0.1)
    w, data = problems.params(), problems.batch()
    state = TrainState.create(apply_fn=None, params=w, tx=tx)
    sharp = jsharp.sharpen(problems.loss, jsharp.sam_ascent(RHO))
    state = state.apply_gradients(grads=jax.grad(sharp)(state.params, data))
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, w, sharp_gradient(w, data))
    assert_close(state.params, expected, rtol=1e-5)

  def test_batch_statistics_come_from_the_clean_pass(self):
    class Net(linen.Module):
      @linen.compact
      def __call__(self, x):
        x = linen.Dense(4)(x)
        x = linen.BatchNorm(use_running_average=False, momentum=0.9)(x)
        return linen.Dense(2)(x)

    x, y = problems.batch()
    with jax.numpy_dtype_promotion("standard"):
      variables = jax.jit(Net().init)(jax.random.key(0), x)

      def loss_fn(w, statistics):
        outputs, new = Net().apply(
          {"params": w, "batch_stats": statistics}, x, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(outputs - y)), new["batch_stats"]

      w, statistics = variables["params"], variables["batch_stats"]
      sharp = jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO), has_aux=True)
      ((_, after), gradient), ((_, clean), clean_gradient) = (
        jax.jit(jax.value_and_grad(fn, has_aux=True))(w, statistics)
        for fn in (sharp, loss_fn)
      )
    assert_close(after, clean, rtol=1e-6)
    difference = problems.flat(gradient) - problems.flat(clean_gradient)
    self.assertGreater(np.abs(difference).max(), 1e-3)

  @parameterized.parameters("link", "loss")
  def test_nnx_optimizer(self, face):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, start = nnx.split(model, nnx.Param)
    x, y = problems.batch()

    def loss_fn(state):
      return jnp.mean(jnp.square(nnx.merge(graph, state)(x) - y))

    g = jax.grad(loss_fn)(start)
    size = optax.tree.norm(g)
    moved = jax.tree.map(lambda w, g: w + RHO * g / size, start, g)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, start, jax.grad(loss_fn)(moved))
    if face == "link":
      tx = optax.chain(jsharp.sam(RHO), optax.sgd(0.1))
      optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      optimizer.update(model, g, grad_fn=jax.grad(loss_fn))
    else:
      optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
      sharp = jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO))
      optimizer.update(model, jax.grad(sharp)(start))
    assert_close(nnx.state(model, nnx.Param), expected, rtol=1e-5)

  @parameterized.parameters(False, True)
  def test_an_nnx_model_that_writes_into_itself(self, has_aux):
    class Net(nnx.Module):
      def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.first = self.second = nnx.Linear(3, 3, rngs=rngs)  # One layer, used twice.
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

      def __call__(self, x, rngs):
        hidden = self.dropout(self.first(self.norm(x)))
        return self.second(self.dropout(hidden, rngs=rngs))

    def loss_fn(model, x, rngs):
      value = jnp.mean(jnp.square(model(x, rngs)))
      return (value, rngs.default.count[...]) if has_aux else value

    def pure(weights, rest, x):
      model, rngs = nnx.merge(graph, weights, rest, copy=True)
      value = jnp.mean(jnp.square(model(x, rngs)))
      return value, nnx.state((model, rngs), nnx.Not(nnx.Param))

    x, _ = problems.batch()
    model, rngs = Net(), nnx.Rngs(1)
    graph, start, rest = nnx.split((Net(), nnx.Rngs(1)), nnx.Param, ...)
    gradient = jax.jit(jax.grad(pure, has_aux=True))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
      sharp = jsharp.sharpen(loss_fn, jsharp.sam_ascent(RHO), has_aux=has_aux)
      step = nnx.jit(nnx.value_and_grad(sharp, has_aux=has_aux))
      for _ in range(2):
        found, actual = step(model, x, rngs)
        clean, after = gradient(start, rest, x)
        size = optax.tree.norm(clean)
        moved = jax.tree.map(lambda w, g, size=size: w + RHO * g / size, start, clean)
        expected, _ = gradient(moved, rest, x)
        rest = after
        assert_close(jax.tree.leaves(actual), jax.tree.leaves(expected), rtol=1e-4)
        assert_close(model.norm.mean[...], rest[0]["norm"]["mean"][...], rtol=1e-6)
    self.assertEqual(int(model.dropout.rngs.count[...]), 2)
    self.assertEqual(int(rngs.default.count[...]), 2)
    if has_aux:
      self.assertEqual(int(found[1]), 2)

  def test_a_generator_beside_plain_parameters_changes_nothing(self):
    w = problems.params()
    gradient = jax.grad(jsharp.sharpen(problems.loss, jsharp.sam_ascent(RHO)))
    x, y = problems.batch()
    expected = gradient(w, (x, y))
    loss = lambda w, batch, rngs: problems.loss(w, batch)
    beside = jax.grad(jsharp.sharpen(loss, jsharp.sam_ascent(RHO)))
    assert_close(beside(w, (x, y), nnx.Rngs(0)), expected, rtol=1e-6)

  def test_microbatches_with_their_own_perturbation_are_m_sam(self):
    """optax's microbatches are strided: (0, 4), (1, 5), ..."""
    w, (x, y) = problems.params(), problems.batch(size=8)
    sharp = jsharp.sharpen(problems.loss, jsharp.sam_ascent(RHO))
    gradient_fn = optax.microbatching.microbatch(
      jax.grad(sharp),
      argnums=1,
      microbatch_size=2,
      accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    groups = [sharp_gradient(w, (x[i::4], y[i::4])) for i in range(4)]
    expected = jax.tree.map(lambda *g: sum(g) / 4, *groups)
    with jax.numpy_dtype_promotion("standard"):
      assert_close(gradient_fn(w, (x, y)), expected, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
