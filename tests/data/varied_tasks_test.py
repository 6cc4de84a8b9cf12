"""Tasks of varying way, unbalanced, from several domains: laws over many draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import Dataset, characters
from jsharp.data.domains import Domains
from jsharp.data.tasks import Tasks
from jsharp.data.varied_tasks import check_varied_shape, sample_varied_task

SHAPE = {"way": 4, "min_way": 2, "num_support": 12, "num_query": 8}
NUM_TASKS = 2000


def domain(first, sizes):
  """Images whose two pixels are the number of their class and of the image."""
  return Dataset.from_class_arrays(
    {
      str(first + i): np.stack(
        [np.array([first + i, j], np.uint8).reshape(1, 2, 1) for j in range(size)]
      )
      for i, size in enumerate(sizes)
    },
    split="test",
  )


@functools.cache
def dataset():
  return Dataset.joined(
    {
      "small": domain(0, [11, 12, 13, 14]),
      "large": domain(10, [40, 20, 20, 20, 20, 20, 30]),
    },
    split="test",
  ).on_device()


@functools.cache
def drawn():
  """Labels, classes and numbers of the images of many tasks."""
  images = dataset()

  @jax.jit
  def draw(numbers):
    def one(number):
      key = jax.random.fold_in(jax.random.key(0), number)
      return sample_varied_task(key, images, **SHAPE)

    return jax.vmap(one)(numbers)

  tasks = draw(jnp.arange(NUM_TASKS))
  return [
    (
      np.asarray(batch.targets),
      np.round(np.asarray(batch.inputs)[:, :, 0, :, 0] * 255).astype(int),
    )
    for batch in tasks
  ]


class VariedTasksTest(parameterized.TestCase):
  def test_a_task_is_of_one_domain_and_its_images_are_distinct(self):
    (support_labels, support), (query_labels, query) = drawn()
    in_large = np.concatenate([support, query], axis=1)[..., 0] >= 10
    self.assertTrue((in_large.all(axis=1) | ~in_large.any(axis=1)).all())
    # Each domain equally likely, whatever its size: 1000 +- 22.
    self.assertBetween(int(in_large[:, 0].sum()), 910, 1090)
    for labels, images, others, other_images in zip(
      support_labels[:300], support[:300], query_labels, query, strict=False
    ):
      together = [tuple(image) for image in (*images, *other_images)]
      self.assertLen(set(together), 20)
      pairs = {*zip(labels, images[:, 0], strict=True)}
      pairs |= {*zip(others, other_images[:, 0], strict=True)}
      # A class has one label, and a label one class.
      self.assertEqual(len(pairs), len({label for label, _ in pairs}))
      self.assertEqual(len(pairs), len({name for _, name in pairs}))

  def test_ways_are_equally_likely_and_labels_begin_at_zero(self):
    (support_labels, _), (query_labels, _) = drawn()
    ways = support_labels.max(axis=1) + 1
    np.testing.assert_array_equal(ways, query_labels.max(axis=1) + 1)
    counts = np.bincount(ways, minlength=5)
    self.assertEqual(counts[:2].tolist(), [0, 0])
    for count in counts[2:]:  # 667 +- 21.
      self.assertBetween(int(count), 580, 755)
    for labels, way in zip(support_labels, ways, strict=True):
      self.assertEqual(set(labels), set(range(way)))
    for labels, way in zip(query_labels, ways, strict=True):
      sizes = np.bincount(labels, minlength=way)
      self.assertLessEqual(sizes.max() - sizes.min(), 1)

  def test_supports_are_unbalanced_and_follow_the_size_of_a_class(self):
    (labels, images), _ = drawn()
    large = images[:, 0, 0] >= 10
    sizes = np.stack([np.bincount(row, minlength=4) for row in labels])
    self.assertGreater(float((sizes.max(1) - sizes.min(1)).mean()), 2)
    # Class 10 has twice the images of classes 11 to 15, and class 16 has 1.5 times.
    shares = {
      number: (images[large][..., 0] == number).sum(1) for number in range(10, 17)
    }
    means = {n: float(counts[counts > 0].mean()) for n, counts in shares.items()}
    usual = np.mean([means[n] for n in range(11, 16)])
    self.assertGreater(means[10], means[16])
    self.assertGreater(means[16], usual)
    self.assertBetween(means[10] / usual, 1.3, 2.0)

  def test_one_domain_alone_and_the_share_of_its_small_classes(self):
    # All eight classes of the second domain: four of 60 images, and four of 20 of which
    # a support set can take 18. Besides one of each the large ones have 3/4.
    images = Dataset.joined(
      {"other": domain(0, [30] * 8), "one": domain(100, [60, 20] * 4)}, split="test"
    ).on_device()
    sample = functools.partial(
      sample_varied_task, way=8, min_way=8, num_support=80, num_query=16, domain=1
    )
    tasks = jax.jit(jax.vmap(lambda key: sample(key, images)))(
      jax.random.split(jax.random.key(0), 300)
    )
    names = np.round(np.asarray(tasks.support.inputs)[:, :, 0, 0, 0] * 255)
    self.assertTrue((names >= 100).all())
    self.assertBetween(float((names % 2 == 0).sum(1).mean()), 55, 61)

  @parameterized.parameters(
    ({"way": 5}, "the smallest domain, small, has 4 classes .* use way <= 4"),
    ({"num_support": 30}, "class 'small/0' .* has 11 images: lower shot"),
    ({"min_way": 5}, "min_way is 5; it must lie between 2 and way=4"),
    ({"num_query": 3}, "num_query is 3; give way=4 or more"),
  )
  def test_refuses(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      check_varied_shape(dataset(), **{**SHAPE, **change})

  def test_flags(self):
    tasks = Tasks(way=4, min_way=2, shot=3, query_shot=2)
    self.assertEqual(tasks.test().varied, SHAPE)
    domains = list(tasks.by_domain(dataset()))
    self.assertEqual(
      [kind.name for kind in domains], [{"domain": "small"}, {"domain": "large"}]
    )
    self.assertEqual([kind.domain for kind in domains], [0, 1])
    with self.assertRaisesRegex(ValueError, "min_way=6 is above --way=5"):
      Tasks(way=5, min_way=6)
    with self.assertRaisesRegex(ValueError, "leave --eval_way out"):
      Tasks(way=5, min_way=2, eval_way=(5,))


class DomainsTest(absltest.TestCase):
  def test_datasets_become_one_in_one_shape(self):
    loaded = Domains(domains=("characters",), image_size=10, gray=True).load(None)
    alone = characters.load(size=28)
    for split, joined in loaded.items():
      self.assertEqual(joined.image_shape, (10, 10, 1))
      number, names = alone[split].num_base_classes, alone[split].class_names
      self.assertEqual(joined.domains, (("characters", number),))
      self.assertEqual(joined.num_rotations, 1)
      self.assertEqual(joined.class_names[0], f"characters/{names[0]}")
    images = np.zeros((2, 4, 4, 1), np.uint8)
    plain = Dataset.from_class_arrays(dict.fromkeys("ab", images), split="test")
    both = Dataset.joined({"x": plain, "y": plain}, split="test")
    halves = Dataset.joined({"x": both}, split="test")
    self.assertNotEqual(both.fingerprint(), halves.fingerprint())

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "names 1 directories for 2 --domains"):
      Domains(domain_dirs=("/data",))
    with self.assertRaisesRegex(ValueError, "--domains, omniglot: .*needs files"):
      Domains(domains=("omniglot",)).load(None)
    with self.assertRaisesRegex(ValueError, "small, large need --min_way.*min_way=4"):
      Tasks(way=4).test().check(dataset())
    with self.assertRaisesRegex(ValueError, "must be names, each once"):
      Domains(domains=("omniglot", "omniglot"))


if __name__ == "__main__":
  absltest.main()
