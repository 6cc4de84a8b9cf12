"""Kinds of tasks: what the options of tasks describe."""

from absl.testing import absltest

from jsharp.data import sample_task
from jsharp.data.tasks import Tasks


class KindsTest(absltest.TestCase):
  def test_by_default_all_tasks_are_alike(self):
    tasks = Tasks(way=7, shot=2, query_shot=3)
    training, further = tasks.training(), list(tasks.variations())
    (kind,) = training
    self.assertEqual(kind.shape, {"way": 7, "shot": 2, "query_shot": 3})
    self.assertEqual(tasks.test().shape, kind.shape)
    self.assertEqual(further, [])
    self.assertEqual(tasks.largest_way, 7)
    self.assertEqual(kind.sampler().func, sample_task)  # nothing around it

  def test_validation_may_have_more_query_images(self):
    tasks = Tasks(way=7, shot=2, query_shot=3, eval_query_shot=1, val_query_shot=15)
    self.assertEqual(tasks.validation().shape, {"way": 7, "shot": 2, "query_shot": 15})
    self.assertEqual(tasks.test().shape["query_shot"], 1)
    self.assertEqual(Tasks(eval_query_shot=4).validation().shape["query_shot"], 4)

  def test_the_product_of_ways_and_shots(self):
    tasks = Tasks(train_way=(3, 20), train_shot=(1, 5), eval_way=(30,))
    training, further = tasks.training(), list(tasks.variations())
    shapes = [(kind.shape["way"], kind.shape["shot"]) for kind in training]
    self.assertEqual(shapes, [(3, 1), (3, 5), (20, 1), (20, 5)])
    self.assertEqual([kind.name for kind in further], [{"way": 30, "shot": 1}])
    self.assertEqual(tasks.largest_way, 30)
    self.assertIn("20-way 5-shot", tasks.protocol()["in training"])

  def test_test_labels_are_right_and_training_labels_are_not(self):
    tasks = Tasks(support_label_noise=0.4, query_label_noise=0.2)
    training, usual = tasks.training(), tasks.test()
    self.assertEqual(training[0].query_label_noise, 0.2)
    self.assertEqual((usual.support_label_noise, usual.query_label_noise), (0.4, 0.0))

  def test_a_range_that_distorts_nothing_is_none(self):
    neutral = Tasks(rotation=(0, 0), shear=(0, 0), scale=(1, 1))
    self.assertEqual(neutral, Tasks())
    self.assertEqual(Tasks(scale=(1, 1.5)).scale, (1.0, 1.5))
    self.assertEqual(Tasks(rotation=(1, 1)).rotation, (1.0, 1.0))

  def test_each_further_value_is_a_test_of_its_own(self):
    tasks = Tasks(
      eval_support_label_noise=(0, 0.2), eval_rotation=(30, 60), scale=(0.8, 1.2)
    )
    further = list(tasks.variations())
    names = [kind.name for kind in further]
    self.assertEqual(
      names,
      [
        {"support_label_noise": 0.0},
        {"support_label_noise": 0.2},
        {"rotation": 30.0},
        {"rotation": 60.0},
      ],
    )
    self.assertEqual(further[2].distortion["rotation"], (30.0, 30.0))
    self.assertEqual(further[2].distortion["scale"], (0.8, 1.2))


if __name__ == "__main__":
  absltest.main()
