"""Streamed batches: functions of (seed, step) that no worker and no start changes."""

import functools
import multiprocessing
import os
import time
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jsharp._files import FileError
from jsharp.data import _crops, _pieces, _pixels, augmentation, examples, streams
from jsharp.data.streams import Feed, Stream, StreamedImages
from jsharp.evaluation import evaluate_stream
from tests.data import photographs

_NUM = 11


def _encoded():
  draw = np.random.RandomState(3)
  return [(f"{i}.JPEG", photographs.jpeg(draw, i)) for i in range(_NUM)]


def _examples(images, rows=None, num_workers=0):
  rows = np.arange(_NUM) if rows is None else rows
  found = StreamedImages(images, rows, size=16, num_workers=num_workers)
  mean, scale = np.full(3, 100, np.float32), np.full(3, 0.02, np.float32)
  return examples.Examples(found, np.asarray(rows, np.int32) * 10, mean, scale)


def _taken(stream, first=0, number=None):
  with Feed(stream, first) as feed:
    last = first + number if number else stream.num_batches
    return [jax.device_get(feed.take()) for _ in range(first, last)]


class BatchesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.images = _encoded()

  def _stream(self, seed=5, **options):
    data = _examples(self.images, **options)
    return Stream(data, batch_size=4, num_batches=8, seed=seed)

  def test_every_epoch_has_an_order_of_its_own(self):
    batches = _taken(self._stream())
    epochs = [np.concatenate([b.chosen for b in batches[i : i + 2]]) for i in (0, 2, 4)]
    for epoch in epochs:
      self.assertLen(set(epoch.tolist()), 8)
    self.assertLen({tuple(epoch.tolist()) for epoch in epochs}, 3)
    for batch in batches:
      self.assertEqual(batch.data.labels.tolist(), (batch.chosen * 10).tolist())
      self.assertEqual(batch.data.images.dtype, np.uint8)
    other = _taken(self._stream(seed=6), number=2)
    self.assertNotEqual(
      other[0].chosen.tolist() + other[1].chosen.tolist(), epochs[0].tolist()
    )

  def test_an_example_has_another_rectangle_in_each_epoch(self):
    seen = {}
    for batch in _taken(self._stream()):
      for example, image in zip(batch.chosen, batch.data.images, strict=True):
        seen.setdefault(int(example), []).append(image.tobytes())
    for images in seen.values():
      self.assertLen(set(images), len(images))

  def test_it_begins_anywhere(self):
    whole = _taken(self._stream())
    rest = _taken(self._stream(), first=3)
    self.assertLen(rest, 5)
    for one, two in zip(whole[3:], rest, strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, two)

  def test_pixels_are_those_of_the_rectangle(self):
    step, batch = 5, _taken(self._stream(), first=5, number=1)[0]
    for example, image in zip(batch.chosen.tolist(), batch.data.images, strict=True):
      name, content = self.images[example]
      pixels = _pixels.decode(content, name=name, mode="RGB")
      draw = np.random.RandomState([5, step, example])
      box = _crops.random_box(draw, *pixels.shape[:2])
      np.testing.assert_array_equal(image, _crops.cropped(pixels, box, 16))

  def test_pieces_make_a_batch(self):
    with (
      mock.patch.object(_pieces, "PIECE", 3),
      mock.patch.object(streams, "PIECE", 3),
    ):
      small = _taken(self._stream())
    for one, two in zip(small, _taken(self._stream()), strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, two)

  def test_in_order_every_example_counts_once(self):
    data = _examples(self.images)
    stream = Stream(data, batch_size=4)
    batches = _taken(stream)
    self.assertEqual([len(b.chosen) for b in batches], [4, 4, 4])
    self.assertEqual(batches[2].chosen.tolist(), [8, 9, 10, 10])
    middle = np.concatenate([b.data.images for b in batches])[:_NUM]
    np.testing.assert_array_equal(middle, np.asarray(data.images))
    metrics = evaluate_stream(
      lambda w, drawn: {"label": w * drawn.data.labels}, 2, stream
    )
    self.assertEqual(metrics["label"].tolist(), [20 * i for i in range(_NUM)])

  def test_a_part_of_the_images(self):
    rows = np.array([7, 2, 9, 4])
    batch = _taken(Stream(_examples(self.images, rows), batch_size=4))[0]
    whole = np.asarray(_examples(self.images).images)
    np.testing.assert_array_equal(batch.data.images, whole[rows])
    self.assertEqual(batch.data.labels.tolist(), [70, 20, 90, 40])

  def test_the_device_does_the_rest(self):
    drawn = _taken(self._stream(), number=1)[0]
    drawn = drawn._replace(chosen=np.arange(4) + 3)  # Some of these are mirrored.
    augment = functools.partial(augmentation.standard, padding=0)
    batch = streams.sample_batch(5, 0, drawn, augment=augment)
    plain = (drawn.data.images.astype(np.float32) - 100) * np.float32(0.02)
    flipped = 0
    for found, wanted in zip(np.asarray(batch.inputs), plain, strict=True):
      is_flipped = not np.allclose(found, wanted, atol=1e-6)
      flipped += is_flipped
      if is_flipped:
        np.testing.assert_allclose(found, wanted[:, ::-1], atol=1e-6)
    self.assertBetween(flipped, 1, 3)

  def test_fewer_images_than_a_batch(self):
    with self.assertRaisesRegex(ValueError, "batch_size is 12, but there are 11"):
      Stream(_examples(self.images), batch_size=12, num_batches=1)

  def test_a_damaged_image_is_named(self):
    self.images[6] = ("six.JPEG", self.images[6][1][:200])
    with (
      Feed(Stream(_examples(self.images), batch_size=4)) as feed,
      self.assertRaisesRegex(FileError, "six.JPEG cannot be decoded"),
    ):
      for _ in range(3):
        feed.take()
    self.assertEqual(feed.step, 1)

  def test_whoever_waits_can_be_stopped(self):
    class Slow:
      def __len__(self):
        return 1

      def __getitem__(self, index):
        time.sleep(0.5)
        raise ValueError("slow")

    data = _examples(Slow(), rows=np.zeros(1, np.int32))
    asked = iter([False, False, True])
    with Feed(Stream(data, batch_size=1)) as feed:
      self.assertIsNone(feed.take(lambda: next(asked)))


class WorkersTest(absltest.TestCase):
  def test_workers_make_the_same_batches_and_the_death_of_one_is_told(self):
    images = _encoded()
    plain = Stream(_examples(images), batch_size=4, num_batches=3, seed=5)
    wanted = _taken(plain, number=2)
    last = np.setdiff1d(plain._pieces.chosen(2), plain._pieces.chosen(0))
    last = np.setdiff1d(last, plain._pieces.chosen(1))
    self.assertNotEmpty(last)
    watched = photographs.InWorkers(images, fatal=int(last[0]))
    data = _examples(watched, num_workers=2)
    stream = Stream(data, batch_size=4, num_batches=3, seed=5)
    elsewhere = mock.patch.dict(os.environ, JAX_PLATFORMS="cuda,cpu")
    with elsewhere, Feed(stream) as feed:
      for batch in wanted:
        jax.tree.map(np.testing.assert_array_equal, batch, jax.device_get(feed.take()))
      with self.assertRaisesRegex(ChildProcessError, "failed .*exit code -9"):
        feed.take()
    self.assertEmpty(multiprocessing.active_children())


if __name__ == "__main__":
  absltest.main()
