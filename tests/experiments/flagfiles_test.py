"""The flagfiles of ordinary training, begun on small images with narrow networks."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from experiments import supervised
from jsharp.training.devices import execution_for
from tests.data import photographs
from tests.experiments import flags_test, supervised_test

FLAGFILES = flags_test.ROOT / "experiments" / "flagfiles"
TINY = {
  "resnet": ("--depth=8",),
  "wide_resnet": ("--depth=10", "--widen=1"),
  "shake_shake": ("--depth=8", "--width=2"),
  "pyramid_net": ("--depth=11", "--pyramid_alpha=3"),
}
STREAMED = (
  "--depth=26",
  "--width=2",
  "--image_size=32",
  "--batch_size=4",
  "--num_epochs=1",
  "--num_workers=0",
)
SMALL = ("--dataset=characters", *supervised_test.TINY, "--hessian_eigenvalues=0")


def settings(path):
  lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
  return dict(line[2:].partition("=")[::2] for line in lines)


def words(path):
  return (f"--flagfile={path}", *SMALL, *TINY[settings(path)["model"]])


class FlagfilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("standard"))  # optax's schedules

  @parameterized.named_parameters(
    (path.stem, path) for path in sorted(FLAGFILES.glob("*_cifar10*.txt"))
  )
  def test_its_step_is_built(self, path):
    self.check_step(path, words(path), num_steps=3)

  @parameterized.named_parameters(
    (path.stem, path) for path in sorted(FLAGFILES.glob("*_imagenet_resnet*.txt"))
  )
  def test_its_step_on_streamed_images_is_built(self, path):
    self.assertEqual(settings(path)["dataset"], "imagenet")
    with tempfile.TemporaryDirectory() as data_dir:
      contents = photographs.contents(("n00000001", "n00000002"), (4, 4), num_val=1)
      photographs.write_folders(pathlib.Path(data_dir), contents)
      self.check_step(
        path, (f"--flagfile={path}", f"--data_dir={data_dir}", *STREAMED), num_steps=2
      )

  def check_step(self, path, arguments, *, num_steps):
    description = flags_test.describe("supervised", *arguments)
    parts = supervised.build(description, execution_for())
    self.assertEqual(parts.loop["num_steps"], num_steps)

    def step(number, params, data):
      state = parts.algorithm.init(params)
      new, metrics = parts.algorithm.step(state, parts.sample_tasks(number, data))
      return new, state, metrics

    data = getattr(parts.data, "spec", parts.data)
    new, state, metrics = jax.eval_shape(step, jnp.int32(0), parts.params, data)
    self.assertEqual(new, state)  # Shapes and dtypes stay what they are.
    self.assertEqual(metrics["loss"].shape, (description.training.batch_size,))
    per_step = 2 if settings(path)["algorithm"] == "sam" else 1
    gradients = description.algorithm.num_gradients(3, steps_per_epoch=3)
    self.assertEqual(gradients, 3 * per_step)

  def test_three_steps(self):
    path = FLAGFILES / "sam_cifar10_label_noise_40.txt"
    with tempfile.TemporaryDirectory() as run_dir:
      code, out, err = supervised_test.run(run_dir, *words(path))
      self.assertEqual(code, 0, err)
      result = json.loads((pathlib.Path(run_dir) / "result.json").read_text())
    self.assertEqual((result["num_steps"], result["gradients_per_step"]), (3, 2))
    self.assertBetween(result["test_error"], 0, 1)
    self.assertIn("test error", out)


if __name__ == "__main__":
  absltest.main()
