"""Tests of the descriptions: defaults, costs, and what stands in the optimizer."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import _catalogue, options
from jsharp.algorithms.supervised import OrdinaryTraining
from jsharp.perturbations import SharpLink, SharpOptimizer

CLASSES = {
  name: _catalogue.find(SharpOptimizer, name)
  for name in _catalogue.outlines(SharpOptimizer.kind)
}
LINKS = [name for name, cls in CLASSES.items() if issubclass(cls, SharpLink)]


def descend(description, training=None, num_steps=6):
  """Steps on a quartic; returns the end and how often a gradient was computed."""
  training = training or OrdinaryTraining()
  optimizer = description.wrap(training.optimizer(num_steps), steps_per_epoch=2)
  optimizer = optax.with_extra_args_support(optimizer)
  calls = []

  def gradient(w):
    jax.debug.callback(lambda: calls.append(1))
    return 4 * w**3

  w = jnp.array([1.0, -0.5])
  state = optimizer.init(w)

  @jax.jit
  def step(state, w):
    grads = gradient(w)
    updates, state = optimizer.update(grads, state, w, grad_fn=gradient, value=0.0)
    return state, optax.apply_updates(w, updates)

  for _ in range(num_steps):
    state, w = step(state, w)
  jax.effects_barrier()
  return np.asarray(w), len(calls)


class OptionsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's schedules

  @parameterized.parameters(*CLASSES)
  def test_gradients_are_counted_as_they_are_computed(self, name):
    description = CLASSES[name]()
    w, calls = descend(description, OrdinaryTraining(lr=0.01))
    self.assertTrue(np.all(np.isfinite(w)))
    self.assertEqual(calls, description.num_gradients(6, steps_per_epoch=2))

  @parameterized.product(
    name=LINKS, steps=({"sam_every": 2}, {"sam_every": 3, "sam_start": 1.5})
  )
  def test_and_so_are_those_that_are_left_out(self, name, steps):
    description = CLASSES[name](**steps)
    _, calls = descend(description)
    self.assertEqual(calls, description.num_gradients(6, steps_per_epoch=2))
    self.assertLess(calls, 12)

  def test_looksam_counts_its_own_steps(self):
    description = CLASSES["looksam"](rho=0.1, sam_every=2)
    _, calls = descend(description)
    counted = description.num_gradients(6, steps_per_epoch=2)
    self.assertEqual((calls, counted), (9, 9))

  @parameterized.parameters(*[name for name in CLASSES if name != "sgd"])
  def test_every_option_is_an_argument_with_the_default_of_its_constructor(self, name):
    parameters = inspect.signature(getattr(jsharp, name)).parameters
    fields = {field.name: field for field in options.fields(CLASSES[name])}
    if "every" in parameters:
      fields["every"] = fields.pop("sam_every")
    for elsewhere in ("sam_every", "sam_start", "perturbation_batch_size"):
      fields.pop(elsewhere, None)
    self.assertContainsSubset(fields, parameters)
    for argument, field in fields.items():
      self.assertEqual(field.default, parameters[argument].default, argument)

  @parameterized.parameters(*[name for name in CLASSES if name != "sgd"])
  def test_every_option_reaches_its_constructor(self, name):
    signature = inspect.signature(getattr(jsharp, name))
    fields = options.fields(CLASSES[name])
    values = {
      field.name: {bool: True, int: 3, float: 0.25}[field.type]
      for field in fields
      if field.name != "perturbation_batch_size"
    }
    values["p"] = 1.5
    received = {}

    def constructor(*arguments, **named):
      received.update(signature.bind(*arguments, **named).arguments)
      return optax.identity()

    module = importlib.import_module(CLASSES[name].__module__)
    with mock.patch.object(module, name, constructor):
      CLASSES[name](**values).wrap(optax.sgd(0.1), steps_per_epoch=2)
    if "every" in received:
      values["every"] = values.pop("sam_every")
    expected = {key: value for key, value in values.items() if "sam_" not in key}
    received.pop("optimizer", None)
    self.assertEqual(received, expected)

  def test_groups_take_the_place_of_the_link(self):
    description = CLASSES["sam"](rho=0.3, p=1.5, perturbation_batch_size=4)
    plain = optax.sgd(0.1)
    self.assertIs(description.wrap(plain, steps_per_epoch=2), plain)
    ascent, size, second_order = description.groups
    g = jnp.array([3.0, -4.0])
    direct = jsharp.sam_ascent(0.3, p=1.5)
    expected, _ = direct.update(g, direct.init(g), g)
    np.testing.assert_array_equal(ascent.update(g, ascent.init(g), g)[0], expected)
    self.assertEqual((size, second_order), (4, False))
    self.assertIsNone(CLASSES["sam"]().groups)
    for steps in ({"sam_every": 2}, {"sam_start": 1.0}):
      with self.assertRaisesRegex(ValueError, "perturbs on every step; leave"):
        CLASSES["sam"](perturbation_batch_size=4, **steps)

  def test_only_momentum_sam_moves_perturbed_parameters(self):
    moving = [name for name, cls in CLASSES.items() if cls().centre is not None]
    self.assertEqual(moving, ["momentum_sam"])
    self.assertIs(CLASSES["momentum_sam"]().centre, jsharp.perturbations.centre)

  def test_the_chain_is_sam_then_decay_then_clipping_then_nesterov(self):
    training = OrdinaryTraining(lr=0.1, weight_decay=0.5, clip_gradient=2.0)
    w, _ = descend(CLASSES["sam"](rho=0.3), training, num_steps=4)
    expected, trace = np.array([1.0, -0.5]), np.zeros(2)
    for step in range(4):
      g = 4 * expected**3
      g = 4 * (expected + 0.3 * g / np.linalg.norm(g)) ** 3 + 0.5 * expected
      g *= min(1, 2 / np.linalg.norm(g))
      trace = g + 0.9 * trace
      rate = 0.1 * (1 + np.cos(np.pi * step / 4)) / 2
      expected = expected - rate * (g + 0.9 * trace)
    np.testing.assert_allclose(w, expected, rtol=1e-5)

  @parameterized.parameters(
    ("wsam", {"gamma": 1.0}, "gamma=1.0: must be at least 0 and below 1"),
    ("asam", {"rho": 0.0}, "rho=0.0: must be positive .*use --algorithm=sgd"),
    ("sam", {"sam_every": 0}, "sam_every=0: must be .* at least 1"),
    ("sam", {"sam_start": -1.0}, "sam_start=-1.0: must be finite and at least 0"),
    ("momentum_sam", {"p": 0.5}, "p=0.5: must lie between 1 and inf"),
    ("vasso", {"decay": 1.0}, "decay=1.0: must be at least 0 and below 1"),
  )
  def test_refusals(self, name, values, message):
    with self.assertRaisesRegex(ValueError, message):
      CLASSES[name](**values)


if __name__ == "__main__":
  absltest.main()
