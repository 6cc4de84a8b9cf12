"""Tests of reading pickles by rules of our own: all data, and nothing else."""

import io
import pickle
import pickletools
import random
import tracemalloc
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jsharp.data import _pickle_language, _pickle_machine
from tests.data import fixtures

START = b"\x80\x02"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
UINT8 = (3, "|", None, None, None, -1, -1, 0)


def piece(value):
  """The instructions that push a value."""
  return pickle.dumps(value, 2)[2:-1]


def dtype(spec, state):
  arguments = piece((spec, False, True))
  return b"cnumpy\ndtype\n" + arguments + b"R" + piece(state) + b"b"


def array(shape, data, of=None, fortran=False, version=1):
  """The instructions that build an array, as numpy 1 writes them."""
  of = of or dtype("u1", UINT8)
  empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
  state = b"(" + piece(version) + piece(shape) + of + piece(fortran) + data + b"t"
  return empty + piece((0,)) + b"U\x01btR" + state + b"b"


def string(text):
  """A string of Python 2."""
  return b"U" + bytes([len(text)]) + text


def load(data, size=None):
  return _pickle_language.load(io.BytesIO(data), len(data) if size is None else size)


def random_data(choose: random.Random, depth=0):
  """Nested data of every kind that a cache may hold."""
  kinds = 12 if depth < 4 else 9
  kind = choose.randrange(kinds)
  if kind == 0:
    return choose.choice([None, True, False])
  if kind == 1:
    return choose.choice([0, 255, 256, 65536, -1, 2**31, -(2**63), 2**64 - 1, 77])
  if kind == 2:
    return choose.choice([0.0, -1.5, 1e300, float("inf")])
  if kind == 3:
    return choose.choice(
      ["", "a", "n01532829", "ä\n\\'\"", "\u20ac\U0001f600", "\ud800"]
    )
  if kind == 4:
    return choose.choice([b"", b"a", b"\0\xff\n\\'\"", bytes(range(256)) * 2])
  if kind == 5:
    return choose.choice([np.int64(7), np.uint8(255), np.float32(0.5), np.bool_(True)])
  if kind == 6:
    spec = choose.choice(["?", "u1", "i2", ">i4", "<i8", "u8", "f2", ">f4", "f8"])
    shape = choose.choice([(), (0,), (3,), (2, 3), (2, 1, 4)])
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(spec)
  if kind == 7:
    values = np.arange(24, dtype=choose.choice(["u1", "f8"])).reshape(2, 3, 4)
    return choose.choice([np.asfortranarray(values), values.transpose(1, 0, 2)])
  if kind == 8:
    return np.array(choose.choice([["a", "bcd"], [b"a", b"bcd"], ["\u20ac"]]))
  items = [random_data(choose, depth + 1) for _ in range(choose.randrange(5))]
  if kind == 9:
    return items
  if kind == 10:
    return tuple(items)
  return {choose.choice(["a", 5, 2.5, b"k", None, f"k{i}"]): v
          for i, v in enumerate(items)}  # fmt: skip


class SameTest(parameterized.TestCase):
  """What data there is comes in as `pickle` reads it."""

  def check(self, found, expected):
    if isinstance(expected, np.ndarray | np.generic):
      self.assertIs(type(found), type(expected))
      self.assertEqual(found.shape, expected.shape)
      self.assertEqual(found.dtype.newbyteorder("="), expected.dtype.newbyteorder("="))
      np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, list | tuple):
      self.assertIs(type(found), type(expected))
      self.assertLen(found, len(expected))
      for one, other in zip(found, expected, strict=True):
        self.check(one, other)
    elif isinstance(expected, dict):
      self.assertEqual(list(found), list(expected))
      for key in expected:
        self.check(found[key], expected[key])
    else:
      self.assertIs(type(found), type(expected))
      self.assertEqual(found, expected)

  @parameterized.product(protocol=(0, 1, 2, 3, 4, 5), optimize=(False, True))
  def test_random_data(self, protocol, optimize):
    choose = random.Random(protocol)
    for _ in range(300):
      content = random_data(choose)
      data = pickle.dumps(content, protocol)
      if optimize:
        data = pickletools.optimize(data)
      self.check(load(data), pickle.loads(data, encoding="latin1"))

  @parameterized.parameters(*range(6))
  def test_python_pickler_and_shared_objects(self, protocol):
    values = np.arange(3)
    shared = [values, "text"]
    content = {"a": shared, "b": shared, "c": values, "d": values.dtype}
    for dumps in (pickle.dumps, pickle._dumps):
      found = load(dumps(content, protocol))
      self.assertIs(found["a"], found["b"])
      self.assertIs(found["a"][0], found["c"])
      self.assertEqual(found["d"], values.dtype)
      np.testing.assert_array_equal(found["c"], values)

  @parameterized.parameters(
    (b"S'a\\x00\\n\\'\\\\'\n.", "a\0\n'\\"),
    (b'S"it\'s"\n.', "it's"),
    (b"T\x02\0\0\0\xff\0.", "\xff\0"),
    (b"I01\n.", True),
    (b"I00\n.", False),
    (b"L-5L\n.", -5),
    (b"L5\n.", 5),
    (b"F1.5\n.", 1.5),
    (b"(I1\nI2\nl.", [1, 2]),
    (b"(S'a'\nI2\nd.", {"a": 2}),
    (b"(lp0\nI1\na.", [1]),
    (b"]K\x01a(K\x02K\x03e.", [1, 2, 3]),
    (b"\x80\x05\x96\x02\0\0\0\0\0\0\0ab.", b"ab"),
    (b"N.rest of the file", None),
  )
  def test_old_and_rare_instructions(self, data, expected):
    self.check(load(data), expected)

  def test_arrays_are_views_of_the_file(self):
    found = load(pickle.dumps(np.zeros(1000), 5))
    self.assertFalse(found.flags.writeable)
    self.assertFalse(found.flags.owndata)

  def test_labels_of_mini_imagenet_as_scalars_are_within_the_limits(self):
    labels = [np.int64(label) for label in range(60_000)]
    self.assertLen(load(pickle.dumps(labels, 0)), len(labels))


class RefusalsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("size_zero", dtype("S1", (3, "|", None, None, None, 0, 1, 0))),
    ("size_negative", dtype("S1", (3, "|", None, None, None, -5, 1, 0))),
    ("size_huge", dtype("S1", (3, "|", None, None, None, 2**31 - 1, 1, 0))),
    ("size_of_a_number", dtype("u1", (3, "|", None, None, None, 0, 1, 0))),
    ("alignment_zero", dtype("S1", (3, "|", None, None, None, 1, 0, 0))),
    ("alignment_list", dtype("S1", (3, "|", None, None, None, 1, [], 0))),
    ("flags", dtype("S8", (3, "|", None, None, None, 8, 1, 63))),
    ("fields", dtype("S1", (3, "|", None, ("a",), {"a": (None, 0)}, 1, 1, 0))),
    ("subarray", dtype("u1", (3, "|", ("u1", (2,)), None, None, 1, 1, 0))),
    ("byte_order", dtype("u1", (3, "x", None, None, None, -1, -1, 0))),
    ("version", dtype("u1", (4, "|", None, None, None, -1, -1, 0))),
    ("metadata", dtype("u1", (4, "|", None, None, None, -1, -1, 0, {}))),
    ("short", dtype("u1", (3, "|"))),
    ("six", dtype("u1", (3, "N", None, -1, -1, 0))),  # SIGSEGV with numpy's setter
    ("attributes", dtype("u1", (None, {"__defaults__": ("O",)}))),
    ("twice", dtype("u1", UINT8) + piece(UINT8) + b"b"),
    ("objects", dtype("O8", (3, "|", None, None, None, -1, -1, 63))),
    ("void", dtype("V8", (3, "|", None, None, None, 8, 1, 0))),
    ("time", dtype("M8", UINT8)),
    ("empty_text", dtype("S0", UINT8)),
    ("long_text", dtype("S999999999", UINT8)),
    ("record", dtype("i4,O", UINT8)),
    ("no_number", dtype("i3", UINT8)),
    ("list", dtype([("a", "O")], UINT8)),
  )
  def test_dtypes(self, data):
    for use in (data, array((4,), string(b"abcd"), data)):
      with self.assertRaisesRegex(pickle.UnpicklingError, "refused|no array where"):
        load(START + use + b".")

  @parameterized.named_parameters(
    ("too_long", array((5,), string(b"abcd"))),
    ("too_short", array((3,), string(b"abcd"))),
    ("product", array((2**62, 2**62), string(b"abcd"))),
    ("overflow", array((2**32, 2**32), string(b""))),
    ("negative", array((-1, -4), string(b"abcd"))),
    ("no_number", array((4.0,), string(b"abcd"))),
    ("dimensions", array((1,) * 33, string(b"a"))),
    ("long_and_empty", array((2**40, 0), string(b""))),
    ("shape_list", array([4], string(b"abcd"))),
    ("objects", array((1,), piece([{}]))),
    ("no_data", array((1,), b"N")),
    ("no_dtype", array((1,), b"U\x01a", b"N")),
    ("version", array((4,), string(b"abcd"), version=2)),
    ("order", array((4,), string(b"abcd"), fortran=[])),
    ("truth", array((1,), string(b"\2"), dtype("b1", UINT8))),
    (
      "code_point",
      array(
        (1,),
        string(b"\0\0\x7f\0"),
        dtype("U1", (3, "<", None, None, None, 4, 4, 8)),
      ),
    ),
    ("no_ndarray", array((1,), b"U\x01a").replace(b"(cnumpy\nndarray\n", b"(N")),
    ("scalar_size", SCALAR + dtype("u1", UINT8) + string(b"ab") + b"\x86R"),
    ("scalar_type", SCALAR + b"U\x02u1U\x01a\x86R"),
  )
  def test_arrays(self, data):
    with self.assertRaisesRegex(pickle.UnpicklingError, "refused"):
      load(START + data + b".")

  @parameterized.named_parameters(
    ("binput", b"Nr\xff\xff\xff\x3f.", "numbers an object beyond"),
    ("put", b"Np99999999999\n.", "numbers an object beyond"),
    ("put_negative", b"Np-1\n.", "numbers an object beyond"),
    ("nested_lists", b"]" * 99 + b"a" * 98 + b".", "nests containers"),
    ("nested_tuples", b")" + b"\x85" * 99 + b".", "nests containers"),
    ("in_itself", b"]q\0h\0a.", "nests containers"),
    ("in_each_other", b"]q\0]q\1h\0aa.", "nests containers"),
    ("object", b"(c__main__\nA\no.", "instruction OBJ|asks for"),
    ("instance", b"(i__main__\nA\n.", "instruction INST"),
    ("new", b"cnumpy\ndtype\n)\x81.", "instruction NEWOBJ"),
    ("new_ex", b"cnumpy\ndtype\n)}\x92.", "instruction NEWOBJ_EX"),
    ("persistent", b"P0\n.", "instruction PERSID"),
    ("persistent_of_stack", b"NQ.", "instruction BINPERSID"),
    ("extension", b"\x82\1.", "instruction EXT1"),
    ("buffer", b"\x80\5\x97.", "instruction NEXT_BUFFER"),
    ("read_only_buffer", b"\x80\5\x98.", "instruction READONLY_BUFFER"),
    ("set", b"\x80\4\x8f.", "instruction EMPTY_SET"),
    ("twice", b"N2.", "instruction DUP"),
    ("name", b"cos\nsystem\n.", "asks for os.system"),
    ("escapes", b"c\x1b[2J\nx\n.", r"asks for \\x1b\[2J.x$"),
  )
  def test_refused(self, data, message):
    with self.assertRaisesRegex(_pickle_language.RefusedError, message):
      load(data)

  @parameterized.named_parameters(
    ("bytes", b"B\xff\xff\xff\x7fa.", "2147483647 bytes announced, 2 left"),
    ("bytes8", b"\x8e" + b"\xff" * 5 + b"\0\0\0a.", "1099511627775 bytes announced"),
    ("text", b"X\xff\xff\xff\xffa.", "4294967295 bytes announced"),
    ("text8", b"\x8d" + b"\xff" * 8 + b"a.", "bytes announced"),
    ("bytearray", b"\x96" + b"\xff" * 8 + b"a.", "bytes announced"),
    ("string", b"T\xff\xff\xff\x7fa.", "bytes announced"),
    ("negative", b"T\xff\xff\xff\xffa.", "-1 bytes announced"),
    ("frame", b"\x80\4\x95\xff\xff\xff\xff\3\0\0\0N.", "17179869183 bytes announced"),
    ("integer", b"\x8b\xff\xff\xff\x7fa.", "bytes announced"),
    ("line", b"I" + b"1" * 9999 + b"\n.", "a line without an end"),
    ("no_end", b"Sabc", "a line without an end"),
    ("short", b"K", "1 bytes announced, 0 left"),
    ("protocol", b"\x80\6N.", "unknown protocol"),
    ("large", b"\x8a\x0a" + b"\1" * 10 + b".", "more than 64 bits"),
    ("large_line", b"L" + b"9" * 20 + b"L\n.", "more than 64 bits"),
    ("quotes", b"Sabc\n.", "string without quotes"),
    ("quote", b"S'\n.", "string without quotes"),
    ("escape", b"S'\\q'\n.", "invalid escape"),
    ("no_instruction", b"\xee.", "is no instruction"),
    ("empty_stack", b".", "pop from empty list"),
    ("mark", b"(.", "no data where"),
    ("rest", b"NN.", "in the middle"),
    ("no_mark", b"Nt.", "pop from empty list"),
    ("memo", b"h\0.", "0"),
    ("memo_of_a_mark", b"(q\0N.", "no object where"),
    ("list_of_function", b"]cnumpy\ndtype\na.", "no data where"),
    ("unbuilt", b"cnumpy\ndtype\nU\2u1\x85R.", "no data where"),
    ("unbuilt_in_a_list", b"]cnumpy\ndtype\nU\2u1\x85Ra.", "no data where"),
    ("append_to_a_tuple", b")Na.", "no list where"),
    ("extend_a_dict", b"}(Ne.", "no list where"),
    ("set_in_a_list", b"]NNs.", "no dict where"),
    ("key_without_a_value", b"}(Nu.", "no dict where"),
    ("key", b"}]Ns.", "a list as a key"),
    ("key_tuple", b"})Ns.", "a tuple as a key"),
    ("call_of_data", b"N)R.", "no function where"),
    ("call_of_ndarray", b"cnumpy\nndarray\n)R.", "no function where"),
    ("call_without_a_tuple", b"cnumpy\ndtype\n]R.", "no function where"),
    ("build_of_data", b"]}b.", "no array where"),
    ("build_of_a_function", b"cnumpy\ndtype\n}b.", "no array where"),
    ("name_of_numbers", b"\x80\4K\0K\0\x93.", "a name that is no text"),
    ("encoding", b"c_codecs\nencode\nU\1aU\4utf8\x86R.", "another encoding"),
    ("encoded", b"c_codecs\nencode\nX\3\0\0\0\xe2\x82\xacU\6latin1\x86R.", "latin-1"),
  )
  def test_damaged(self, data, message):
    with self.assertRaisesRegex(Exception, message) as caught:
      load(data)
    self.assertNotIsInstance(caught.exception, _pickle_language.RefusedError)

  def test_a_file_that_shrinks(self):
    with self.assertRaisesRegex(EOFError, "become shorter"):
      load(b"C\5ab", size=100)

  @parameterized.parameters(
    ("MAX_CONTAINERS", b"(]]]]]]]]]]t.", "has more than 10 containers"),
    ("MAX_CONTAINERS", b"(" + b"N\x85" * 11 + b"t.", "has more than 10 containers"),
    ("MAX_MEMO", b"\x80\4N" + b"\x94" * 12 + b".", "numbers an object beyond 10"),
  )
  def test_numbers_of_objects(self, limit, data, message):
    load(data)
    with (
      mock.patch.object(_pickle_machine, limit, 10),
      self.assertRaisesRegex(_pickle_language.RefusedError, message),
    ):
      load(data)

  def test_number_of_instructions(self):
    data = b"(" + b"N" * _pickle_language.MAX_INSTRUCTIONS + b"t."
    with self.assertRaisesRegex(_pickle_language.RefusedError, "instructions"):
      load(data)

  def test_shared_containers_are_looked_at_once(self):
    # Sixty times sixty and so on: there are 60**13 ways to the innermost list.
    data = b"(]q\0" + (b"](" + b"h\0" * 60 + b"eq\0") * 13 + b"t."
    self.assertLen(load(data), 14)
    # A long list that is in a list a hundred thousand times.
    data = b"(]q\0](" + b"h\0" * 100_000 + b"eq\1](" + b"h\1" * 100_000 + b"et."
    self.assertLen(load(data)[2], 100_000)


MANY = _pickle_language.MAX_INSTRUCTIONS // 10


class MemoryTest(parameterized.TestCase):
  """No pickle takes more than four times its size and 100 MB.

  The limits are a tenth of the real ones here, and so is the constant.
  """

  def setUp(self):
    super().setUp()
    for module, name in (
      (_pickle_language, "MAX_INSTRUCTIONS"),
      (_pickle_machine, "MAX_CONTAINERS"),
      (_pickle_machine, "MAX_MEMO"),
    ):
      limit = getattr(module, name) // 10
      self.enterContext(mock.patch.object(module, name, limit))

  @parameterized.named_parameters(
    ("dicts", b"(" + b"}" * MANY),
    ("memo", b"\x80\4N" + b"\x94" * MANY),
    ("long_memo", b"".join(b"Nr" + i.to_bytes(4, "little") for i in range(MANY // 3))),
    ("numbers", b"(" + b"M\1\1" * MANY),
    ("floats", b"(" + b"G12345678" * (MANY // 2)),
    ("text", b"(" + b"\x8c\2ab" * MANY),
    ("names", b"(" + b"cnumpy\ndtype\n" * MANY),
  )
  def test_many_small_objects(self, data):
    self._check(data)

  @parameterized.parameters(0, 1, 2, 3, 4, 5, "python2")
  def test_one_large_array(self, protocol):
    values = np.random.RandomState(0).randint(0, 256, 4_000_000).astype(np.uint8)
    if protocol == "python2":
      data = fixtures.python2_pickle(values)
    else:
      data = pickle.dumps(values, protocol)
    self._check(data, constant=2**20)
    np.testing.assert_array_equal(load(data), values)

  def test_the_same_contents_again_and_again(self):
    text = b"X" + (1_000_000).to_bytes(4, "little") + b"a" * 1_000_000
    for again in (
      b"c_codecs\nencode\nh\xc8U\6latin1\x86R",
      array((1_000_000,), b"h\xc8"),
    ):
      data = START + b"(" + text + b"q\xc8" + again * 1000 + b"t."
      self._check(data)
      with self.assertRaisesRegex(pickle.UnpicklingError, "larger than the file"):
        load(data)

  def _check(self, data, constant=10 * 10**6):
    tracemalloc.start()
    try:
      load(data)
    except Exception:
      pass
    finally:
      peak = tracemalloc.get_traced_memory()[1]
      tracemalloc.stop()
    self.assertLess(peak, 4 * len(data) + constant)


if __name__ == "__main__":
  absltest.main()
