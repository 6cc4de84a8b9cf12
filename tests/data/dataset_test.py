import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import Dataset


def _images(num_images, value=0, shape=(4, 4, 1)):
  return np.full([num_images, *shape], value, np.uint8)


def _arguments(**changes):
  arguments = {
    "images": _images(5),
    "offsets": np.array([0, 3], np.int32),
    "counts": np.array([3, 2], np.int32),
    "class_names": ("a", "b"),
    "split": "train",
  }
  return arguments | changes


class DatasetTest(parameterized.TestCase):
  def test_classes_of_unequal_size_lie_one_after_another(self):
    dataset = Dataset.from_class_arrays(
      {"a": _images(3, 1), "b": _images(1, 2), "c": _images(2, 3)}, split="val"
    )
    for index, (value, count) in enumerate([(1, 3), (2, 1), (3, 2)]):
      start, size = dataset.offsets[index], dataset.counts[index]
      self.assertEqual(size, count)
      np.testing.assert_array_equal(
        dataset.images[start : start + size], _images(count, value)
      )
    self.assertEqual(dataset.class_names, ("a", "b", "c"))
    self.assertEqual(dataset.smallest, ("b", 1))
    self.assertEqual(dataset.image_shape, (4, 4, 1))

  def test_rotations_multiply_the_classes(self):
    dataset = Dataset(**_arguments(num_rotations=4))
    self.assertEqual(dataset.num_base_classes, 2)
    self.assertEqual(dataset.num_classes, 8)

  def test_passes_through_jit_and_keeps_its_static_part(self):
    dataset = Dataset(**_arguments()).on_device()
    result = jax.jit(lambda d: dataclasses.replace(d, offsets=d.offsets + 1))(dataset)
    self.assertEqual(result.class_names, dataset.class_names)
    self.assertEqual(result.smallest, ("b", 2))
    np.testing.assert_array_equal(result.offsets, [1, 4])

  def test_an_equal_dataset_does_not_compile_again(self):
    traces = []

    @jax.jit
    def count(dataset):
      traces.append(dataset)
      return dataset.offsets.sum()

    for _ in range(2):
      # Names that are equal but not the same objects.
      names = tuple("".join(["class", str(i)]) for i in range(2))
      count(Dataset(**_arguments(class_names=names)).on_device())
    self.assertLen(traces, 1)
    count(Dataset(**_arguments(class_names=("x", "y"))).on_device())
    self.assertLen(traces, 2)

  def test_on_device_makes_jax_arrays_of_the_same_content(self):
    host = Dataset(**_arguments())
    device = host.on_device(jax.devices()[0])
    for leaf in jax.tree.leaves(device):
      self.assertIsInstance(leaf, jax.Array)
    self.assertEqual(device.images.dtype, jnp.uint8)
    self.assertEqual(host.fingerprint(), device.fingerprint())

  @parameterized.named_parameters(
    ("an_image", {"images": np.concatenate([_images(4), _images(1, 1)])}),
    ("a_name", {"class_names": ("a", "c")}),
    (
      "a_border",
      {"offsets": np.array([0, 2], np.int32), "counts": np.array([2, 3], np.int32)},
    ),
    ("the_rotations", {"num_rotations": 4}),
    ("the_shape", {"images": _images(5, shape=(2, 8, 1))}),
  )
  def test_fingerprint_depends_on(self, changes):
    first = Dataset(**_arguments()).fingerprint()
    self.assertNotEqual(first, Dataset(**_arguments(**changes)).fingerprint())

  def test_fingerprint_does_not_depend_on_the_split_name(self):
    first = Dataset(**_arguments()).fingerprint()
    self.assertEqual(first, Dataset(**_arguments(split="test")).fingerprint())
    self.assertLen(first, 16)

  @parameterized.named_parameters(
    ("float_images", {"images": np.zeros([5, 4, 4, 1])}, "images is float64"),
    ("rank_3", {"images": np.zeros([5, 4, 4], np.uint8)}, r"shape \(5, 4, 4\)"),
    ("int64_counts", {"counts": np.array([3, 2])}, "counts is int64"),
    ("missing_name", {"class_names": ("a",)}, r"expected int32 \[1\]"),
    ("same_names", {"class_names": ("a", "a")}, "has 'a' twice"),
    ("empty_class", {"counts": np.array([5, 0], np.int32)}, "class 'b' has counts=0"),
    ("gap", {"offsets": np.array([0, 2], np.int32)}, "cumsum"),
    ("left_over", {"images": _images(6)}, "counts sum to 5"),
    ("rotations", {"num_rotations": 5}, "num_rotations is 5"),
    (
      "oblong",
      {"images": _images(5, shape=(4, 3, 1)), "num_rotations": 2},
      "images are 4x3",
    ),
    (
      "nothing",
      {
        "images": _images(0),
        "offsets": np.zeros([0], np.int32),
        "counts": np.zeros([0], np.int32),
        "class_names": (),
      },
      "class_names is empty",
    ),
  )
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      Dataset(**_arguments(**changes))

  def test_refuses_rotations_of_oblong_images_on_replace(self):
    dataset = Dataset(**_arguments(images=_images(5, shape=(4, 3, 1))))
    with self.assertRaisesRegex(ValueError, "crop them to squares"):
      dataclasses.replace(dataset, num_rotations=4)

  @parameterized.named_parameters(
    ("no_class", {}, "arrays is empty"),
    ("empty", {"a": _images(1), "b": _images(0)}, r"arrays\['b'\] has no images"),
    ("float", {"a": np.zeros([1, 4, 4, 1])}, r"arrays\['a'\] is float64"),
    (
      "mixed_sizes",
      {"a": _images(1), "b": _images(1, shape=(5, 4, 1))},
      r"arrays\['b'\] has images of shape \(5, 4, 1\)",
    ),
  )
  def test_from_class_arrays_refuses(self, arrays, message):
    with self.assertRaisesRegex(ValueError, message):
      Dataset.from_class_arrays(arrays, split="train")


if __name__ == "__main__":
  absltest.main()
