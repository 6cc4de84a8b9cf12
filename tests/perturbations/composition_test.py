"""SAM links inside everything that optax, JAX and meta-learning put around them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.test_util import check_grads

import jsharp
from jsharp import perturbations
from tests.perturbations import problems

LR = 0.1
RHO = 0.3


def assert_close(actual, expected, rtol=2e-5):
  np.testing.assert_allclose(
    problems.flat(actual), problems.flat(expected), rtol=rtol, atol=1e-7
  )


def perturbed(w, direction, rho=RHO):
  unit = problems.unit(problems.flat(direction))
  return problems.unflat(problems.flat(w) + rho * unit, w)


def sharp_gradient(w, data, rho=RHO):
  return problems.grad_fn(data)(perturbed(w, problems.grad_fn(data)(w), rho))


def descended(w, gradient, lr=LR):
  return jax.tree.map(lambda w, g: w - lr * g, w, gradient)


def small_loss(w):
  return jnp.sum(jnp.sin(w["a"]) * w["b"] ** 2 + w["a"] ** 2)


def after_steps(tx, steps, w):
  """The small loss after steps on it, for derivatives of all that is in a step."""
  grad_fn, state = jax.grad(small_loss), tx.init(w)
  for _ in range(steps):
    updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
    w = optax.apply_updates(w, updates)
  return small_loss(w)


class OptaxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # optax's own arithmetic mixes int32 and float32 in places.
    self.enterContext(jax.numpy_dtype_promotion("standard"))
    self.w, self.data = problems.params(), problems.batch()
    self.batches = [problems.batch(seed) for seed in range(4)]

  def test_weight_decay_before_bends_the_ascent_and_after_the_descent(self):
    decay = lambda g, w: jax.tree.map(lambda g, w: g + 0.5 * w, g, w)
    g = problems.grad_fn(self.data)(self.w)
    link = optax.add_decayed_weights(0.5)
    for links, expected in (
      (
        (link, jsharp.sam(RHO)),
        problems.grad_fn(self.data)(perturbed(self.w, decay(g, self.w))),
      ),
      ((jsharp.sam(RHO), link), decay(sharp_gradient(self.w, self.data), self.w)),
    ):
      tx = optax.chain(*links, optax.sgd(LR))
      actual = problems.run(tx, self.w, [self.data])
      assert_close(actual, descended(self.w, expected))

  @parameterized.parameters("global_norm", "value")
  def test_clipping_on_either_side(self, kind):
    if kind == "global_norm":
      link = optax.clip_by_global_norm(0.1)
      clip = lambda g: problems.unflat(0.1 * problems.unit(problems.flat(g)), g)
    else:
      link = optax.clip(0.05)
      clip = functools.partial(jax.tree.map, lambda g: jnp.clip(g, -0.05, 0.05))
    g = problems.grad_fn(self.data)(self.w)
    for links, expected in (
      (
        (link, jsharp.sam(RHO)),
        problems.grad_fn(self.data)(perturbed(self.w, clip(g))),
      ),
      ((jsharp.sam(RHO), link), clip(sharp_gradient(self.w, self.data))),
    ):
      tx = optax.chain(*links, optax.sgd(LR))
      actual = problems.run(tx, self.w, [self.data])
      assert_close(actual, descended(self.w, expected))

  def test_a_schedule_of_radii_by_either_way(self):
    schedule = optax.linear_schedule(0.1, 0.4, 3)
    w = self.w
    for step, data in enumerate(self.batches):
      w = descended(w, sharp_gradient(w, data, float(schedule(step))))
    injected = optax.inject_hyperparams(jsharp.sam)(rho=schedule)
    for link in (jsharp.sam(schedule), injected):
      tx = optax.chain(link, optax.sgd(LR))
      assert_close(problems.run(tx, self.w, self.batches), w)

  def test_a_radius_tied_to_the_learning_rate(self):
    """GSAM's rule: one schedule drives both."""
    rate = optax.cosine_decay_schedule(0.2, 4, alpha=0.1)
    radius = lambda step: 0.1 + 0.3 * (rate(step) - 0.02) / (0.2 - 0.02)
    w = self.w
    for step, data in enumerate(self.batches):
      w = descended(w, sharp_gradient(w, data, float(radius(step))), float(rate(step)))
    tx = optax.chain(jsharp.sam(radius), optax.sgd(rate))
    assert_close(problems.run(tx, self.w, self.batches), w)

  def test_injected_hyperparameters_can_be_set_between_steps(self):
    tx = optax.chain(
      optax.inject_hyperparams(jsharp.gsam)(rho=0.1, alpha=0.0), optax.sgd(LR)
    )
    state = tx.init(self.w)
    state[0].hyperparams["rho"] = jnp.asarray(RHO)
    actual, _ = problems.compiled_step(tx)(state, self.w, self.data)
    assert_close(actual, descended(self.w, sharp_gradient(self.w, self.data)))

  def test_accumulation_inside_is_m_sam(self):
    """chain(sam, MultiSteps(base)): every micro-batch has its own perturbation."""
    tx = optax.chain(
      jsharp.sam(RHO),
      optax.MultiSteps(optax.sgd(LR), every_k_schedule=4).gradient_transformation(),
    )
    gradients = [sharp_gradient(self.w, data) for data in self.batches]
    mean = jax.tree.map(lambda *g: sum(g) / 4, *gradients)
    assert_close(problems.run(tx, self.w, self.batches), descended(self.w, mean))

  def test_accumulated_gradients_give_the_full_batch_perturbation(self):
    """grad_fn accumulates over micro-batches itself: plain SAM, in less memory."""
    x, y = problems.batch(size=8)
    gradient_fn = optax.microbatching.microbatch(
      jax.grad(problems.loss),
      argnums=1,
      microbatch_size=2,
      accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    tx = optax.chain(jsharp.sam(RHO), optax.sgd(LR))
    grad_fn = lambda w: gradient_fn(w, (x, y))
    updates, _ = jax.jit(
      lambda w: tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
    )(self.w)
    expected = descended(self.w, sharp_gradient(self.w, (x, y)))
    assert_close(optax.apply_updates(self.w, updates), expected)

  def test_a_radius_for_each_group(self):
    labels = {"kernel": "body", "norm": {"scale": "norm"}}
    ascents = {"body": jsharp.sam_ascent(0.1), "norm": jsharp.sam_ascent(0.5)}
    link = jsharp.sharpness_aware(optax.partition(ascents, labels))
    g = problems.grad_fn(self.data)(self.w)
    unit = lambda x: x / jnp.linalg.norm(x.ravel())
    moved = {
      "kernel": self.w["kernel"] + 0.1 * unit(g["kernel"]),
      "norm": {"scale": self.w["norm"]["scale"] + 0.5 * unit(g["norm"]["scale"])},
    }
    tx = optax.chain(link, optax.sgd(LR))
    actual = problems.run(tx, self.w, [self.data])
    assert_close(actual, descended(self.w, problems.grad_fn(self.data)(moved)))

  @parameterized.parameters("prefix", "function")
  def test_one_ball_on_a_part_of_the_parameters(self, form):
    mask = {"kernel": False, "norm": True}
    to = mask if form == "prefix" else lambda w: mask
    link = jsharp.sharpness_aware(perturbations.restrict(jsharp.sam_ascent(RHO), to=to))
    scale = problems.grad_fn(self.data)(self.w)["norm"]["scale"]
    moved = {
      "kernel": self.w["kernel"],
      "norm": {"scale": self.w["norm"]["scale"] + RHO * scale / jnp.linalg.norm(scale)},
    }
    tx = optax.chain(link, optax.sgd(LR))
    actual = problems.run(tx, self.w, [self.data])
    assert_close(actual, descended(self.w, problems.grad_fn(self.data)(moved)))

  def test_a_mask_that_selects_nothing_or_does_not_fit(self):
    for to, message in (
      (False, "selects none of the parameters.*kernel.*scale"),
      ({"kernel": False, "norm": False}, "selects none"),
      ({"kernel": True, "head": True}, "does not fit the structure"),
    ):
      ascent = perturbations.restrict(jsharp.sam_ascent(RHO), to=to)
      with self.assertRaisesRegex(ValueError, message):
        ascent.update(self.w, ascent.init(self.w), self.w)

  def test_steps_that_are_not_finite_are_left_out(self):
    tx = optax.apply_if_finite(optax.chain(jsharp.sam(RHO), optax.sgd(LR)), 3)
    x, y = self.data
    w, state = self.w, tx.init(self.w)
    for data in ((x, y * jnp.nan), self.data):
      w, state = problems.compiled_step(tx)(state, w, data)
    assert_close(w, descended(self.w, sharp_gradient(self.w, self.data)))

  def test_inside_of_a_mask_it_says_what_to_do(self):
    mask = {"kernel": True, "norm": False}
    for tx in (
      optax.masked(jsharp.sam(RHO), mask),
      optax.partition(
        {True: jsharp.sam(RHO), False: optax.identity()}, jax.tree.map(bool, mask)
      ),
    ):
      with self.assertRaisesRegex(ValueError, "restrict.*or optax.partition of asc"):
        problems.step(tx, tx.init(self.w), self.w, self.data)

  def test_the_optimizer_may_stand_inside_of_a_mask(self):
    mask = {"kernel": True, "norm": False}
    tx = optax.chain(jsharp.sam(RHO), optax.masked(optax.scale(0.0), mask))
    s = sharp_gradient(self.w, self.data)
    updates, _ = tx.update(
      problems.grad_fn(self.data)(self.w),
      tx.init(self.w),
      self.w,
      grad_fn=problems.grad_fn(self.data),
    )
    np.testing.assert_array_equal(updates["kernel"], 0 * s["kernel"])
    assert_close(updates["norm"], s["norm"])

  def test_keys_and_booleans_in_the_states_pass_through_scan(self):
    """A random ascent holds a key, apply_if_finite a bool."""
    ascent = optax.chain(optax.add_noise(1.0, 0.0, key=0), jsharp.sam_ascent(RHO))
    tx = optax.apply_if_finite(
      optax.chain(jsharp.sharpness_aware(ascent), optax.sgd(LR)), 3
    )

    def body(carry, _):
      w, state = carry
      return problems.step(tx, state, w, self.data), None

    (together, _), _ = jax.lax.scan(body, (self.w, tx.init(self.w)), length=3)
    assert_close(together, problems.run(tx, self.w, [self.data] * 3))
    plain = optax.chain(jsharp.sam(RHO), optax.sgd(LR))
    different = problems.flat(problems.run(plain, self.w, [self.data] * 3))
    self.assertGreater(np.abs(problems.flat(together) - different).max(), 1e-4)

  def test_conditional_steps(self):
    link = optax.conditionally_transform(jsharp.asam(RHO), lambda step: step % 2 == 1)
    tx = optax.chain(link, optax.sgd(LR))
    asam = optax.chain(jsharp.asam(RHO), optax.sgd(LR))
    w = self.w
    for step, data in enumerate(self.batches):
      if step % 2:
        w = problems.run(asam, w, [data])
      else:
        w = descended(w, problems.grad_fn(data)(w))
    assert_close(problems.run(tx, self.w, self.batches), w)

  def test_polyak_step_size(self):
    tx = optax.chain(jsharp.sam(RHO), optax.polyak_sgd(max_learning_rate=10.0))
    s = problems.flat(sharp_gradient(self.w, self.data))
    rate = float(problems.loss(self.w, self.data)) / (s @ s)
    self.assertLess(rate, 10)
    actual = problems.run(tx, self.w, [self.data])
    expected = problems.unflat(problems.flat(self.w) - rate * s, self.w)
    assert_close(actual, expected)

  @parameterized.parameters("backtracking", "zoom")
  def test_line_searches_stand_beside_it(self, kind):
    """The search is along the sharp gradient, on the clean loss."""
    search = (
      optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
      if kind == "backtracking"
      else optax.scale_by_zoom_linesearch(max_linesearch_steps=15)
    )
    tx = optax.chain(jsharp.sam(0.01), optax.scale(-1.0), search)
    of_batch = lambda w: problems.loss(w, self.data)

    # optax's searches hand every other extra argument on to value_fn.
    value_fn = lambda w, grad_fn=None: of_batch(w)

    @jax.jit
    def step(w, state):
      value, grads = jax.value_and_grad(of_batch)(w)
      updates, state = tx.update(
        grads,
        state,
        w,
        value=value,
        grad=grads,
        value_fn=value_fn,
        grad_fn=jax.grad(of_batch),
      )
      return optax.apply_updates(w, updates), state, value

    w, state, values = self.w, tx.init(self.w), []
    for _ in range(5):
      w, state, value = step(w, state)
      values.append(float(value))
    values.append(float(of_batch(w)))
    self.assertEqual(values, sorted(values, reverse=True))
    self.assertLess(values[-1], values[0])

  def test_reduce_on_plateau(self):
    tx = optax.chain(
      jsharp.sam(RHO), optax.sgd(LR), optax.contrib.reduce_on_plateau(0.5, patience=1)
    )
    rate = LR
    w, state, best, waited = self.w, tx.init(self.w), math.inf, 0
    expected, value = self.w, 1.0  # A plateau, whatever the loss is.
    grad_fn = problems.grad_fn(self.data)

    @jax.jit
    def step(w, state):
      updates, state = tx.update(
        grad_fn(w), state, w, value=jnp.asarray(value), grad_fn=grad_fn
      )
      return optax.apply_updates(w, updates), state

    for _ in range(4):
      w, state = step(w, state)
      waited = 0 if value < best else waited + 1
      best = min(best, value)
      if waited > 0:
        rate, waited = rate / 2, 0
      expected = descended(expected, sharp_gradient(expected, self.data), rate)
    self.assertLess(rate, LR)
    assert_close(w, expected)

  def test_every_optimizer_of_optax_takes_the_sharp_gradient(self):
    s = sharp_gradient(self.w, self.data)
    for name in ("adamw", "lion", "lamb", "adafactor"):
      base = getattr(optax, name)(1e-2)
      expected = jax.jit(lambda s, w, b=base: b.update(s, b.init(w), w)[0])(s, self.w)
      tx = optax.chain(jsharp.sam(RHO), base)
      actual = problems.run(tx, self.w, [self.data])
      with self.subTest(name):
        assert_close(actual, optax.apply_updates(self.w, expected), rtol=2e-4)


class JaxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.w, self.data = problems.params(), problems.batch()
    self.links = {
      "looksam": jsharp.looksam(RHO, every=2),
      "vasso": jsharp.vasso(RHO),
      "scheduled": jsharp.sam(optax.constant_schedule(RHO)),
    }

  def test_donated_buffers(self):
    tx = optax.chain(self.links["looksam"], optax.sgd(LR, momentum=0.9))
    step = lambda w, state: problems.step(tx, state, w, self.data)
    w = problems.run(tx, self.w, [self.data] * 3)
    donated = jax.jit(step, donate_argnums=(0, 1))
    v, state = jax.tree.map(jnp.copy, self.w), tx.init(self.w)
    for _ in range(3):
      v, state = donated(v, state)
    assert_close(v, w)

  @parameterized.parameters("looksam", "vasso")
  def test_vmap_over_seeds_scan_and_remat_equal_loops(self, name):
    tx = optax.chain(self.links[name], optax.sgd(LR))
    starts = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w]), self.w)

    def train(w):
      def body(carry, _):
        w, state = carry
        return problems.step(tx, state, w, self.data), None

      (w, _), _ = jax.lax.scan(jax.checkpoint(body), (w, tx.init(w)), length=3)
      return w

    together = jax.jit(jax.vmap(train))(starts)
    for seed in range(3):
      start = jax.tree.map(lambda x, seed=seed: x[seed], starts)
      alone = problems.run(tx, start, [self.data] * 3)
      assert_close(jax.tree.map(lambda x, seed=seed: x[seed], together), alone)

  @parameterized.parameters("looksam", "vasso")
  def test_meta_gradients_match_finite_differences(self, name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      tx = optax.chain(self.links[name], optax.sgd(LR))
      w = {"a": jnp.array([0.3, -0.7]), "b": jnp.asarray(1.1)}
      outer = jax.jit(functools.partial(after_steps, tx, 2))
      check_grads(outer, (w,), order=1, modes=("fwd", "rev"), rtol=1e-5)

  def test_second_derivatives_through_a_sam_step(self):
    with jax.enable_x64(True):
      tx = optax.chain(jsharp.sam(RHO), optax.sgd(LR))
      w = {"a": jnp.array([0.3, -0.7]), "b": jnp.asarray(1.1)}
      outer = jax.jit(functools.partial(after_steps, tx, 1))
      check_grads(outer, (w,), order=2, modes=("rev",), rtol=1e-4)

  def test_the_radius_can_be_meta_learned(self):
    with jax.enable_x64(True):
      w = {"a": jnp.array([0.3, -0.7]), "b": jnp.asarray(1.1)}

      @jax.jit
      def outer(rho):
        return after_steps(optax.chain(jsharp.sam(rho), optax.sgd(LR)), 2, w)

      check_grads(outer, (jnp.asarray(0.2),), order=1, rtol=1e-6)

  @parameterized.parameters(jnp.float16, jnp.bfloat16, jnp.float64)
  def test_other_precisions(self, dtype):
    with jax.enable_x64(dtype == jnp.float64):
      w, data = problems.params(dtype), problems.batch(dtype=dtype)
      tx = optax.chain(jsharp.sam(RHO), optax.sgd(LR))
      actual = problems.run(tx, w, [data])
    expected = problems.run(tx, problems.params(), [problems.batch()])
    for leaf in jax.tree.leaves(actual):
      self.assertEqual(leaf.dtype, dtype)
    tolerance = {jnp.float16: 3e-3, jnp.bfloat16: 2e-2, jnp.float64: 1e-6}[dtype]
    np.testing.assert_allclose(
      problems.flat(actual), problems.flat(expected), rtol=tolerance, atol=tolerance
    )

  @parameterized.parameters(1.0, 2.0, 3.0, math.inf)
  def test_complex_parameters_count_with_their_modulus(self, p):
    g = jnp.array([3.0 + 4.0j, 0.0, 1.0j])
    sizes = np.abs(np.asarray(g))
    ascent = jsharp.sam_ascent(RHO, p=p)
    perturbation = jax.jit(lambda g: ascent.update(g, ascent.init(g))[0])
    e, real = perturbation(g), perturbation(jnp.asarray(sizes))
    np.testing.assert_allclose(np.abs(e), real, rtol=1e-6)
    slope = np.real(np.vdot(e, g))
    np.testing.assert_allclose(slope, np.sum(np.asarray(real) * sizes), rtol=1e-6)
    self.assertEqual(e.dtype, jnp.complex64)

  def test_the_mean_over_an_axis_overflows_no_sum(self):
    ascent = perturbations.pmean("data")
    mean = lambda g: ascent.update(g, ascent.init(None))[0]
    gradients = jnp.full(32, 3000, jnp.float16)
    means = jax.vmap(mean, axis_name="data")(gradients)
    np.testing.assert_array_equal(means, gradients)

  def test_complex_parameters_step_like_their_real_and_imaginary_parts(self):
    """Gradients conjugated, as optax expects them."""
    target = jnp.array([1.0 - 1.0j, 0.5j])
    loss = lambda z: jnp.sum(jnp.abs(z - target) ** 4)
    as_complex = lambda w: jax.lax.complex(w[0], w[1])
    tx = optax.chain(jsharp.sam(RHO), optax.sgd(0.01))

    def stepped(w, grad_fn):
      updates, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      return optax.apply_updates(w, updates)

    @jax.jit
    def both(w):
      z = stepped(as_complex(w), lambda z: jnp.conj(jax.grad(loss)(z)))
      w = stepped(w, jax.grad(lambda w: loss(as_complex(w))))
      return z, as_complex(w)

    z, expected = both(jnp.array([[0.2, 0.3], [0.1, -0.4]]))
    np.testing.assert_allclose(z, expected, rtol=1e-5)

  @parameterized.parameters("looksam", "vasso", "scheduled")
  def test_empty_trees_and_empty_leaves(self, name):
    link = self.links[name]
    for w in ({}, {"a": jnp.zeros((0, 3))}, [(), {"b": None}]):
      update = lambda state, w=w: link.update(w, state, w, grad_fn=lambda w: w)
      gradient, state = jax.eval_shape(update, link.init(w))
      self.assertEqual(jax.tree.structure(gradient), jax.tree.structure(w))
      jax.tree.map(
        lambda a, b: self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype)),
        state,
        link.init(w),
      )

  @parameterized.parameters(("sam", 2.0), ("sam_every", 1.2), ("looksam", 1.2))
  def test_gradients_per_step(self, name, expected):
    """Counted where they run, in one compiled program of ten steps."""
    counts = []

    def loss(w):
      jax.debug.callback(lambda: counts.append(1))
      return jnp.sum(w**2)

    link = {
      "sam": jsharp.sam(RHO),
      "sam_every": jsharp.sam_every(RHO, every=5),
      "looksam": jsharp.looksam(RHO, every=5),
    }[name]
    tx = optax.chain(link, optax.sgd(LR))

    @jax.jit
    def train(w):
      def body(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w, grad_fn=jax.grad(loss))
        return (optax.apply_updates(w, updates), state), None

      return jax.lax.scan(body, (w, tx.init(w)), length=10)[0][0]

    train(jnp.ones(3)).block_until_ready()
    jax.effects_barrier()
    self.assertLen(counts, round(10 * expected))

  def test_plain_sam_keeps_no_bytes(self):
    for link in (jsharp.sam(RHO), jsharp.asam(RHO), jsharp.gsam(RHO), jsharp.wsam(RHO)):
      self.assertEmpty(jax.tree.leaves(link.init(self.w)))


if __name__ == "__main__":
  absltest.main()
