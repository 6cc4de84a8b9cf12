"""Tests of jsharp.data._pickles: arrays come in, code does not run."""

import os
import pickle
import tracemalloc
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import _pickle_language, _pickle_machine, _pickles
from tests.data import fixtures


class _Runs:
  """Pickled, it becomes a call of `function` with `arguments`."""

  def __init__(self, function, *arguments, state=None):
    self.call = (function, arguments) if state is None else (function, arguments, state)

  def __reduce__(self):
    return self.call


def _numpy_1(data: bytes) -> bytes:
  """The same pickle as numpy 1 writes it (protocols without length prefixes)."""
  return data.replace(b"numpy._core.", b"numpy.core.")


class PicklesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = fixtures.temporary_dir(self)

  def _write(self, data, name="mini-imagenet-cache-train.pkl"):
    path = self.root / name
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data))
    return path

  def _check(self, content, data):
    loaded = _pickles.load(self._write(data))
    self.assertEqual(loaded.keys(), content.keys())
    for name, value in content.items():
      np.testing.assert_array_equal(loaded[name], value)
      if isinstance(value, (np.ndarray, np.generic)):
        # Most protocols bring arrays to the machine's byte order.
        self.assertEqual(*(a.dtype.newbyteorder("=") for a in (loaded[name], value)))

  @parameterized.parameters(*range(6), None)
  def test_a_list_is_streamed(self, protocol):
    items = [np.arange(n % 100, dtype=np.uint8)[:, None] for n in range(2100)]
    items += ["a", "a", b"long" * 100, 3, None, (1, "b"), [2]]
    if protocol is None:
      data = fixtures.python2_pickle(items)
      items[-5] = items[-5].decode()  # Python 2 has one kind of both.
    else:
      data = pickle.dumps(items, protocol)
    loaded = list(_pickles.stream(self._write(data)))
    self.assertLen(loaded, len(items))
    for found, item in zip(loaded, items, strict=True):
      np.testing.assert_array_equal(found, item)

  def test_of_a_stream_a_thousand_items_are_held(self):
    items = [np.full(10_000, n % 256, np.uint8) for n in range(5000)]
    path = self._write(pickle.dumps(items, 2))
    del items
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    self.assertEqual(sum(1 for _ in _pickles.stream(path)), 5000)
    self.assertLess(tracemalloc.get_traced_memory()[1], 30_000_000)

  def test_a_stream_has_no_limit_of_items_and_limits_for_each(self):
    with mock.patch.object(_pickle_machine, "MAX_CONTAINERS", 10_000):
      items = [(n, n + 1) for n in range(20_000)]
      self.assertLen(list(_pickles.stream(self._write(items))), 20_000)
      path = self._write([[(n, n + 1) for n in range(20_000)]])
      with self.assertRaisesRegex(ValueError, "has more than 10000 containers"):
        list(_pickles.stream(path))
    with (
      mock.patch.object(_pickle_language, "MAX_INSTRUCTIONS", 100),
      self.assertRaisesRegex(ValueError, "more than 100 instructions for one"),
    ):
      list(_pickles.stream(self._write([tuple(range(200))])))
    with mock.patch.object(_pickle_machine, "MAX_MEMO", 10):
      path = self._write(pickle.dumps([str(n) for n in range(100)], 2))
      with self.assertRaisesRegex(ValueError, "numbers more than 10 objects"):
        list(_pickles.stream(path))

  @parameterized.named_parameters(
    ("dict", pickle.dumps({"a": 1}), "no list"),
    ("number", pickle.dumps(3), "no list"),
    ("twice", pickle.dumps([np.zeros(99, np.uint8)] * 2), "that is used twice"),
    ("cut", pickle.dumps([b"x" * 99] * 2)[:-9], "truncated or not a pickle"),
    ("program", pickle.dumps([1, os.system]), "is refused"),
    ("itself", b"]\x94h\0a.", "that is used twice"),
    ("html", fixtures.HTML, "is an HTML page"),
  )
  def test_a_stream_refuses(self, data, message):
    with self.assertRaisesRegex(ValueError, message):
      list(_pickles.stream(self._write(data)))

  def test_a_larger_scale_allows_more_objects(self):
    with mock.patch.object(_pickle_machine, "MAX_CONTAINERS", 10):
      path = self._write([[n] for n in range(15)])
      with self.assertRaisesRegex(ValueError, "has more than 10 containers"):
        _pickles.load(path)
      self.assertLen(_pickles.load(path, scale=2), 15)

  @parameterized.parameters(
    *((protocol, False) for protocol in range(6)),
    *((protocol, True) for protocol in range(4)),
  )
  def test_every_protocol(self, protocol, numpy_1):
    content = {
      "image_data": fixtures.images(0),
      "fortran": np.asfortranarray(fixtures.images(1)[..., 0]),
      "swapped": np.arange(3, dtype=">i4"),
      "scalar": np.int64(7),
      "float": np.float32(0.5),
      "text": np.array(["a", "bc"]),
      "names": ["n01", "n02"],
    }
    data = pickle.dumps(content, protocol)
    self._check(content, _numpy_1(data) if numpy_1 else data)
    self.assertEqual(np.dtype("i4").byteorder, "=")

  def test_python_2(self):
    content = {"image_data": fixtures.images(0), "names": ["n01", "n02"]}
    data = fixtures.python2_pickle(content)
    self.assertIn(b"numpy.core.multiarray", data)
    self._check(content, data)

  @parameterized.parameters(*range(6))
  def test_code_is_not_executed(self, protocol):
    marker = self.root / "executed"
    data = pickle.dumps({"image_data": _Runs(os.mkdir, str(marker))}, protocol)
    path = self._write(data)
    with self.assertRaisesRegex(ValueError, r"asks for (posix|nt)\.mkdir"):
      _pickles.load(path)
    self.assertFalse(marker.exists())
    pickle.loads(data)
    self.assertTrue(marker.exists(), "the pickle of this test does nothing")

  @parameterized.parameters(
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("os", "system"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("numpy", "ndarray.tofile"),
    ("numpy._core.multiarray", "frombuffer"),
    ("_codecs", "decode"),
    ("jsharp.data._pickles", "load"),
  )
  def test_other_names_are_refused(self, module, name):
    text = b"".join(
      pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode()
      for word in (module, name)
    )
    path = self._write(b"\x80\x04" + text + pickle.STACK_GLOBAL + b".")
    with self.assertRaisesRegex(ValueError, f"asks for {module}.{name}, "):
      _pickles.load(path)

  @parameterized.named_parameters(
    ("ndarray", np.ndarray, (2,)),
    ("object_dtype", np.dtype, "O"),
    ("record_dtype", np.dtype, "i4,O"),
  )
  def test_allowed_names_are_not_enough(self, function, argument):
    path = self._write(pickle.dumps(_Runs(function, argument)))
    with self.assertRaisesRegex(ValueError, "not a pickle of arrays"):
      _pickles.load(path)

  def test_arrays_of_objects_are_refused(self):
    with self.assertRaisesRegex(ValueError, "dtype 'O8' are refused"):
      _pickles.load(self._write({"image_data": np.array([None, {}])}))

  def test_a_pickle_sets_no_attributes(self):
    # BUILD with a pair (None, dict) sets attributes on the object below it.
    state = pickle.dumps((None, {"__defaults__": ("O",)}), 2)[2:-1]
    path = self._write(b"\x80\x02cnumpy\ndtype\n" + state + b"b.")
    with self.assertRaisesRegex(ValueError, "train.pkl is truncated or not a pickle"):
      _pickles.load(path)

  def test_a_dtype_sets_no_state(self):
    # With numpy's own setter an alignment of zero divides by it: SIGFPE.
    dtype = np.dtype("S1")
    state = (3, "|", None, ("a",), {"a": (dtype, 10**9)}, 1, 0, 0)
    path = self._write(pickle.dumps(_Runs(np.dtype, "S1", False, True, state=state)))
    with self.assertRaisesRegex(ValueError, "dtypes of another size, alignment or"):
      _pickles.load(path)

  def test_ten_bytes_take_no_gigabytes(self):
    # LONG_BINPUT of a large number makes `pickle` allocate so long a memo.
    path = self._write(b"\x80\x02K\x01r\xff\xff\xff\x3f.")
    with self.assertRaisesRegex(ValueError, "train.pkl is refused: .* numbers an obj"):
      _pickles.load(path)

  def test_a_truncated_pickle_is_named(self):
    data = pickle.dumps({"image_data": fixtures.images(0)})
    for length in (1, 10, len(data) // 2, len(data) - 1):
      with self.assertRaisesRegex(ValueError, "train.pkl is truncated or not a pickle"):
        _pickles.load(self._write(data[:length]))

  def test_an_html_page_is_called_so(self):
    with self.assertRaisesRegex(ValueError, "train.pkl is an HTML page.*Google Drive"):
      _pickles.load(self._write(fixtures.HTML))


class ClassArraysTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = fixtures.temporary_dir(self) / "cache.pkl"

  def _read(self, content, size=fixtures.SIZE):
    self.path.write_bytes(pickle.dumps(content))
    return _pickles.class_arrays(self.path, size)

  def test_indices_of_a_class_need_not_be_neighbours(self):
    images = fixtures.images(0, 4)
    arrays = self._read(
      {"image_data": images, "class_dict": {"a": [3, 0], "b": [1, 2]}}
    )
    np.testing.assert_array_equal(arrays["a"], images[[3, 0]])
    np.testing.assert_array_equal(arrays["b"], images[[1, 2]])

  @parameterized.parameters(list, np.array)
  def test_labels_need_no_names(self, kind):
    images = fixtures.images(0, 4)
    arrays = self._read({"data": images, "labels": kind([7, 5, 7, 5])})
    self.assertCountEqual(arrays, ["label5", "label7"])
    np.testing.assert_array_equal(arrays["label5"], images[[1, 3]])

  @parameterized.named_parameters(
    ("list", [1, 2], "holds a list, not a dict"),
    ("keys", {"images": 1}, "has the keys \\['images'\\]"),
    (
      "size",
      {"image_data": fixtures.images(0, size=9), "class_dict": {}},
      r"shape \[3, 9, 9, 3\], not uint8 of shape \[num_images, 8, 8, 3\]",
    ),
    (
      "dtype",
      {"image_data": np.zeros((3, 8, 8, 3), np.float32), "class_dict": {}},
      "images are float32",
    ),
    (
      "outside",
      {"image_data": fixtures.images(0), "class_dict": {"a": [0, 3]}},
      "class a names images beyond 3",
    ),
    (
      "negative",
      {"image_data": fixtures.images(0), "class_dict": {"a": [-1]}},
      "class a names images beyond 3",
    ),
    (
      "twice",
      {"image_data": fixtures.images(0), "class_dict": {"a": [0, 1], "b": [1]}},
      "class b names an image of another class",
    ),
    ("labels", {"data": fixtures.images(0), "labels": [[1]]}, "labels must be a list"),
    (
      "text",
      {"data": fixtures.images(0), "labels": ["a"] * 3},
      "labels must be a list",
    ),
    (
      "no_labels",
      {"data": fixtures.images(0), "labels": None},
      "labels must be a list",
    ),
    (
      "float_labels",
      {"data": fixtures.images(0), "labels": np.zeros(3)},
      "labels must be a list of whole",
    ),
    (
      "more_labels",
      {"data": fixtures.images(0), "labels": [1] * 4},
      "labels has 4 numbers, more than 3",
    ),
    (
      "fewer_labels",
      {"data": fixtures.images(0), "labels": [1, 2]},
      "has 2 labels for 3 images",
    ),
    ("class_list", {"image_data": fixtures.images(0), "class_dict": []}, "is a list"),
    (
      "class_numbers",
      {"image_data": fixtures.images(0), "class_dict": {"a": 7}},
      "class a must be a list of whole",
    ),
    (
      "class_floats",
      {"image_data": fixtures.images(0), "class_dict": {"a": [0.0]}},
      "class a must be a list of whole",
    ),
    (
      "class_truth",
      {"image_data": fixtures.images(0), "class_dict": {"a": [True]}},
      "class a must be a list of whole",
    ),
    (
      "class_grid",
      {"image_data": fixtures.images(0), "class_dict": {"a": np.zeros((1, 1), int)}},
      "class a must be a list of whole",
    ),
    (
      "large",
      {"image_data": fixtures.images(0), "class_dict": {"a": [2**64 - 1]}},
      "class a names images beyond 3",
    ),
    (
      "class_name",
      {"image_data": fixtures.images(0), "class_dict": {b"a": [0]}},
      "b'a' is not a class name",
    ),
    (
      "long_name",
      {"image_data": fixtures.images(0), "class_dict": {"a" * 201: [0]}},
      "cache.pkl: 'a{60}' is not a class name",
    ),
    ("long_key", {"a" * 99: 1}, r"has the keys \['a{60}'\]"),
    (
      "names_list",
      {"data": fixtures.images(0), "labels": [1] * 3, "catname2label": ["a"]},
      "catname2label is a list",
    ),
    (
      "names_of_lists",
      {"data": fixtures.images(0), "labels": [1] * 3, "catname2label": {"a": [1]}},
      "catname2label must be a list of whole",
    ),
    (
      "two_names",
      {
        "data": fixtures.images(0),
        "labels": [1] * 3,
        "catname2label": {"a": 1, "b": 1},
      },
      "gives two classes one name or number",
    ),
    (
      "one_name",
      {"data": fixtures.images(0), "labels": [1, 2, 2], "catname2label": {"label2": 1}},
      "gives two classes one name or number",
    ),
  )
  def test_wrong_content_is_refused(self, content, message):
    with self.assertRaisesRegex(ValueError, message):
      self._read(content)

  def test_lists_within_lists_are_not_multiplied(self):
    # As an array it would have 99**9 elements.
    nested = [0] * 99
    for _ in range(8):
      nested = [nested] * 99
    images = fixtures.images(0, 99)
    with self.assertRaisesRegex(ValueError, "class a must be a list of whole"):
      self._read({"image_data": images, "class_dict": {"a": nested}})
    with self.assertRaisesRegex(ValueError, "labels must be a list of whole"):
      self._read({"data": images, "labels": nested})

  def test_a_long_array_of_many_classes_is_not_copied(self):
    numbers = np.zeros(10**6, np.int8)
    classes = {f"n{i}": numbers for i in range(1000)}
    with self.assertRaisesRegex(
      ValueError, "class n0 has 1000000 numbers, more than 3"
    ):
      self._read({"image_data": fixtures.images(0), "class_dict": classes})

  def test_no_images(self):
    images = fixtures.images(0, 0)
    self.assertEqual(self._read({"data": images, "labels": []}), {})
    self.assertEqual(self._read({"image_data": images, "class_dict": {}}), {})

  def test_numpy_scalars_as_labels_and_members(self):
    images = fixtures.images(0, 3)
    arrays = self._read({"data": images, "labels": list(np.array([5, 7, 5]))})
    np.testing.assert_array_equal(arrays["label5"], images[[0, 2]])
    members = {"a": (np.uint8(2), 0), "b": np.array([1], np.uint64)}
    arrays = self._read({"image_data": images, "class_dict": members})
    np.testing.assert_array_equal(arrays["a"], images[[2, 0]])
    np.testing.assert_array_equal(arrays["b"], images[[1]])


if __name__ == "__main__":
  absltest.main()
