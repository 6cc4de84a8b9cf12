"""Tests of jsharp.data.tieredimagenet: all layouts give the same data, or an error."""

import contextlib
import io
import pickle

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import splits, tieredimagenet
from tests.data import fixtures

SIZE = 8
EXPECTED = splits.Composition(
  classes={
    "train": ("n00000001", "n00000002", "n00000003"),
    "val": ("n00000004", "n00000005"),
    "test": ("n00000006", "n00000007"),
  },
  images_per_class={},
  image_size=SIZE,
)
COUNTS = {
  name: 2 + number % 3 for number, name in enumerate(sum(EXPECTED.classes.values(), ()))
}
NUM_IMAGES = {
  split: sum(COUNTS[name] for name in names)
  for split, names in EXPECTED.classes.items()
}
FOLDERS = "{split}/{name}/{number}.png"


def images_of(name):
  """Photographs have more red than blue."""
  images = fixtures.images(int(name[1:]), COUNTS[name])
  images[..., 0] |= 0x80
  images[..., 2] &= 0x7F
  return images


def image_files(path=FOLDERS):
  return {
    path.format(split=split, name=name, number=number): fixtures.png(image)
    for split, names in EXPECTED.classes.items()
    for name in names
    for number, image in enumerate(images_of(name))
  }


def cached(split, *, first=0):
  """Images and labels of a split, of which no two of a class lie side by side."""
  names = EXPECTED.classes[split]
  entries = [
    (number, first + label, image)
    for label, name in enumerate(names)
    for number, image in enumerate(images_of(name))
  ]
  entries.sort(key=lambda entry: entry[:2])
  return [image for _, _, image in entries], [label for _, label, _ in entries]


def labels_of(split, labels):
  """As the authors of the dataset keep them."""
  return {
    "label_specific": np.array(labels, np.int32),
    "label_general": np.zeros(len(labels), np.int32),
    "label_specific_str": ["crane" for _ in EXPECTED.classes[split]],
    "label_general_str": ["bird"],
  }


def png_caches(dump=pickle.dumps, prefix=""):
  files = {}
  for split in EXPECTED.classes:
    images, labels = cached(split)
    encoded = [np.frombuffer(fixtures.png(image), np.uint8) for image in images]
    files[f"{prefix}{split}_images_png.pkl"] = dump([e[:, None] for e in encoded])
    files[f"{prefix}{split}_labels.pkl"] = dump(labels_of(split, labels))
  return files


def npz(images):
  buffer = io.BytesIO()
  np.savez(buffer, images=np.array(images))
  return buffer.getvalue()


def npz_caches(*, is_bgr=True):
  files = {}
  for number, split in enumerate(EXPECTED.classes):
    images, labels = cached(split, first=100 * number)
    turned = [image[..., ::-1] if is_bgr else image for image in images]
    files[f"{split}_images.npz"] = npz(turned)
    files[f"{split}_labels.pkl"] = pickle.dumps({"labels": labels})
  return files


class TieredImageNetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)
    self.cache = fixtures.temporary_dir(self)
    self.stderr = io.StringIO()

  def load(self, **options):
    with contextlib.redirect_stderr(self.stderr):
      return tieredimagenet.load(
        self.root,
        prepared_dir=self.cache,
        expected=EXPECTED,
        num_images=NUM_IMAGES,
        **options,
      )

  def check(self, datasets, wanted=splits.NAMES):
    self.assertEqual(tuple(datasets), tuple(wanted))
    for split, dataset in datasets.items():
      names = EXPECTED.classes[split]
      self.assertEqual(dataset.split, split)
      self.assertEqual(dataset.counts.tolist(), [COUNTS[name] for name in names])
      images = np.concatenate([images_of(name) for name in names])
      np.testing.assert_array_equal(dataset.images, images)

  def refuses(self, message, error=ValueError, **options):
    with self.assertRaisesRegex(error, message):
      self.load(**options)
    self.assertEmpty([path for path in self.cache.rglob("*") if path.is_file()])

  @parameterized.named_parameters(
    ("png", lambda: png_caches()),
    ("png_of_learn2learn", lambda: png_caches(prefix="tiered-imagenet-")),
    ("png_of_python_2", lambda: png_caches(fixtures.python2_pickle)),
    *(
      (f"png_{n}", lambda n=n: png_caches(lambda x: pickle.dumps(x, n)))
      for n in range(6)
    ),
    ("npz", lambda: npz_caches()),
    ("npz_of_rgb", lambda: npz_caches(is_bgr=False)),
    ("split_folders", lambda: image_files()),
    ("class_folders", lambda: image_files("images/{name}/{number}.png")),
  )
  def test_every_layout_gives_the_same(self, files):
    fixtures.write_files(self.root, files())
    self.check(self.load())
    self.check(self.load(only="val"), ["val"])
    self.assertEqual(self.stderr.getvalue().count("Preparing"), 3)

  @parameterized.parameters(False, True)
  def test_other_classes_of_imagenet_are_left_out(self, packed):
    files = image_files("{name}/{number}.png") | {"n00000099/0.png": b"not read"}
    if packed:
      fixtures.write_archive(self.root / "imagenet.tar", files)
    else:
      fixtures.write_files(self.root, files)
    self.check(self.load())
    fixtures.write_files(self.root, {"birds/0.png": b"not read"})
    if not packed:
      with self.assertRaisesRegex(ValueError, "birds/0.png .* not in a class folder"):
        self.load()

  def test_archives_are_read(self):
    fixtures.write_archive(self.root / "tiered.tar", image_files())
    self.check(self.load())

  def test_of_one_split_alone_the_others_may_be_missing(self):
    files = {name: data for name, data in png_caches().items() if "test" in name}
    files["val_images_png.pkl"] = b"without labels"
    fixtures.write_files(self.root, files)
    self.check(self.load(only="test"), ["test"])
    (self.root / "val_images_png.pkl").unlink()
    with self.assertRaisesRegex(FileNotFoundError, "the images of train are missing"):
      self.load()

  def test_classes_are_called_by_what_is_known_of_them(self):
    fixtures.write_files(self.root, png_caches())
    names = self.load(only="val")["val"].class_names
    self.assertEqual(names, ("label0 crane", "label1 crane"))
    fixtures.write_files(self.root, npz_caches())
    for path in self.root.glob("*_png.pkl"):
      path.unlink()
    self.assertEqual(self.load(only="val")["val"].class_names, ("label100", "label101"))
    self.root = fixtures.temporary_dir(self)
    fixtures.write_files(self.root, image_files())
    names = self.load(only="val")["val"].class_names
    self.assertEqual(names, EXPECTED.classes["val"])

  def test_an_npz_of_blue_before_red_is_turned_with_a_word(self):
    fixtures.write_files(self.root, npz_caches())
    self.load(only="val")
    self.assertRegex(self.stderr.getvalue(), "val_images.npz is in BGR order")

  def test_an_empty_directory_says_what_to_do(self):
    self.refuses(
      "does not contain tieredImageNet. Put .*image-net.org", FileNotFoundError
    )
    self.refuses("only='x' must be one of train, val, test", only="x")
    with self.assertRaisesRegex(ValueError, "train_images_png.pkl"):
      tieredimagenet.TieredImageNet().load(None)

  def test_missing_labels_are_named(self):
    fixtures.write_files(self.root, png_caches())
    (self.root / "val_labels.pkl").unlink()
    self.refuses("val_labels.pkl is missing", FileNotFoundError)

  def _replace(self, name, content):
    fixtures.write_files(self.root, {**png_caches(), name: content})

  def _labels(self, **changes):
    images, labels = cached("train")
    self._replace(
      "train_labels.pkl", pickle.dumps({**labels_of("train", labels), **changes})
    )
    return images, labels

  @parameterized.named_parameters(
    ("classes", [0] * 9, "train has 1 classes, tieredImageNet has 3"),
    ("more_classes", list(range(9)), "train has 9 classes, tieredImageNet has 3"),
    (
      "images",
      [0, 1, 2, 0, 1, 2, 0, 1],
      "train has 8 images, tieredImageNet has 9; the smallest class is label2 crane "
      "with 2",
    ),
    ("floats", [0.5] * 9, "label_specific must be a list of whole numbers"),
  )
  def test_wrong_labels_are_refused(self, labels, message):
    self._labels(label_specific=labels)
    self.refuses(message)

  @parameterized.named_parameters(
    ("none", {"a": 1, "b": 2}, "has neither label_specific nor labels, but a, b"),
    ("list", [1, 2], "train_labels.pkl holds a list, not a dict"),
  )
  def test_labels_of_another_form_are_refused(self, content, message):
    self._replace("train_labels.pkl", pickle.dumps(content))
    self.refuses(message)

  def test_a_list_of_more_or_fewer_images_than_labels_is_refused(self):
    images, _ = cached("train")
    encoded = [fixtures.png(image) for image in images]
    self._replace("train_images_png.pkl", pickle.dumps(encoded[:-1]))
    self.refuses("has 8 images, but train_labels.pkl 9 labels")
    self._replace("train_images_png.pkl", pickle.dumps([*encoded, encoded[0] + b" "]))
    self.refuses("has more than 9 images, but train_labels.pkl 9 labels")

  def test_damaged_pngs_are_refused(self):
    whole = png_caches()["train_images_png.pkl"]
    for content, message in (
      (whole[:-50], "train_images_png.pkl is truncated or not a pickle"),
      (pickle.dumps({"a": 1}), "train_images_png.pkl is truncated or not .*no list"),
      (b"cos\nsystem\n(S'true'\ntR.", "is refused: .*os.system"),
      (fixtures.HTML, "is an HTML page"),
      (pickle.dumps([b"no image"] * 9), "image 0 cannot be decoded"),
      (pickle.dumps(list(range(9))), "image 0 is a int, not an encoded image"),
      (
        pickle.dumps(
          [fixtures.png(fixtures.images(n, 1, size=9)[0]) for n in range(9)]
        ),
        "image 0 is 9x9 pixels, not 8x8",
      ),
    ):
      self._replace("train_images_png.pkl", content)
      self.refuses(message)

  def test_damaged_npzs_are_refused(self):
    files = npz_caches()
    whole = files["train_images.npz"]
    images, _ = cached("train")
    wrong = io.BytesIO()
    np.savez(wrong, pictures=np.array(images))
    for content, message in (
      (whole[:-200], "train_images.npz is truncated or damaged"),
      (whole.replace(b"NUMPY", b"OTHER"), "has no array|truncated or damaged"),
      (b"hello", "train_images.npz is truncated or damaged"),
      (fixtures.HTML, "train_images.npz is an HTML page"),
      (wrong.getvalue(), "has no array images"),
      (npz(images[:-1]), "has 8 images for 9 labels"),
      (npz(fixtures.images(0, 9, size=9)), r"shape \[9, 9, 9, 3\], not"),
      (npz(np.zeros((9, 8, 8, 3))), "the images are float64, not uint8"),
      (npz(np.array([None, 1])), "the images are object, not uint8"),
    ):
      fixtures.write_files(self.root, {**files, "train_images.npz": content})
      self.refuses(message)

  def test_folders_of_other_classes_are_refused(self):
    files = {k.replace("n00000002", "n00000009"): v for k, v in image_files().items()}
    fixtures.write_files(self.root, files)
    self.refuses("missing: n00000002; not of this split: n00000009")

  def test_folders_of_too_few_images_are_refused(self):
    files = image_files()
    del files["val/n00000004/0.png"]
    fixtures.write_files(self.root, files)
    self.refuses(
      "val has 4 images, tieredImageNet has 5; the smallest .* n00000004 with 1",
      only="val",
    )

  def test_a_changed_split_alone_is_prepared_anew(self):
    fixtures.write_files(self.root, image_files())
    self.load()
    path = self.root / "val/n00000004/0.png"
    path.write_bytes(path.read_bytes() + b" ")
    self.check(self.load())
    self.assertEqual(self.stderr.getvalue().count("Preparing"), 4)

  def test_the_published_numbers(self):
    classes = splits.TIERED_IMAGENET.classes
    self.assertEqual([len(names) for names in classes.values()], [351, 97, 160])
    self.assertLen(set(sum(classes.values(), ())), 608)
    self.assertEqual(sum(splits.TIERED_IMAGENET_IMAGES.values()), 779_165)


if __name__ == "__main__":
  absltest.main()
