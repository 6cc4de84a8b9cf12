"""Fine-tuning: where training begins, what stands still, what learns faster."""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import save_file

import jsharp
from jsharp import learners
from jsharp.algorithms.black_box import BlackBox
from jsharp.algorithms.cavia import CAVIA
from jsharp.algorithms.fine_tuning import (
  FineTuning,
  Initial,
  check_groups,
  hold_groups,
)
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.algorithms.simpleshot import SimpleShot
from jsharp.algorithms.supervised import classifier, supervised
from jsharp.evaluation.side_by_side import side_by_side
from jsharp.models.conv4 import Conv4StridedClassifier, Conv4StridedOptions
from jsharp.models.resnet import ResNetOptions
from jsharp.nn import RunningBatchNorm
from jsharp.types import Batch, Variables


def description(classes=3, **changes):
  return learners.ClassifierDescription(
    class_names=tuple(map(str, range(classes))),
    **{
      "network": ResNetOptions(),
      "input_shape": (8, 8, 1),
      "pixel_mean": (100.0,),
      "pixel_scale": (0.01,),
      **changes,
    },
  )


def pretrained(**changes):
  return learners.build_classifier(
    description(
      network=Conv4StridedClassifier(num_filters=4),
      input_shape=(16, 16, 3),
      pixel_mean=(0.0,) * 3,
      pixel_scale=(1 / 255,) * 3,
      **changes,
    ),
    seed=1,
  )


def few_shot(algorithm, **changes):
  return side_by_side(
    learners.Description(
      algorithm=algorithm,
      network=Conv4StridedOptions(num_filters=4, **changes),
      num_outputs=3,
      input_shape=(16, 16, 3),
    )
  )


# Of one network's shapes, without its programs.
PARAMS = Variables(
  {
    "conv": {"kernel": np.arange(18, dtype=np.float32).reshape(3, 3, 1, 2)},
    "head": {"bias": np.zeros(3, np.float32), "kernel": np.ones((2, 3), np.float32)},
  },
  {"norm": {"mean": np.full(2, 0.5, np.float32)}},
)


class InitialTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_a_saved_classifier_gives_all_but_the_head(self):
    earlier = learners.build_classifier(description(classes=5), seed=1)
    jsharp.save(earlier, self.root / "saved")
    fresh = learners.build_classifier(description(), seed=2)
    made, digest = learners.initial(
      FineTuning(init_from=str(self.root / "saved")), fresh.params
    )
    theirs, ours = earlier.params, fresh.params
    np.testing.assert_array_equal(
      made.params["conv"]["kernel"], theirs.params["conv"]["kernel"]
    )
    jax.tree.map(
      np.testing.assert_array_equal, made.params["head"], ours.params["head"]
    )
    jax.tree.map(np.testing.assert_array_equal, made.statistics, theirs.statistics)
    self.assertRegex(digest, "^[0-9a-f]{16}$")
    with self.assertRaisesRegex(
      ValueError, "does not fit this network:\n  params/head/bias: .3. here, float32.5."
    ):
      wanted = FineTuning(init_from=str(self.root / "saved"), init_head=True)
      learners.initial(wanted, fresh.params)

  @parameterized.parameters(".npz", ".safetensors")
  def test_arrays_of_a_file_by_a_map_of_names(self, suffix):
    kernel = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    arrays = {"c.weight": kernel, "bn.mean": np.array([3.0, 4.0], np.float32)}
    path, names = self.root / f"weights{suffix}", self.root / "names.json"
    if suffix == ".npz":
      np.savez(path, **arrays)
    else:
      save_file(arrays, path)
    turned = {"name": "c.weight", "transpose": [2, 3, 1, 0]}
    table = {"params/conv/kernel": turned, "statistics/norm/mean": "bn.mean"}
    names.write_text(json.dumps(table))
    wanted = FineTuning(init_from=str(path), init_names=str(names))
    made, _ = learners.initial(wanted, PARAMS)
    np.testing.assert_array_equal(
      made.params["conv"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(made.statistics["norm"]["mean"], [3, 4])
    np.testing.assert_array_equal(made.params["head"]["kernel"], np.ones((2, 3)))
    for entry, message in (
      ({"params/conv/kernel": "c.wight"}, "has no 'c.wight'; it has bn.mean, c"),
      (
        {"params/conv/weight": "c.weight"},
        "params/conv/weight, which this netw",
      ),
      (
        {"params/conv/kernel": {**turned, "transpose": [0, 1]}},
        "transposes .* by .0,",
      ),
      ([1], "must be a JSON object"),
      ({"params/conv/kernel": ["a"]}, "must be a JSON object"),
      ({"params/conv/kernel": {**turned, "transpose": 5}}, "list of axes, got 5"),
      ({"params/conv/kernel": {**turned, "transpose": ["x", 0]}}, "list of axes"),
    ):
      names.write_text(json.dumps(entry))
      with self.assertRaisesRegex(ValueError, message):
        learners.initial(wanted, PARAMS)
    # All that does not fit, with both shapes.
    names.write_text(json.dumps({"params/conv/kernel": "c.weight"}))
    message = (
      r"kernel: \[3, 3, 1, 2\] here, float32\[2, 1, 3, 3\] there\n"
      r"  statistics/norm/mean: \[2\] here, missing there"
    )
    with self.assertRaisesRegex(ValueError, message):
      learners.initial(wanted, PARAMS)

  def test_refuses_what_is_no_source(self):
    broken = self.root / "broken.npz"
    broken.write_bytes(b"PK nothing")
    with self.assertRaisesRegex(ValueError, "broken.npz is not a file of arrays, or"):
      learners.initial(FineTuning(init_from=str(broken)), PARAMS)
    large = self.root / "large.npz"
    np.savez_compressed(large, x=np.zeros(2**25, np.uint8), y=np.zeros(2**26, np.uint8))
    with self.assertRaisesRegex(ValueError, "its arrays take 100,663,.* bytes, more"):
      learners.initial(FineTuning(init_from=str(large)), PARAMS)
    with self.assertRaisesRegex(ValueError, "is a few-shot learner; name an ordinary"):
      learners.initial(FineTuning(init_from="omniglot-protonet"), PARAMS)
    for values, message in (
      ({"init_names": "x"}, "--init_names needs --init_from"),
      ({"lr_factors": ("head",)}, "must be group=factor"),
      ({"lr_factors": ("head=-1",)}, "must be group=factor"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        FineTuning(**values)
    with self.assertRaisesRegex(
      ValueError, "no group of parameters 'tail'; choose among conv, head"
    ):
      check_groups(PARAMS.params, ["head", "tail"])

  def test_frozen_parameters_stand_still_and_are_not_perturbed(self):
    class Network(nn.Module):
      @nn.compact
      def __call__(self, x, train):
        x = jnp.tanh(nn.Dense(4, name="conv")(x))
        x = RunningBatchNorm(name="norm")(nn.Dense(4, name="block")(x), train)
        return nn.Dense(3, name="head")(jnp.tanh(x))

    init_fn, loss_fn = classifier(Network())
    images = jax.random.normal(jax.random.key(0), (4, 5))
    start = init_fn(jax.random.key(1), images)
    frozen = ("conv/bias", "conv/kernel", "norm/scale")
    tuning = FineTuning(freeze=("conv", "norm/scale"), lr_factors=("head=10",))
    batch = Batch(images, jnp.array([0, 1, 2, 0]))
    inner = optax.chain(
      optax.add_decayed_weights(0.1), optax.clip_by_global_norm(0.5), optax.sgd(0.1)
    )
    step_of = functools.partial(supervised, weight_decay=0.2)
    algorithm = step_of(
      loss_fn,
      optax.chain(jsharp.sam(0.5), tuning.optimizer(inner)),
      hold=hold_groups(tuning.freeze),
    )
    moved = jax.jit(algorithm.step)(algorithm.init(start), batch)[0].params.params

    # The same network, in which they are no parameters at all.
    flat = traverse_util.flatten_dict(start.params, sep="/")
    constants = {name: flat.pop(name) for name in frozen}

    def loss_of_the_others(variables, *rest):
      whole = traverse_util.unflatten_dict({**variables.params, **constants}, sep="/")
      return loss_fn(variables._replace(params=whole), *rest)

    faster = optax.stateless(
      lambda updates, params: {
        name: step * (10 if name.startswith("head") else 1)
        for name, step in updates.items()
      }
    )
    others = step_of(loss_of_the_others, optax.chain(jsharp.sam(0.5), inner, faster))
    expected = jax.jit(others.step)(others.init(start._replace(params=flat)), batch)
    moved = traverse_util.flatten_dict(moved, sep="/")
    for name, leaf in expected[0].params.params.items():
      self.assertFalse(np.array_equal(moved[name], flat[name]))
      np.testing.assert_allclose(moved[name], leaf, rtol=1e-5, atol=1e-6)
    for name in frozen:
      np.testing.assert_array_equal(moved[name], constants[name])


class BackboneTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_a_frozen_learner_computes_the_pretrained_features(self):
    earlier = pretrained()
    statistics = jax.tree.map(lambda x: x + 0.25, earlier.params.statistics)
    earlier = earlier.replace(Variables(earlier.params.params, statistics))
    jsharp.save(earlier, self.root / "saved")
    wanted = Initial(init_from=str(self.root / "saved"))
    begun, digest = few_shot(SimpleShot(), norm="frozen").beginning_with(wanted)
    self.assertRegex(digest, "^[0-9a-f]{16}$")
    (learner,) = begun.learners
    network = learner.description.network
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 3)).astype("f4")
    features = network.module(None).apply(
      {"params": learner.made.params.embedding}, images
    )
    head = earlier.params.params["head"]
    np.testing.assert_allclose(
      features @ head["kernel"] + head["bias"][None],
      earlier.predict(None, images),
      rtol=1e-4,
      atol=1e-5,
    )

  @parameterized.parameters(
    MAML(), ProtoNet(), SimpleShot(), CAVIA(), BlackBox(width=4, num_layers=1)
  )
  def test_all_but_the_head_by_the_batch(self, algorithm):
    jsharp.save(pretrained(), self.root / "saved")
    fresh = few_shot(algorithm)
    begun, _ = fresh.beginning_with(Initial(init_from=str(self.root / "saved")))
    before, after = fresh.learners[0].made.params, begun.learners[0].made.params
    if isinstance(algorithm, SimpleShot):
      np.testing.assert_array_equal(after.head, before.head)
      after = after.embedding
    if isinstance(algorithm, BlackBox):
      np.testing.assert_array_equal(after["token"]["bias"], before["token"]["bias"])
      after = after["embedding"]
    if isinstance(algorithm, CAVIA):
      np.testing.assert_array_equal(after["film"]["kernel"], before["film"]["kernel"])
    theirs = pretrained().params.params
    np.testing.assert_array_equal(after["conv_2"]["kernel"], theirs["conv_2"]["kernel"])
    if isinstance(algorithm, MAML):
      jax.tree.map(np.testing.assert_array_equal, after["head"], before["head"])

  def test_a_few_shot_learner_hands_its_backbone_on(self):
    (earlier,) = few_shot(ProtoNet()).learners
    moved = jax.tree.map(lambda x: x + 1.0, earlier.params)
    jsharp.save(earlier.replace(moved), self.root / "saved")
    wanted = Initial(init_from=str(self.root / "saved"))
    begun, _ = few_shot(MAML()).beginning_with(wanted)
    np.testing.assert_array_equal(
      begun.learners[0].made.params["norm_1"]["scale"], np.full(4, 2.0)
    )
    with self.assertRaisesRegex(ValueError, "norm_0/mean: .4. here, missing there"):
      few_shot(MAML(), norm="frozen").beginning_with(wanted)

  def test_what_does_not_fit_is_listed(self):
    earlier = learners.build_classifier(description())
    jsharp.save(earlier, self.root / "saved")
    with self.assertRaisesRegex(
      ValueError, "(?s)conv_0/kernel: .3, 3, 3, 4. here, missing there.*norm_3/scale"
    ):
      few_shot(MAML()).beginning_with(Initial(init_from=str(self.root / "saved")))


if __name__ == "__main__":
  absltest.main()
