"""The losses of a learner around its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.algorithms.maml import MAML
from jsharp.algorithms.meta_sgd import MetaSGD
from jsharp.algorithms.protonet import ProtoNet
from jsharp.analysis import average_case_rise, meta_objective, per_task
from jsharp.core import on_query
from jsharp.evaluation import evaluator, network_alone, objective
from jsharp.learners import Description, build
from jsharp.losses import batch_loss, squared_error
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.types import Batch, Task

SHAPE = (4, 4, 1)


@functools.cache
def regression(algorithm):
  return build(
    Description(
      algorithm=algorithm,
      network=SineNetwork(hidden_width=5),
      problem="regression",
      num_outputs=1,
      input_shape=(1,),
    )
  )


def tasks(num_tasks=3):
  support, query = jax.random.normal(jax.random.key(1), (2, num_tasks, 4, 1))
  return Task(Batch(support, jnp.sin(support)), Batch(query, jnp.sin(query)))


def moved(params, by):
  return jax.tree.map(lambda w: w + jnp.float32(by), params)


class ObjectiveTest(parameterized.TestCase):
  def test_what_is_learned_beside_the_network_is_held(self):
    learner = regression(MetaSGD())
    point, algorithm = learner.params, learner.algorithm()
    loss_fn = on_query(batch_loss(learner.apply_fn(), squared_error))
    network = network_alone(learner)
    measure = per_task(*objective(network, tasks()))
    self.assertIs(network.params, point.params)
    for params in (network.params, moved(network.params, 0.1)):
      everything = point._replace(params=params)
      expected = evaluator(algorithm.adapt, loss_fn)(everything, tasks())
      np.testing.assert_array_equal(measure(params)["loss"], expected["loss"])
      held = evaluator(network.adapt, network.query_loss_fn)(params, tasks())
      np.testing.assert_array_equal(held["loss"], expected["loss"])

  def test_three_objectives(self):
    learner = regression(MAML(inner_lr=0.1, num_eval_inner_steps=2))
    network = network_alone(learner)
    away = moved(network.params, 0.1)
    adapt = jax.jit(functools.partial(learner.algorithm().adapt, num_steps=2))
    query_loss_fn = jax.jit(network.query_loss_fn)
    singles = [jax.tree.map(lambda x, i=i: x[i], tasks()) for i in range(3)]
    adapted = [adapt(network.params, task.support) for task in singles]
    expected = {
      "meta": [adapt(away, task.support) for task in singles],
      "task": [away] * 3,
      "adapted": [moved(params, 0.1) for params in adapted],
    }
    for of, points in expected.items():
      found = jax.jit(per_task(*objective(network, tasks(), of=of)))(away)["loss"]
      pairs = zip(points, singles, strict=True)
      losses = [query_loss_fn(point, task)[0] for point, task in pairs]
      np.testing.assert_allclose(found, losses, rtol=1e-5, err_msg=of)

  def test_adapted_is_meta_at_the_centre(self):
    network = network_alone(regression(MAML(inner_lr=0.1, num_eval_inner_steps=2)))
    losses = [
      jax.jit(per_task(*objective(network, tasks(), of=of)))(network.params)["loss"]
      for of in ("meta", "adapted")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)

  @parameterized.parameters("task", "adapted")
  def test_refuses_what_adapts_something_else(self, of):
    learner = build(
      Description(
        algorithm=ProtoNet(),
        network=MLPOptions(),
        num_outputs=2,
        input_shape=SHAPE,
      )
    )
    images = jnp.zeros((1, 2, *SHAPE))
    batch = Batch(images, jnp.array([[0, 1]]))
    network = network_alone(learner, way=2)
    with self.assertRaisesRegex(ValueError, f"of={of} needs an algorithm that adapts"):
      objective(network, Task(batch, batch), of=of)

  def test_learners_of_one_build_are_compiled_once(self):
    learner, traced = regression(MAML(inner_lr=0.2)), []
    for scale in (0.0, 0.5):
      network = network_alone(learner.replace(moved(learner.params, scale)))
      task_loss_fn, items = objective(network, tasks())
      loss = meta_objective(task_loss_fn, items)
      traced.append((task_loss_fn, jax.tree.structure(loss)))
      average_case_rise(
        loss, network.params, rho=0.1, num_samples=2, key=jax.random.key(0)
      )
    self.assertEqual(*traced)


if __name__ == "__main__":
  absltest.main()
