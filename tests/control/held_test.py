"""Outer loops on held trajectories, around algorithms as they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import control
from jsharp.control import _held as held
from tests.control import surrogates_test
from tests.control.own_environment import Line


def policy(params, observations):
  """A policy that is not linear in its parameters."""
  means = jnp.tanh(observations @ params["weights"]) + params["bias"][None]
  scales = jnp.broadcast_to(params["log_scale"][None], means.shape)
  return jnp.concatenate([means, scales], axis=1)


def start(seed=0, *, observations=2, actions=2):
  generator = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
  return {
    "weights": draw(observations, actions),
    "bias": 0.3 * draw(actions),
    "log_scale": -0.5 + 0.1 * draw(actions),
  }


def tasks(environment, number=3, *, support=6, query=5):
  sample = functools.partial(
    control.sample_task, environment, support=support, query=query
  )
  return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), number))


def hold(adapt, loss_fn, clip):
  return jax.jit(functools.partial(held.hold_tasks, adapt, loss_fn, clip=clip))


def loss_in(environment, **options):
  return control.policy_loss(environment, policy, **options)


def built(constructor, loss_fn, **options):
  options = {"num_inner_steps": 1, **options}
  return functools.partial(constructor, loss_fn, optax.sgd(0.3), **options)


def close(found, expected, rtol=2e-4, atol=2e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    found,
    expected,
  )


class ClippedTest(parameterized.TestCase):
  """Against a problem whose trajectories can be enumerated."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))
    self.logits = jnp.array([[0.3, -0.2], [0.9, 0.4]])
    _, _, rewards = surrogates_test.paths()
    self.gains = surrogates_test.to_come(rewards)
    self.before = surrogates_test.log_probs(self.logits)
    self.weights = jnp.exp(self.before.sum(1))

  def objective(self, logits, clip):
    found = surrogates_test.log_probs(logits)
    each = control.clipped(found, self.gains, self.before, clip=clip)
    return jnp.sum(self.weights * each)

  @parameterized.parameters(0.3, 1e-6, np.inf)
  def test_at_ratios_of_one_its_gradient_is_the_policy_gradient(self, clip):
    np.testing.assert_allclose(
      jax.grad(self.objective)(self.logits, clip),
      jax.grad(surrogates_test.expected_return)(self.logits),
      rtol=1e-10,
    )
    self.assertEqual(self.objective(self.logits, clip), 0)

  def test_by_finite_differences_away_from_one(self):
    logits = self.logits + jnp.array([[0.2, -0.1], [0.05, 0.3]])
    slopes = jax.grad(self.objective)(logits, 0.15)
    for i, j in np.ndindex(2, 2):
      step = jnp.zeros((2, 2)).at[i, j].set(1e-6)
      rise = self.objective(logits + step, 0.15) - self.objective(logits - step, 0.15)
      np.testing.assert_allclose(slopes[i, j], rise / 2e-6, rtol=1e-5, atol=1e-9)

  @parameterized.parameters(
    (0.5, 1.0, 0.0),  # Likelier already, and good: no reason to go on.
    (0.5, -1.0, -np.exp(0.5)),  # Likelier, and bad: back.
    (-0.5, -1.0, 0.0),
    (-0.5, 1.0, np.exp(-0.5)),
    (0.1, 1.0, np.exp(0.1)),
  )
  def test_there_is_no_gradient_out_of_the_range(self, log_ratio, gain, expected):
    slope = jax.grad(
      lambda x: control.clipped(x, jnp.array([gain]), jnp.zeros(1), clip=0.2)
    )(jnp.array([log_ratio]))
    np.testing.assert_allclose(slope, [expected], rtol=1e-12)

  def test_surrogates_weigh_what_is_held_by_its_likelihood(self):
    """The expectation under the old policy is that under the new one, exactly."""
    logits = self.logits + jnp.array([[0.5, -0.3], [0.1, 0.7]])

    def gained(logits):
      found = surrogates_test.log_probs(logits)
      return jnp.sum(self.weights * control.dice(found, self.gains, self.before))

    for derivative in (jax.grad, jax.hessian):
      np.testing.assert_allclose(
        derivative(gained)(logits),
        derivative(surrogates_test.expected_return)(logits),
        rtol=1e-9,
        atol=1e-12,
      )


class HeldTest(parameterized.TestCase):
  @parameterized.parameters(
    ("dice", Line(horizon=6), 1), ("low_variance", control.Navigation(horizon=6), 2)
  )
  def test_where_they_were_found_they_are_worth_what_fresh_ones_are(
    self, surrogate, environment, size
  ):
    loss_fn = loss_in(environment, surrogate=surrogate)
    params, along = (start(s, observations=size, actions=size) for s in (0, 1))
    batch = jax.tree.map(lambda x: x[0], tasks(environment)).support
    fixed = loss_fn.hold(params, batch)

    @jax.jit
    def derivatives(w, batch):
      value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
      return jax.jvp(lambda w: value_and_grad(w, batch), (w,), (along,))

    fresh, again = (derivatives(params, b) for b in (batch, fixed))
    close(again, fresh, rtol=1e-3, atol=1e-5)
    close(again[0][0], fresh[0][0], rtol=1e-6)

  def test_the_divergence_is_the_mean_over_living_steps(self):
    loss_fn = loss_in(Line(horizon=6))
    params, other = (start(s, observations=1, actions=1) for s in (0, 1))
    batch = jax.tree.map(lambda x: x[0], tasks(Line())).query
    fixed = loss_fn.hold(params, batch)
    found = fixed.inputs.found
    self.assertLess(float(found.alive.mean()), 1)
    each = []
    for seen, is_alive in zip(
      found.observations.reshape(-1, 1), found.alive.ravel(), strict=True
    ):
      if is_alive:
        (m, s), (n, t) = (
          np.asarray(policy(w, seen[None])[0], float) for w in (params, other)
        )
        ratio = np.exp(2 * (s - t))
        each.append(t - s + (ratio + (m - n) ** 2 / np.exp(2 * t) - 1) / 2)
    self.assertAlmostEqual(
      float(loss_fn.divergence(other, fixed)), np.mean(each), places=4
    )
    self.assertEqual(float(loss_fn.divergence(params, fixed)), 0)

  @parameterized.parameters(
    (jsharp.maml, {}),
    (jsharp.fomaml, {"num_inner_steps": 2}),
    (jsharp.sharp_maml, {"inner_rho": 0.01, "outer_rho": 0.01}),
    (jsharp.algorithms.reptile, {}),
    (jsharp.algorithms.anil, {"head": lambda p: {k: k == "bias" for k in p}}),
  )
  def test_policies_that_acted_are_those_that_are_compared(self, constructor, options):
    """After any algorithm's adaptation ratios are 1, so the divergence is zero."""
    environment = control.Navigation(horizon=5)
    loss_fn = loss_in(environment)
    adapt = built(constructor, loss_fn, **options)(optax.sgd(0.1)).adapt
    fixed = hold(adapt, loss_fn, 0.3)(start(), tasks(environment))
    divergence = jax.jit(held.divergence(adapt, loss_fn))
    mean, each = divergence(start(), fixed)
    np.testing.assert_allclose(each, np.zeros(3), atol=1e-7)
    other, _ = divergence(start(1), fixed)
    self.assertGreater(float(other), 0.1)
    self.assertLess(float(mean), 1e-7)

  def test_the_curvature_is_the_hessian_of_the_divergence(self):
    environment = control.Navigation(horizon=5)
    loss_fn = loss_in(environment)
    adapt = built(jsharp.maml, loss_fn)(optax.sgd(0.1)).adapt
    params, vector = start(), start(5)
    fixed = hold(adapt, loss_fn, np.inf)(params, tasks(environment))
    mean = lambda point: held.divergence(adapt, loss_fn)(point, fixed)[0]
    _, expected = jax.jit(lambda p, v: jax.jvp(jax.grad(mean), (p,), (v,)))(
      params, vector
    )
    found = jax.jit(held.curvature(adapt, loss_fn))(params, vector, fixed)
    close(found, expected, rtol=2e-3, atol=1e-4)


class TRPOTest(parameterized.TestCase):
  def test_the_divergence_after_a_step_is_within_the_region(self):
    max_kl = 0.05
    environment = control.Navigation(horizon=8)
    loss_fn = loss_in(environment)
    algorithm = control.trpo(built(jsharp.maml, loss_fn), loss_fn, max_kl=max_kl)
    state = algorithm.init(start())
    step = jax.jit(algorithm.step)
    held_by = hold(algorithm.adapt, loss_fn, np.inf)
    mean_loss = jax.jit(
      lambda point, fixed: jax.vmap(
        lambda task: loss_fn(algorithm.adapt(point, task.support), task.query)[0]
      )(fixed).mean()
    )
    for _ in range(3):
      before = state
      state, metrics = step(state, tasks(environment))
      mean = float(metrics["kl"].mean())
      self.assertBetween(mean, 0.3 * max_kl, max_kl)
      fixed = held_by(before.params, tasks(environment))
      gained = [mean_loss(point, fixed) for point in (before.params, state.params)]
      self.assertLess(gained[1], gained[0])
    self.assertEqual(int(state.step), 3)

  def test_every_algorithm_takes_it(self):
    environment = control.Navigation(horizon=4)
    loss_fn = loss_in(environment)
    for constructor, options in (
      (jsharp.fomaml, {}),
      (jsharp.sharp_maml, {"inner_rho": 0.01, "outer_rho": 0.01}),
      (jsharp.algorithms.reptile, {}),
    ):
      build = built(constructor, loss_fn, **options)
      algorithm = control.trpo(build, loss_fn, max_kl=0.01)
      state, metrics = jax.jit(algorithm.step)(
        algorithm.init(start()), tasks(environment)
      )
      self.assertLessEqual(float(metrics["kl"].mean()), 0.01)
      if constructor is not jsharp.algorithms.reptile:  # Whose step may be no descent.
        self.assertFalse(np.array_equal(state.params["bias"], start()["bias"]))

  def test_an_algorithm_without_forward_mode_is_refused(self):
    environment = control.Navigation(horizon=4)
    loss_fn = loss_in(environment)
    build = functools.partial(
      jsharp.algorithms.imaml,
      loss_fn,
      optax.sgd(0.1),
      num_inner_steps=1,
      proximity=1.0,
      num_cg_steps=1,
    )
    algorithm = control.trpo(build, loss_fn)
    with self.assertRaisesRegex(ValueError, "forward-mode derivative of adaptation"):
      jax.eval_shape(algorithm.step, algorithm.init(start()), tasks(environment))


class PPOTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's Adam needs it.

  @parameterized.parameters(jsharp.maml, jsharp.algorithms.reptile)
  def test_its_first_step_is_that_of_the_algorithm(self, constructor):
    environment = control.Navigation(horizon=6)
    loss_fn = loss_in(environment)
    build = built(constructor, loss_fn)
    usual = build(optax.sgd(0.5))
    once = control.ppo(build, loss_fn, optax.sgd(0.5), num_outer_steps=1)
    expected, seen = jax.jit(usual.step)(usual.init(start()), tasks(environment))
    found, metrics = jax.jit(once.step)(once.init(start()), tasks(environment))
    close(found.params, expected.params, rtol=1e-3, atol=1e-5)
    for name in ("loss", "return"):
      np.testing.assert_allclose(metrics[name], seen[name], rtol=1e-5)

  def test_several_steps_stop_where_ratios_leave_the_range(self):
    environment = control.Navigation(horizon=6)
    loss_fn = loss_in(environment)
    build = built(jsharp.maml, loss_fn)
    went = {}
    for clip in (0.05, 1e6):
      algorithm = control.ppo(
        build, loss_fn, optax.adam(0.05), num_outer_steps=20, clip=clip
      )
      state, metrics = jax.jit(algorithm.step)(
        algorithm.init(start()), tasks(environment)
      )
      went[clip] = float(metrics["kl"].mean())
      self.assertEqual(int(state.step), 1)
      self.assertEqual(int(state.opt_state[0].count), 20)
    self.assertLess(went[0.05], 0.7 * went[1e6])

  def test_the_penalty_holds_the_policy_before_adaptation(self):
    environment = control.Navigation(horizon=6)
    loss_fn = loss_in(environment)
    build = built(jsharp.maml, loss_fn)
    drift = jax.jit(
      lambda point: jax.vmap(
        lambda support: loss_fn.divergence(point, loss_fn.hold(start(), support))
      )(tasks(environment).support).mean()
    )
    drifts = {}
    for weight in (0.0, 1e-9, 10.0):
      algorithm = control.ppo(
        build, loss_fn, optax.sgd(0.1), num_outer_steps=6, inner_kl_penalty=weight
      )
      state, _ = jax.jit(algorithm.step)(algorithm.init(start()), tasks(environment))
      drifts[weight] = float(drift(state.params))
    np.testing.assert_allclose(drifts[1e-9], drifts[0.0], rtol=1e-4)
    self.assertLess(drifts[10.0], 0.7 * drifts[0.0])

  def test_refuses(self):
    loss_fn = loss_in(control.Navigation())
    for options, message in (
      ({"num_outer_steps": 0}, "num_outer_steps"),
      ({"clip": 0.0}, "clip"),
      ({"inner_kl_penalty": -1.0}, "inner_kl_penalty"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        control.ppo(built(jsharp.maml, loss_fn), loss_fn, optax.sgd(0.1), **options)


if __name__ == "__main__":
  absltest.main()
