"""ANIL and BOIL: closed form on a part, what stays, and what a step costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import jsharp
from jsharp import losses
from jsharp.algorithms import anil, boil
from jsharp.algorithms._hoisting import hoisted
from jsharp.core.objectives import on_query
from jsharp.evaluation import evaluator
from jsharp.models import MLP, as_functions, part_mask
from tests import quadratics as quad

INNER_LR, OUTER_LR = 0.1, 0.3
HEAD = part_mask("head")
IN_HEAD = np.array([0.0, 0.0, 0.0, 1.0])


def split_loss(params, batch):
  return quad.loss_fn(jnp.concatenate([params["body"], params["head"]["w"]]), batch)


def parts(w):
  return {"body": jnp.asarray(w[:3]), "head": {"w": jnp.asarray(w[3:])}}


def whole(params):
  return np.concatenate([params["body"], params["head"]["w"]])


def expected_gradient(tasks, w, steps, adapted):
  """The meta-gradient if only entries with `adapted` 1 move in the inner loop."""
  gradients = []
  for task in range(len(tasks.query.targets)):
    point, jacobian = w, np.eye(len(w))
    matrix = tasks.support.inputs[task]
    for _ in range(steps):
      point = point - INNER_LR * adapted * quad.gradient(tasks.support, task, point)
      jacobian = (np.eye(len(w)) - INNER_LR * adapted[:, None] * matrix) @ jacobian
    gradients.append(jacobian.T @ quad.gradient(tasks.query, task, point))
  return np.mean(gradients, axis=0)


def network(steps, constructor, **options):
  """The compiled meta-step of a classifier whose body is most of the work."""
  init_fn, apply_fn = as_functions(MLP((48, 48, 3)))
  inputs = jnp.ones((2, 16, 24))
  batch = jsharp.Batch(inputs, jnp.zeros((2, 16), jnp.int32))
  algorithm = constructor(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(0.1),
    optax.sgd(0.1),
    num_inner_steps=steps,
    **options,
  )
  params = jax.eval_shape(init_fn, jax.random.key(0), inputs[0])
  state = jax.eval_shape(algorithm.init, params)
  lowered = jax.jit(algorithm.step).lower(state, jsharp.Task(batch, batch))
  return lowered.compile().cost_analysis()["flops"]


class PartsTest(parameterized.TestCase):
  @parameterized.product(
    steps=(1, 3, 12), which=((anil, IN_HEAD), (boil, 1 - IN_HEAD)), chunk=(1, 3)
  )
  def test_closed_form(self, steps, which, chunk):
    constructor, adapted = which
    with jax.enable_x64(True):
      tasks, w = quad.random_tasks(3), quad.start()
      algorithm = constructor(
        split_loss,
        optax.sgd(INNER_LR),
        optax.sgd(OUTER_LR),
        head=HEAD,
        num_inner_steps=steps,
        execution=jsharp.Execution(task_chunk=chunk),
      )
      state, _ = jax.jit(algorithm.step)(
        algorithm.init(parts(w)), quad.on_device(tasks)
      )
      expected = w - OUTER_LR * expected_gradient(tasks, w, steps, adapted)
      np.testing.assert_allclose(whole(state.params), expected, rtol=1e-10)

  @parameterized.parameters(2, 12)
  def test_the_parts_are_complementary_and_the_rest_is_bitwise_the_same(self, steps):
    support = jax.tree.map(lambda x: jnp.asarray(x[0]), quad.random_tasks(1).support)
    support = jax.tree.map(lambda x: x.astype(jnp.float32), support)
    params = parts(np.float32(quad.start()))
    changed = {}
    for constructor in (anil, boil):
      algorithm = constructor(
        split_loss,
        optax.chain(jsharp.sam(0.1), optax.sgd(INNER_LR)),
        optax.sgd(OUTER_LR),
        head=HEAD,
        num_inner_steps=steps,
      )
      adapted = jax.jit(algorithm.adapt)(params, support)
      same = jax.tree.map(lambda a, b: bool((a == b).all()), adapted, params)
      changed[constructor] = {
        name for name in params if not all(jax.tree.leaves(same[name]))
      }
    self.assertEqual(changed, {anil: {"head"}, boil: {"body"}})

  def test_anil_with_sam_is_masked_maml_with_sam(self):
    with jax.enable_x64(True):
      tasks = quad.on_device(quad.random_tasks(3))
      inner = optax.chain(jsharp.sam(0.3), optax.sgd(INNER_LR))
      options = {"num_inner_steps": 2}
      both = []
      for algorithm in (
        anil(split_loss, inner, optax.sgd(OUTER_LR), head=HEAD, **options),
        jsharp.maml(
          split_loss, inner, optax.sgd(OUTER_LR), adapted_mask=HEAD, **options
        ),
      ):
        state = algorithm.init(parts(quad.start()))
        both.append(jax.jit(lambda s, t, a=algorithm: a.step(s, t))(state, tasks))
        adapt = functools.partial(algorithm.adapt, num_steps=3)
        measure = evaluator(adapt, on_query(split_loss))
        both[-1] += (jax.jit(measure)(state.params, tasks),)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), both[0], both[1]
      )

  def test_boil_leaves_what_a_second_mask_leaves(self):
    def loss_fn(params, batch):
      return sum(jnp.sum((x - batch) ** 2) for x in jax.tree.leaves(params)), {}

    params = {"conv": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    params["head"] = {"kernel": jnp.ones(2)}
    algorithm = boil(
      loss_fn,
      optax.sgd(0.1),
      optax.sgd(0.1),
      head=HEAD,
      adapted_mask=part_mask("conv", "head"),
      num_inner_steps=1,
    )
    adapted = algorithm.adapt(params, jnp.float32(0))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), adapted, params)
    self.assertEqual(
      [moved[k] for k in ("conv", "norm", "head")],
      [{"kernel": True}, {"scale": False}, {"kernel": False}],
    )

  def test_an_empty_part_is_refused(self):
    nothing = lambda params: jax.tree.map(lambda _: False, params)
    everything = lambda params: jax.tree.map(lambda _: True, params)
    for constructor, head, name in (
      (anil, nothing, "^head"),
      (boil, everything, "adapted_mask"),
    ):
      algorithm = constructor(
        split_loss, optax.sgd(0.1), optax.sgd(0.1), head=head, num_inner_steps=1
      )
      with self.assertRaisesRegex(ValueError, f"{name} selects no leaf"):
        algorithm.adapt(parts(np.ones(4, np.float32)), None)

  def test_bad_counts_are_named(self):
    build = functools.partial(
      anil, split_loss, optax.sgd(0.1), optax.sgd(0.1), head=HEAD
    )
    with self.assertRaisesRegex(ValueError, "num_inner_steps.*-1"):
      build(num_inner_steps=-1)
    support = jax.tree.map(lambda x: jnp.asarray(x[0]), quad.random_tasks(1).support)
    with self.assertRaisesRegex(ValueError, "num_steps.*-1"):
      build(num_inner_steps=1).adapt(parts(quad.start()), support, num_steps=-1)


class CostTest(absltest.TestCase):
  def test_the_body_is_passed_once_whatever_the_number_of_inner_steps(self):
    head = part_mask("dense_2")
    one, four = (network(steps, anil, head=head) for steps in (1, 4))
    self.assertLess(four, 1.15 * one)
    self.assertLess(four, 0.7 * network(4, jsharp.maml, adapted_mask=head))
    self.assertLess(four, 0.3 * network(4, jsharp.maml))

  def test_hoisted_keeps_values_and_both_derivatives(self):
    with jax.enable_x64(True):
      x, y = jnp.array([0.3, -1.0]), jnp.array([2.0, 0.5])

      def fn(x, y):
        common = jax.nn.relu(jnp.sin(y)) * jax.jit(jnp.exp)(y)
        return {"a": jnp.sum(common * x**2), "b": jax.jit(lambda x: x * y)(x), "c": 3.0}

      def through(x, y):
        return hoisted(lambda x: fn(x, y), jnp.zeros(2))(x)

      jax.tree.map(np.testing.assert_array_equal, through(x, y), fn(x, y))
      for argnums in (0, 1):
        jax.tree.map(
          lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14),
          jax.jit(jax.jacrev(through, argnums))(x, y),
          jax.jacrev(fn, argnums)(x, y),
        )


if __name__ == "__main__":
  absltest.main()
