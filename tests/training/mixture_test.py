"""Steps of a mixture are its members' steps, drawn evenly by (seed, step)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jsharp
from jsharp import losses
from jsharp.data import task_key
from jsharp.models import first_outputs
from jsharp.training.mixture import mixture

NUM_TASKS = 3


def sampler(way, shot):
  def draw(step, data):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(way), step), 2)

    def batch(key):
      inputs = data + jax.random.normal(key, (NUM_TASKS, way * shot, 4))
      targets = jnp.tile(jnp.repeat(jnp.arange(way), shot), (NUM_TASKS, 1))
      return jsharp.Batch(inputs, targets)

    return jsharp.Task(*map(batch, keys))

  return draw


def member(way):
  apply_fn = first_outputs(lambda w, x: x @ w, way)
  return jsharp.maml(
    losses.batch_loss(apply_fn, losses.cross_entropy),
    optax.sgd(0.3),
    optax.sgd(0.1, momentum=0.9),
    num_inner_steps=2,
  )


class MixtureTest(absltest.TestCase):
  def test_each_step_is_the_step_of_one_member(self):
    shapes = [(2, 1), (4, 3)]
    samplers = [sampler(*shape) for shape in shapes]
    members = [member(way) for way, _ in shapes]
    both, draw = mixture(members, samplers, seed=1)
    step, data = jax.jit(both.step), jnp.float32(0.5)
    singles = [jax.jit(one.step) for one in members]
    state = both.init(jnp.ones((4, 4)))
    taken = []
    for number in range(12):
      expected = [
        one(state, draw_one(number, data))[0].params
        for one, draw_one in zip(singles, samplers, strict=True)
      ]
      state, metrics = step(state, draw(number, data))
      self.assertEqual(metrics["loss"].shape, (NUM_TASKS,))
      distances = [float(jnp.abs(state.params - e).max()) for e in expected]
      self.assertLess(min(distances), 1e-6)
      self.assertGreater(max(distances), 1e-4)
      taken.append(int(np.argmin(distances)))
    self.assertEqual(int(state.step), 12)
    self.assertEqual(set(taken), {0, 1})
    # By keys that no task of this seed is drawn with.
    keys = jax.vmap(functools.partial(task_key, 1, stream="member"))(jnp.arange(12))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (), 0, 2))(keys)
    self.assertEqual(taken, drawn.tolist())

  def test_bad_arguments_are_named(self):
    with self.assertRaisesRegex(ValueError, "1 algorithms and 2 samplers"):
      mixture([member(2)], [sampler(2, 1)] * 2)
    with self.assertRaisesRegex(ValueError, "way is 5, but the model has 4 outputs"):
      first_outputs(lambda w, x: x @ w, 5)(jnp.ones((4, 4)), jnp.ones((2, 4)))


if __name__ == "__main__":
  absltest.main()
