"""Every named variant against its paper's recurrence, written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import perturbations
from tests.perturbations import problems
from tests.perturbations.problems import unit

LR = 0.1
RHO = 0.3


def follow(oracle, direction, steps=4):
  """Gradient descent from the oracle's start along `direction(step, w)`."""
  w = oracle.start
  for step in range(steps):
    w = w - LR * direction(step, w)
  return w


class RecurrenceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(jax.enable_x64(True))
    self.oracle = problems.Oracle()

  def check(self, link, direction):
    tx = optax.chain(link, optax.sgd(LR))
    with jax.numpy_dtype_promotion("standard"):
      actual = problems.run(tx, self.oracle.like, self.oracle.batches)
    expected = follow(self.oracle, direction)
    np.testing.assert_allclose(problems.flat(actual), expected, rtol=1e-10)

  def sharp(self, step, w, e):
    return self.oracle.gradient(w + e, step)

  def sam(self, step, w, rho=RHO):
    return self.sharp(step, w, rho * unit(self.oracle.gradient(w, step)))

  def test_sam(self):
    self.check(jsharp.sam(RHO), self.sam)

  def test_a_ball_for_each_leaf(self):
    def direction(step, w):
      g = problems.unflat(self.oracle.gradient(w, step), self.oracle.like)
      e = jax.tree.map(lambda x: RHO * x / jnp.linalg.norm(x.ravel()), g)
      return self.sharp(step, w, problems.flat(e))

    self.check(jsharp.sam(RHO, per_leaf=True), direction)

  @parameterized.parameters(1.0, 3.0, np.inf)
  def test_general_p(self, p):
    def direction(step, w):
      g = self.oracle.gradient(w, step)
      if p == 1:
        e = np.where(np.abs(g) == np.abs(g).max(), np.sign(g), 0)
      elif np.isinf(p):
        e = np.sign(g)
      else:
        q = p / (p - 1)
        e = np.sign(g) * np.abs(g) ** (q - 1) / (np.abs(g) ** q).sum() ** (1 / p)
      return self.sharp(step, w, RHO * e)

    self.check(jsharp.sam(RHO, p=p), direction)

  def test_asam(self):
    def direction(step, w):
      metric = np.abs(w) + 0.01
      bent = metric * self.oracle.gradient(w, step)
      return self.sharp(step, w, RHO * metric * unit(bent))

    self.check(jsharp.asam(RHO, eta=0.01), direction)

  def test_gsam(self):
    def direction(step, w):
      g, s = self.oracle.gradient(w, step), self.sam(step, w)
      along = (g @ s) / (s @ s) * s
      return s - 0.7 * (g - along)

    self.check(jsharp.gsam(RHO, alpha=0.7), direction)

  def test_wsam(self):
    def direction(step, w):
      g, s = self.oracle.gradient(w, step), self.sam(step, w)
      return g + 0.8 / 0.2 * (s - g)

    self.check(jsharp.wsam(RHO, gamma=0.8), direction)

  def test_friendly_sam(self):
    mean = None

    def direction(step, w):
      nonlocal mean
      g = self.oracle.gradient(w, step)
      d = g if mean is None else g - 0.5 * mean
      mean = g if mean is None else 0.6 * mean + 0.4 * g
      return self.sharp(step, w, RHO * unit(d))

    self.check(jsharp.friendly_sam(RHO, sigma=0.5, decay=0.6), direction)

  def test_vasso(self):
    d = None

    def direction(step, w):
      nonlocal d
      g = self.oracle.gradient(w, step)
      d = g if d is None else 0.6 * d + 0.4 * g
      return self.sharp(step, w, RHO * unit(d))

    self.check(jsharp.vasso(RHO, decay=0.6), direction)

  def test_looksam(self):
    flat_part = None

    def direction(step, w):
      nonlocal flat_part
      g = self.oracle.gradient(w, step)
      if step % 3 == 0:
        s = self.sam(step, w)
        flat_part = s - (s @ g) / (g @ g) * g
        return s
      return g + 0.7 * np.linalg.norm(g) / np.linalg.norm(flat_part) * flat_part

    self.check(jsharp.looksam(RHO, every=3, alpha=0.7), direction)

  def test_looksam_adds_nothing_where_the_sharp_gradient_is_parallel(self):
    """A bowl: what is left of `s` beside `g` is rounding, and no direction."""
    w = jnp.array([0.3, -0.7, 1.1], jnp.float32)
    grad_fn = lambda w: jnp.float32(2.1) * w
    link = jsharp.looksam(0.05, every=2, alpha=0.7)
    _, state = link.update(grad_fn(w), link.init(w), w, grad_fn=grad_fn)
    again, _ = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
    np.testing.assert_array_equal(again, grad_fn(w))

  def test_sam_every(self):
    plain = self.oracle.gradient
    self.check(
      jsharp.sam_every(RHO, every=3),
      lambda step, w: self.sam(step, w) if step % 3 == 0 else plain(w, step),
    )

  def test_late_sam(self):
    plain = self.oracle.gradient
    self.check(
      jsharp.late_sam(RHO, start=2),
      lambda step, w: self.sam(step, w) if step >= 2 else plain(w, step),
    )

  def test_le_sam(self):
    radii = []

    def direction(step, w):
      g = self.oracle.gradient(w, step)
      radii.append(min(0.5 / np.linalg.norm(g), 0.4))
      return self.sharp(step, w, radii[-1] * unit(g))

    self.check(jsharp.le_sam(0.5, max_rho=0.4), direction)
    self.assertLess(min(radii), 0.4)
    self.assertEqual(max(radii), 0.4)

  def test_momentum_sam(self):
    """The authors' recurrence: the stored weights are the perturbed ones."""
    w, v = self.oracle.start, np.zeros_like(self.oracle.start)
    e = v
    for step in range(4):
      v = 0.9 * v + self.oracle.gradient(w + e, step)
      w = w - LR * v
      e = -RHO * unit(v)
    tx = jsharp.momentum_sam(optax.sgd(LR, momentum=0.9), RHO)
    shifted, state = self.oracle.like, tx.init(self.oracle.like)
    one = problems.compiled_step(tx)
    for data in self.oracle.batches:
      shifted, state = one(state, shifted, data)
    np.testing.assert_allclose(problems.flat(shifted), w + e, rtol=1e-10)
    centre = perturbations.centre(shifted, state)
    np.testing.assert_allclose(problems.flat(centre), w, rtol=1e-10)

  def test_several_ascent_steps(self):
    def direction(step, w):
      e = np.zeros_like(w)
      for _ in range(3):
        e = e + RHO * unit(self.oracle.gradient(w + e, step))
      return self.sharp(step, w, e)

    ascent = perturbations.repeat(jsharp.sam_ascent(RHO), 3)
    self.check(jsharp.sharpness_aware(ascent), direction)

  def test_renormalised(self):
    def direction(step, w):
      return np.linalg.norm(self.oracle.gradient(w, step)) * unit(self.sam(step, w))

    ascent = jsharp.sam_ascent(RHO)
    self.check(jsharp.sharpness_aware(ascent, perturbations.renormalize()), direction)

  def test_functional_sam(self):
    w, (x, y) = problems.params(jnp.float64), self.oracle.batches[0]
    net = lambda w: (
      jnp.tanh(x @ w["kernel"]) * jnp.broadcast_to(w["norm"]["scale"], y.shape)
    )
    loss = lambda out: jnp.mean(jnp.sum(jnp.square(out - y), axis=1))
    functional = jsharp.functional_sam(net, loss, jsharp.sam_ascent(RHO))
    value, actual = jax.jit(functional)(w)
    g = self.oracle.gradient(self.oracle.start, 0)
    perturbed = problems.unflat(problems.flat(w) + RHO * unit(g), w)

    @jax.jit
    def in_steps(w, perturbed):
      jacobian = jax.jacobian(net)(perturbed)
      slope = 2 * (net(w) - y) / len(y)
      expected = jax.tree.map(lambda j: jnp.tensordot(slope, j, axes=2), jacobian)
      return loss(net(w)), expected

    clean, expected = in_steps(w, perturbed)
    np.testing.assert_allclose(
      problems.flat(actual), problems.flat(expected), rtol=1e-10
    )
    self.assertAlmostEqual(float(value), float(clean), places=12)


def equal_to_sam():
  ascent = jsharp.sam_ascent(RHO)
  ones = lambda w: jax.tree.map(jnp.ones_like, w)
  return {
    "gsam": jsharp.gsam(RHO, alpha=0.0),
    "wsam": jsharp.wsam(RHO, gamma=0.5),
    "looksam": jsharp.looksam(RHO, every=1),
    "friendly_sam": jsharp.friendly_sam(RHO, sigma=0.0),
    "vasso": jsharp.vasso(RHO, decay=0.0),
    "sam_every": jsharp.sam_every(RHO, every=1),
    "late_sam": jsharp.late_sam(RHO, start=0),
    "le_sam": jsharp.le_sam(1e9, max_rho=RHO),
    "interpolate": jsharp.sharpness_aware(ascent, perturbations.interpolate(1.0)),
    "repeat": jsharp.sharpness_aware(perturbations.repeat(ascent, 1)),
    "conjugate": jsharp.sharpness_aware(perturbations.conjugate(ascent, by=ones)),
    "restrict": jsharp.sharpness_aware(perturbations.restrict(ascent, to=True)),
  }


def at_radius(rho):
  return {
    "sam": jsharp.sam(rho),
    "asam": jsharp.asam(rho),
    "gsam": jsharp.gsam(rho, alpha=0.4),
    "wsam": jsharp.wsam(rho, gamma=0.9),
    "looksam": jsharp.looksam(rho, every=2),
    "friendly_sam": jsharp.friendly_sam(rho),
    "vasso": jsharp.vasso(rho),
    "sam_every": jsharp.sam_every(rho, every=2),
    "late_sam": jsharp.late_sam(rho, start=1),
    "le_sam": jsharp.le_sam(0.5, max_rho=rho),
  }


CONSTRUCTORS = tuple(at_radius(0.0))
SGD = optax.sgd(LR, momentum=0.9)


@functools.cache
def three_steps(tx):
  batches = [problems.batch(seed) for seed in range(3)]
  return problems.flat(problems.run(tx, problems.params(), batches))


@functools.cache
def sam_itself():
  return three_steps(optax.chain(jsharp.sam(RHO), optax.sgd(LR)))


@functools.cache
def two_steps(name):
  """Two compiled steps where the gradient is what we say everywhere."""
  if name == "momentum_sam":
    link = jsharp.momentum_sam(optax.sgd(1.0), 0.05)
  else:
    link = at_radius(0.05)[name]

  def steps(slope):
    w, grad_fn = jnp.array([0.5, 0.0, -1.0]), lambda w: slope
    first, state = link.update(slope, link.init(w), w, grad_fn=grad_fn)
    second, state = link.update(slope, state, w, grad_fn=grad_fn)
    return first, second, state

  return jax.jit(steps)


class LawsTest(parameterized.TestCase):
  @parameterized.parameters(*equal_to_sam())
  def test_at_its_neutral_setting_it_is_sam(self, name):
    actual = three_steps(optax.chain(equal_to_sam()[name], optax.sgd(LR)))
    np.testing.assert_allclose(actual, sam_itself(), rtol=2e-6)

  @parameterized.parameters(*CONSTRUCTORS)
  def test_radius_zero_is_the_base_optimizer(self, name):
    actual = three_steps(optax.chain(at_radius(0.0)[name], SGD))
    np.testing.assert_allclose(actual, three_steps(SGD), rtol=1e-5, atol=1e-6)

  def test_momentum_sam_of_radius_zero_is_its_optimizer(self):
    actual = three_steps(jsharp.momentum_sam(SGD, 0.0))
    np.testing.assert_array_equal(actual, three_steps(SGD))

  @parameterized.parameters(*CONSTRUCTORS, "momentum_sam")
  def test_degenerate_gradients_stay_finite_and_nan_is_not_hidden(self, name):
    for scale in (0, 1e-38, 1e18):
      slope = jnp.asarray(scale, jnp.float32) * jnp.array([3.0, -4.0, 1.0])
      for x in jax.tree.leaves(two_steps(name)(slope)):
        self.assertTrue(np.isfinite(x).all(), (scale, x))
    gradient, *_ = two_steps(name)(jnp.array([3.0, jnp.nan, 1.0]))
    self.assertTrue(np.isnan(gradient[1]), gradient)


class ArgumentsTest(parameterized.TestCase):
  @parameterized.parameters(*CONSTRUCTORS)
  def test_missing_arguments_name_the_fix(self, name):
    link, w = at_radius(0.1)[name], jnp.ones(2)
    state = link.init(w)
    if name == "late_sam":
      _, state = link.update(w, state, w, grad_fn=lambda w: w)
    with self.assertRaisesRegex(ValueError, "grad_fn=None.*jax.grad"):
      link.update(w, state, w)
    with self.assertRaisesRegex(ValueError, "params=None"):
      link.update(w, state, grad_fn=lambda w: w)

  @parameterized.parameters(
    *[
      (name, bad) for name in CONSTRUCTORS if name != "le_sam" for bad in (-0.1, np.nan)
    ]
  )
  def test_a_bad_radius_is_refused(self, name, bad):
    with self.assertRaisesRegex(ValueError, "rho must be finite"):
      at_radius(bad)[name]

  def test_other_bad_arguments(self):
    for build, message in (
      (lambda: jsharp.sam(0.1, p=0.5), "p must be in"),
      (lambda: jsharp.asam(0.1, eta=-1.0), "eta must be finite"),
      (lambda: jsharp.gsam(0.1, alpha=-1.0), "alpha must be finite"),
      (lambda: jsharp.wsam(0.1, gamma=1.0), "gamma must lie in"),
      (lambda: jsharp.friendly_sam(0.1, decay=1.0), "decay must lie in"),
      (lambda: jsharp.vasso(0.1, decay=-0.1), "decay must lie in"),
      (lambda: jsharp.looksam(0.1, every=0), "every must be an integer"),
      (lambda: jsharp.looksam(0.1, alpha=-1.0), "alpha must be finite"),
      (lambda: jsharp.sam_every(0.1, every=0), "every must be an integer"),
      (lambda: jsharp.late_sam(0.1, start=-1), "start must be an integer"),
      (lambda: jsharp.le_sam(-1.0), "sigma must be finite"),
      (lambda: jsharp.le_sam(1.0, max_rho=-1.0), "max_rho must be finite"),
      (lambda: jsharp.momentum_sam(optax.sgd(1.0), -1.0), "rho must be finite"),
      (lambda: perturbations.repeat(jsharp.sam_ascent(0.1), 0), "num_steps must be"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        build()

  def test_several_ascent_steps_need_what_a_second_gradient_needs(self):
    w, ascent = jnp.ones(2), jsharp.sam_ascent(0.1)
    several = perturbations.repeat(ascent, 2)
    for arguments, missing in (((w, None, w), "grad_fn"), ((w, None), "params")):
      with self.assertRaisesRegex(ValueError, f"SAM needs .* got {missing}=None"):
        several.update(*arguments)
    alone, _ = perturbations.repeat(ascent, 1).update(w, ascent.init(w))
    np.testing.assert_array_equal(alone, ascent.update(w, ascent.init(w))[0])

  def test_momentum_sam_needs_params_and_one_state(self):
    tx, w = jsharp.momentum_sam(optax.sgd(0.1), 0.1), jnp.ones(2)
    with self.assertRaisesRegex(ValueError, "params=None"):
      tx.update(w, tx.init(w))
    with self.assertRaisesRegex(ValueError, "holds 0 states"):
      perturbations.centre(w, optax.sgd(0.1).init(w))
    twice = optax.chain(tx, jsharp.momentum_sam(optax.sgd(0.1), 0.1))
    with self.assertRaisesRegex(ValueError, "holds 2 states"):
      perturbations.centre(w, twice.init(w))


if __name__ == "__main__":
  absltest.main()
