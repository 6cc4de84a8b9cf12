"""Tests of the balanced part of a training set."""

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data.subset import balanced_subset

NAMES = ("ant", "bee", "cat")
LABELS = np.repeat(np.arange(3), 20)
UNEVEN = np.repeat(np.arange(3), (9, 4, 6))


def choose(num_examples, labels=LABELS, seed=0):
  return balanced_subset(labels, num_examples, NAMES, seed=seed)


class BalancedSubsetTest(parameterized.TestCase):
  @parameterized.product(labels=(LABELS, UNEVEN), num_examples=(3, 4, 5, 12, 13, 14))
  def test_counts_differ_by_at_most_one(self, labels, num_examples):
    chosen = choose(num_examples, labels)
    self.assertLen(set(chosen.tolist()), num_examples)
    np.testing.assert_array_equal(chosen, np.sort(chosen))
    counts = np.bincount(labels[chosen], minlength=3)
    self.assertLessEqual(counts.max() - counts.min(), 1)

  def test_is_decided_by_the_seed(self):
    np.testing.assert_array_equal(choose(7), choose(7))
    self.assertFalse(np.array_equal(choose(7), choose(7, seed=1)))
    # Written down: the same images on every machine and with every version.
    np.testing.assert_array_equal(choose(7), [2, 11, 30, 32, 45, 48, 51])

  def test_a_smaller_choice_is_a_part_of_a_larger_one(self):
    for labels, most in ((LABELS, 60), (UNEVEN, 14)):
      for num_examples in range(3, most):
        larger = choose(num_examples + 1, labels)
        self.assertContainsSubset(choose(num_examples, labels), larger)

  def test_every_example_and_every_class_has_its_turn(self):
    chosen = np.array([choose(4, seed=seed) for seed in range(600)])
    # The expected 40 per example has a standard deviation of 6.
    np.testing.assert_allclose(np.bincount(chosen.ravel()), 40, atol=30)
    twice = [np.bincount(LABELS[row]).argmax() for row in chosen]
    np.testing.assert_allclose(np.bincount(twice), 200, atol=60)

  def test_the_order_of_the_labels_does_not_matter_for_the_balance(self):
    mixed = np.random.default_rng(0).permutation(LABELS)
    np.testing.assert_array_equal(np.bincount(mixed[choose(30, mixed)]), 10)

  @parameterized.parameters(
    (LABELS, 2, "num_examples is 2, but there are 3 classes; .* one example of each"),
    (LABELS, 0, "num_examples is 0, but there are 3 classes"),
    (LABELS, 61, "is 61, but there are 60 examples, 20 of the class ant; .* most 60,"),
    (UNEVEN, 15, "is 15, but there are 19 examples, 4 of the class bee; .* most 14,"),
    (UNEVEN[:13], 3, "there are 13 examples, 0 of the class cat"),
  )
  def test_refusals(self, labels, num_examples, message):
    with self.assertRaisesRegex(ValueError, message):
      choose(num_examples, labels)


if __name__ == "__main__":
  absltest.main()
