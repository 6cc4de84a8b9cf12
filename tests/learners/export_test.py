"""Exported learners: JAX alone runs them, for any number of examples, and agrees."""

import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export

from jsharp import learners
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.maml_plus_plus import MAMLPlusPlus
from jsharp.algorithms.protonet import ProtoNet
from jsharp.algorithms.ridge import Ridge
from jsharp.algorithms.sharp_maml import SharpMAMLBoth
from jsharp.models.conv4 import Conv4StridedOptions
from jsharp.models.mlp import MLPOptions, SineNetwork
from jsharp.types import Batch

SHAPE = (6, 6, 1)


def learner(algorithm, network=None, shape=SHAPE):
  return learners.build(
    learners.Description(
      algorithm=algorithm,
      network=network or MLPOptions(),
      num_outputs=3,
      input_shape=shape,
    )
  )


def task(num_support, num_images, shape=SHAPE):
  keys = jax.random.split(jax.random.key(num_support), 2)
  support = jax.random.uniform(keys[0], (num_support, *shape))
  images = jax.random.uniform(keys[1], (num_images, *shape))
  return support, jnp.arange(num_support) % 3, images


class ExportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(root, "learner.jax")

  def exported(self, made, **options):
    made.export(self.path, **options)
    return export.deserialize(self.path.read_bytes())

  @parameterized.parameters(
    SharpMAMLBoth(inner_lr=0.4),
    MAMLPlusPlus(running_statistics=True),
    Ridge(),
  )
  def test_one_program_for_any_number_of_examples(self, algorithm):
    made = learner(algorithm)
    program = self.exported(made)
    self.assertEqual(program.platforms, ("cpu", "cuda", "tpu"))
    for num_support, num_images in ((3, 1), (8, 5)):
      support, labels, images = task(num_support, num_images)
      adapted = made.adapt(Batch(support, labels))
      both = jnp.concatenate([support, images])
      logits = made.apply_fn()(adapted, both, num_statistics=num_support)[num_support:]
      np.testing.assert_allclose(
        program.call(support, labels, images),
        jax.nn.softmax(logits),
        rtol=1e-3,
        atol=1e-4,
      )

  def test_convolutions_and_the_transductive_policy(self):
    shape = (16, 16, 1)
    made = learner(ProtoNet(), Conv4StridedOptions(num_filters=4), shape)
    program = self.exported(made, policy="transductive", way=2)
    support, labels, images = task(5, 7, shape)
    adapted = made.adapt(Batch(support, labels % 2), way=2)
    logits = made.predict(adapted, images, way=2)
    np.testing.assert_allclose(
      program.call(support, labels % 2, images),
      jax.nn.softmax(logits),
      rtol=1e-3,
      atol=1e-4,
    )

  def test_jax_alone_runs_it_and_the_file_beside_it_says_how(self):
    made = learner(ProtoNet())
    made.export(self.path, platforms=["cpu"])
    facts = json.loads(pathlib.Path(f"{self.path}.json").read_text())
    self.assertEqual(facts["platforms"], ["cpu"])
    self.assertEqual((facts["way"], facts["policy"]), (3, "inductive"))
    support, labels, images = task(6, 4)
    np.savez(self.path.with_name("task.npz"), s=support, l=labels, i=images)
    code = (
      "import sys\n"
      "sys.modules['jsharp'] = None  # Importing it fails.\n"
      "import numpy as np\n"
      "from jax import export\n"
      "program = export.deserialize(open('learner.jax', 'rb').read())\n"
      "task = np.load('task.npz')\n"
      "found = program.call(task['s'], task['l'].astype('int32'), task['i'])\n"
      "np.save('found.npy', found)\n"
    )
    subprocess.run(
      [sys.executable, "-c", code],
      cwd=self.path.parent,
      env={"JAX_PLATFORMS": "cpu"},
      check=True,
    )
    both = jnp.concatenate([support, images])
    logits = made.apply_fn()(
      made.adapt(Batch(support, labels)), both, num_statistics=6
    )[6:]
    found = np.load(self.path.with_name("found.npy"))
    np.testing.assert_allclose(found, jax.nn.softmax(logits), rtol=1e-3, atol=1e-4)

  def test_a_regression(self):
    waves = learners.build(
      learners.Description(
        algorithm=MAML(),
        network=SineNetwork(hidden_width=8),
        problem="regression",
        num_outputs=1,
        input_shape=(1,),
      )
    )
    program = self.exported(waves)
    x = jnp.linspace(-1, 1, 5)[:, None]
    expected = waves.predict(waves.adapt(Batch(x, x)), x)
    np.testing.assert_allclose(program.call(x, x, x), expected, rtol=1e-4, atol=1e-5)

  def test_fixed_sizes_and_refusals(self):
    made = learner(ProtoNet())
    program = self.exported(made, num_support=6, num_images=2)
    self.assertEqual(program.in_avals[0].shape, (6, *SHAPE))
    for options, message in (
      ({"way": 1}, "way"),
      ({"policy": "both"}, "policy must be one of"),
      ({"num_steps": 2}, "takes no inner steps"),
      ({"num_support": 2}, "num_support"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        made.export(self.path, **options)
    with self.assertRaisesRegex(ValueError, "3 outputs"):
      learner(MAML()).export(self.path, way=4)


if __name__ == "__main__":
  absltest.main()
