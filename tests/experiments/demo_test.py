"""The demo without a browser: drawings as images, names, HTTP, the program."""

import base64
import dataclasses
import doctest
import http.client
import io
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zlib

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from PIL import Image

import jsharp
from experiments import _demo_drawing as drawing
from experiments import _demo_server, demo
from experiments._demo_drawing import RefusedError
from experiments._demo_recognition import Recogniser
from jsharp import learners
from jsharp.algorithms.maml import MAML
from jsharp.data import characters
from jsharp.data.omniglot import Omniglot
from jsharp.models.mlp import SineNetwork
from tests import demo_pages

HAND = drawing.HANDS["omniglot"]
HOOK = [[[0.2, 0.1], [0.2, 0.7], [0.5, 0.7]]]


def encoded(pixels, kind="PNG"):
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, kind)
  return buffer.getvalue()


def rendered(strokes, hand=HAND, size=(28, 28)):
  return drawing.render(drawing.strokes_of(strokes), size=size, hand=hand)


class RenderTest(parameterized.TestCase):
  def test_examples(self):
    failed, attempted = doctest.testmod(drawing)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 5)

  def test_inks_like_the_characters_that_learners_are_trained_on(self):
    # Drawn by distances from the curves, as `jsharp.data.characters` does.
    for index, (strokes, *_) in enumerate(demo_pages.drawings()):
      points = np.concatenate(strokes)
      low, high = points.min(0), points.max(0)
      scale = 0.7 / (high - low).max()
      placed = [(np.array(s) - (low + high) / 2) * scale for s in strokes]
      expected = characters._render(2 * np.stack(placed)[None], np.array([0.0625]), 28)
      found = rendered(strokes, drawing.Hand(0.0625, 0.7625, 0.7625))
      with self.subTest(index):
        difference = found[..., 0].astype(int) - expected[0]
        self.assertLess(np.abs(difference).mean(), 4)
        self.assertLess(abs(difference.mean()), 1.5)

  @parameterized.parameters((0.25, 0.1, 0.6), (1.0, 0.0, 0.2), (0.5, -0.1, 0.0))
  def test_place_and_size_do_not_matter(self, scale, x, y):
    hand = drawing.Hand(HAND.pen, 0.65, 0.65)
    moved = [[[scale * a + x, scale * b + y] for a, b in s] for s in HOOK]
    difference = rendered(moved, hand).astype(int) - rendered(HOOK, hand)
    self.assertLess(np.abs(difference).max(), 16)

  def test_a_usual_size_is_kept(self):
    for size, expected in ((0.3, 0.6), (0.62, 0.62), (0.9, 0.7)):
      line = [[[0.1, 0.5], [0.1 + size - HAND.pen, 0.5]]]
      columns = np.flatnonzero(rendered(line, size=(100, 100)).any((0, 2)))
      self.assertAlmostEqual(np.ptp(columns) + 1, 100 * expected, delta=2)
      self.assertAlmostEqual(columns.mean(), 49.5, delta=1)

  def test_a_dot_stays_a_dot(self):
    dot = rendered([[[0.9, 0.1]]], size=(100, 100))
    self.assertAlmostEqual(dot.sum() / 255, np.pi * (50 * HAND.pen) ** 2, delta=6)

  @parameterized.parameters(
    ("text",),
    (None,),
    ([],),
    ([[]],),
    ([[[1]]],),
    ([[["a", "b"]]],),
    ([[[0.5, float("nan")]]],),
    ([[[0.5, 1e9]]],),
    ([[[0.5, None]]],),
    ([[{"x": 1}]],),
    ([[[0.5, 0.5]] * (drawing.MAX_POINTS + 1)],),
  )
  def test_other_strokes_are_refused(self, strokes):
    with self.assertRaises(RefusedError):
      drawing.strokes_of(strokes)


class InkedTest(absltest.TestCase):
  def test_any_ground_and_place(self):
    shape = np.zeros((40, 30), bool)
    shape[5:35, 12:16] = shape[30:35, 4:16] = True
    page = np.full((200, 300, 3), 230)
    page[60:100, 200:230][shape] = (40, 40, 120)
    expected = drawing.inked(np.uint8(255 * shape)[..., None], HAND)
    np.testing.assert_array_equal(drawing.inked(np.uint8(page), HAND), expected)
    ink = np.argwhere(expected[..., 0])
    self.assertEqual(expected.max(), 255)
    self.assertEqual(np.ptp(ink[:, 0]) + 1, 30)
    self.assertAlmostEqual(30 / len(expected), HAND.largest, delta=0.02)
    self.assertAlmostEqual(ink.min(0)[0], len(expected) - 1 - ink.max(0)[0], delta=1)

  def test_an_empty_page_is_ground(self):
    self.assertFalse(drawing.inked(np.full((9, 9, 3), 200, np.uint8), HAND).any())


class UploadTest(parameterized.TestCase):
  @parameterized.parameters("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
  def test_a_large_picture_becomes_a_small_one(self, kind):
    columns = np.tile(np.uint8(np.linspace(0, 255, 900)), (600, 1))
    png = drawing.upload(encoded(np.stack([columns] * 3, -1), kind), "a.picture")
    image = Image.open(io.BytesIO(png))
    self.assertEqual((image.format, image.size), ("PNG", (384, 256)))
    found = np.asarray(image.convert("L")).astype(int)
    self.assertLess(np.abs(found - np.linspace(0, 255, 384)).mean(), 3)

  def test_a_long_one(self):
    png = drawing.upload(encoded(np.zeros((10, 5000))), "long.png")
    self.assertLessEqual(max(Image.open(io.BytesIO(png)).size), drawing.MAX_SIDE)

  def test_a_bomb_is_refused_before_it_is_decoded(self):
    # A PNG with the size of another one in its header.
    for side in (8_001, 30_000):
      data = encoded(np.zeros((9, 9)))
      header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
      data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
      with self.assertRaisesRegex(RefusedError, "bomb.png has more than 64 million"):
        drawing.upload(data, "bomb.png")

  @parameterized.parameters(
    (b"", "damaged or not a picture"),
    (b"no picture", "damaged or not a picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format EPS"),
  )
  def test_what_is_no_picture_is_refused(self, data, message):
    with self.assertRaisesRegex(RefusedError, f"x.png .*{message}"):
      drawing.upload(data, "x.png")

  def test_a_damaged_one_is_refused(self):
    data = encoded(np.random.default_rng(0).integers(0, 255, (50, 50)))
    with self.assertRaisesRegex(RefusedError, "damaged"):
      drawing.upload(data[:900], "half.png")

  def test_a_request_holds_small_pngs_alone(self):
    png = base64.b64encode(encoded(np.zeros((4, 4, 3)))).decode()
    self.assertEqual(drawing.photograph(png).shape, (4, 4, 3))
    wide = base64.b64encode(encoded(np.zeros((1, drawing.MAX_SIDE + 1)))).decode()
    jpeg = base64.b64encode(encoded(np.zeros((4, 4)), "JPEG")).decode()
    for value in (wide, jpeg, "?", "AAAA", None, 3, []):
      with self.assertRaises(RefusedError):
        drawing.photograph(value)


def asked(classes, query, learner="drawings"):
  def pictures(group):
    return [{"strokes": strokes} for strokes in group]

  return {
    "learner": learner,
    "classes": [pictures(group) for group in classes],
    "query": {"strokes": query},
  }


class RecogniserTest(parameterized.TestCase):
  def test_names_new_drawings(self):
    recogniser = demo_pages.recogniser()
    found = []
    classes = [[group[0]] for group in demo_pages.drawings()]
    for label, (_, *queries) in enumerate(demo_pages.drawings()):
      for query in queries:
        answer = recogniser.answer(asked(classes, query))
        self.assertAlmostEqual(sum(answer["probabilities"]), 1, places=5)
        found.append(np.argmax(answer["probabilities"]) == label)
    self.assertGreater(np.mean(found), 0.45)  # five classes

  def test_is_the_learner_on_the_drawn_images(self):
    classes = [group[:2] for group in demo_pages.drawings(3)]
    classes[0].pop()
    query = demo_pages.drawings(3)[1][3]
    answer = demo_pages.recogniser().answer(asked(classes, query))
    hand = drawing.HANDS["characters"]
    images = [rendered(strokes, hand) for group in classes for strokes in group]
    classifier = demo_pages.learner().classifier().fit(images, [0, 1, 1, 2, 2])
    expected = classifier.predict_proba([rendered(query, hand)])[0]
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5)
    seen = base64.b64decode(answer["seen"].partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(seen)))
    np.testing.assert_array_equal(shown, rendered(query, hand)[..., 0])

  def test_other_examples_are_learned_anew(self):
    recogniser = demo_pages.recogniser()
    classes = [[group[0]] for group in demo_pages.drawings(2)]
    query = demo_pages.drawings(2)[1][1]
    there = recogniser.answer(asked(classes, query))["probabilities"]
    back = recogniser.answer(asked(classes[::-1], query))["probabilities"]
    self.assertGreater(abs(there[0] - there[1]), 0.1)
    np.testing.assert_allclose(there, back[::-1], rtol=1e-4)

  def test_uploads_of_drawings(self):
    # Dark on light, at another place and size than in training.
    recogniser = demo_pages.recogniser()

    def photo(strokes):
      page = Image.new("RGB", (240, 160), (250, 245, 235))
      inked = Image.fromarray(255 - rendered(strokes, size=(90, 90))[..., 0])
      page.paste(inked.convert("RGB"), (130, 40))
      png = drawing.upload(encoded(page), "page.png")
      return {"photo": base64.b64encode(png).decode()}

    drawings = demo_pages.drawings(3)
    request = asked([[group[0]] for group in drawings], drawings[2][1])
    drawn = recogniser.answer(request)["probabilities"]
    request["query"] = photo(drawings[2][1])
    np.testing.assert_allclose(
      recogniser.answer(request)["probabilities"], drawn, atol=0.15
    )

  def test_photographs(self):
    recogniser = demo_pages.recogniser()

    def photo(color):
      png = drawing.upload(encoded(np.full((300, 400, 3), color)), "photo.png")
      return {"photo": base64.b64encode(png).decode()}

    red, blue = photo((220, 30, 30)), photo((30, 30, 220))
    answer = recogniser.answer(
      {
        "learner": "photographs",
        "classes": [[red, photo((200, 60, 40))], [blue]],
        "query": photo((40, 60, 200)),
      }
    )
    self.assertGreater(answer["probabilities"][1], 0.5)

  def test_without_a_query_it_gets_ready(self):
    request = asked([[HOOK]] * 2, HOOK) | {"query": None}
    self.assertEqual(demo_pages.recogniser().answer(request), {})

  @parameterized.parameters(
    (["list"], "object"),
    ({}, "no learner None"),
    (asked([[HOOK]] * 2, HOOK, "another"), "no learner 'another' here.*two"),
    (asked([[HOOK]] * 2, HOOK) | {"learner": {}}, "no learner"),
    (asked([[HOOK]], HOOK), "1 classes"),
    (asked([[HOOK]] * 51, HOOK), "51 classes"),
    (asked([[HOOK]] * 3, HOOK, "two"), "distinguishes 2 to 2"),
    (asked([[HOOK], []], HOOK), "needs an example"),
    (asked([[HOOK], [HOOK] * 250], HOOK), "more than 250"),
    (asked([[HOOK]] * 2, HOOK) | {"classes": {"a": 1}}, "list of lists"),
    (
      asked([[HOOK]] * 2, HOOK) | {"classes": [["a"], ["b"]]},
      "strokes or with a photo",
    ),
    (asked([[HOOK]] * 2, HOOK) | {"query": {"photo": 3}}, "not a PNG"),
    (asked([[HOOK], [[[]]]], HOOK), "needs a stroke"),
  )
  def test_other_requests_are_refused(self, request, message):
    with self.assertRaisesRegex(RefusedError, message):
      demo_pages.recogniser().answer(request)

  def test_the_page_begins_with_handwriting_and_any_number_of_classes(self):
    learners_ = {name: demo_pages.learner() for name in ("a", "b")}
    learners_["photographs"] = demo_pages.learner(takes="photographs")
    omniglot = dataclasses.replace(
      learners_["a"], description=learners_["a"].description.replace(source=Omniglot())
    )
    found = Recogniser({**dict(reversed(learners_.items())), "c": omniglot}, sort=True)
    self.assertEqual(list(found.choices), ["c", "b", "a", "photographs"])

  def test_other_learners_are_refused(self):
    sine = learners.Description(
      algorithm=MAML(),
      network=SineNetwork(),
      problem="regression",
      num_outputs=1,
      input_shape=(1,),
    )
    with self.assertRaisesRegex(ValueError, "--model=sine .*images"):
      Recogniser({"sine": jsharp.build(sine)})


class ColoursTest(parameterized.TestCase):
  """Contrast as the WCAG 2.2 defines it, 4.5 for text and 3 for what is no text."""

  @parameterized.parameters("light", "dark")
  def test_can_be_read(self, scheme):
    text = demo.PAGE.read_text()
    found = re.findall(r":root {(.*?)}", text, re.DOTALL)
    self.assertLen(found, 2)
    color = {}
    for block in found[: ["light", "dark"].index(scheme) + 1]:
      color |= dict(re.findall(r"--([\w-]+): (#\w{6});", block))

    def luminance(name):
      channels = np.array([int(color[name][i : i + 2], 16) for i in (1, 3, 5)]) / 255
      linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
      )
      return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    for front, *backs in (
      ("text", "page", "card", "track", "bar"),
      ("muted", "page", "card", "paper"),
      ("warn", "card", "warn-page"),
      ("ink", "paper"),
      ("accent", "page", "card"),
    ):
      for back in backs:
        with self.subTest(front, on=back):
          pair = sorted((luminance(front), luminance(back)))
          self.assertGreater(pair[1] / pair[0], 3 if front == "accent" else 4.5)


class ServerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.url = cls.enterClassContext(demo_pages.served())

  def ask(self, path, data=None, **headers):
    """Status, headers and body of an answer."""
    request = urllib.request.Request(self.url + path, data, headers)
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
      with error:
        return error.code, error.headers, error.read()

  def refused(self, *arguments, **headers):
    status, _, body = self.ask(*arguments, **headers)
    return status, json.loads(body)["error"]

  def test_the_page(self):
    status, headers, body = self.ask("/")
    self.assertEqual(status, 200)
    policy = headers["Content-Security-Policy"]
    (nonce,) = set(re.findall("'nonce-(.*?)'", policy))
    text = body.decode()
    self.assertEqual(text.count(f'nonce="{nonce}"'), 2)
    self.assertStartsWith(policy, "default-src 'none'; connect-src 'self';")
    self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
    self.assertEqual(headers["Cache-Control"], "no-store")
    self.assertIsNone(headers["Access-Control-Allow-Origin"])
    self.assertNotIn(nonce, self.ask("/")[1]["Content-Security-Policy"])
    # Nothing is loaded from elsewhere; a name of XML's is no address.
    addresses = set(re.findall(r"\w+://[^\s'\"]+", text))
    self.assertEqual(addresses, {"http://www.w3.org/2000/svg"})

  def test_the_learners(self):
    status, _, body = self.ask("/learners")
    found = json.loads(body)
    self.assertEqual((status, found["max_bytes"]), (200, _demo_server.MAX_BODY))
    by_name = {entry["name"]: entry for entry in found["learners"]}
    self.assertEqual(by_name["drawings"]["max_classes"], 50)
    self.assertEqual(by_name["two"]["max_classes"], 2)
    self.assertEqual(by_name["photographs"]["takes"], "photographs")
    self.assertEqual(by_name["drawings"]["pen"], drawing.HANDS["characters"].pen)

  def test_names_a_drawing(self):
    classes = [[group[0]] for group in demo_pages.drawings()]
    request = asked(classes, demo_pages.drawings()[3][1])
    status, _, body = self.ask("/name", json.dumps(request).encode())
    expected = demo_pages.recogniser().answer(request)
    self.assertEqual(status, 200)
    self.assertEqual(json.loads(body)["probabilities"], expected["probabilities"])

  def test_an_upload(self):
    data = encoded(np.full((400, 300), 9))
    status, headers, body = self.ask("/upload?name=gray.png", data)
    self.assertEqual((status, headers["Content-Type"]), (200, "image/png"))
    self.assertEqual(body, drawing.upload(data, "gray.png"))

  @parameterized.parameters(
    ("/upload?name=notes.txt", b"hello", 400, "notes.txt is damaged or not a picture"),
    ("/upload", b"", 400, "the picture is damaged"),
    ("/name", b"{", 400, "JSON"),
    ("/name", b"[" * 100_000, 400, "JSON"),
    ("/name", b"\xff\xfe", 400, "JSON"),
    ("/name", b"{}", 400, "no learner"),
  )
  def test_other_data_are_refused(self, path, data, status, message):
    found, text = self.refused(path, data)
    self.assertEqual(found, status)
    self.assertIn(message, text)

  @parameterized.parameters("/upload", "/name")
  def test_20_mb_are_refused(self, path):
    status, text = self.refused(path, bytes(20 * 2**20))
    self.assertEqual(status, 413)
    self.assertIn("At most 16 MB", text)

  def test_a_body_without_a_length_is_counted(self):
    connection = http.client.HTTPConnection(self.url.removeprefix("http://"))
    chunks = (bytes(2**20) for _ in range(20))
    connection.request("POST", "/upload", chunks, encode_chunked=True)
    with connection.getresponse() as answer:
      self.assertEqual(answer.status, 413)
    connection.close()

  def test_other_pages_are_refused(self):
    for origin in ("https://example.com", "http://localhost:1", "null"):
      for path, data in (("/name", b"{}"), ("/upload", b""), ("/learners", None)):
        with self.subTest(origin, path=path):
          status, text = self.refused(path, data, Origin=origin)
          self.assertEqual(status, 403)
          self.assertIn(origin, text)
    self.assertEqual(self.ask("/learners", Origin=self.url)[0], 200)

  def test_other_hosts_are_refused(self):
    port = self.url.rpartition(":")[2]
    for host in ("example.com", f"127.0.0.1.example.com:{port}", "", "[::1]:80"):
      with self.subTest(host):
        status, text = self.refused("/learners", Host=host)
        self.assertEqual(status, 403)
        self.assertIn("127.0.0.1 and localhost", text)
    local = f"localhost:{port}"
    found = self.ask("/learners", Host=local, Origin=f"http://{local}")
    self.assertEqual(found[0], 200)

  def test_nothing_else_is_there(self):
    for path in ("/demo.html", "/../setup.py", "/learners/x"):
      self.assertEqual(self.ask(path)[0], 404)
    self.assertEqual(self.ask("/name")[0], 405)


class ProgramTest(absltest.TestCase):
  def start(self, *arguments):
    return demo.start(arguments, flags.FlagValues())

  def test_starts_and_stops(self):
    with tempfile.TemporaryDirectory() as directory:
      jsharp.save(demo_pages.learner(), directory)
      cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"], "demo")
      words = ["--port=0", "--noopen_browser", f"--compilation_cache_dir={cache}"]
      program = subprocess.Popen(
        [sys.executable, "-m", "experiments.demo", f"--model={directory}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
      )
      with program:
        line = program.stdout.readline()
        url = re.fullmatch(r"demo: (http://127\.0\.0\.1:\d+/) .*\n", line).group(1)
        with urllib.request.urlopen(url, timeout=60) as page:
          self.assertIn(b"<main", page.read())
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    self.assertEqual(program.returncode, 0, errors)
    self.assertEndsWith(errors, "demo: stopped.\n")

  def test_a_port_in_use(self):
    with demo.listener(0) as taken:
      port = taken.getsockname()[1]
      with self.assertRaisesRegex(ValueError, f"--port={port} is in use.*--port=0"):
        demo.listener(port)
      self.assertEqual(self.start(f"--port={port}", "--model=x"), 2)

  def test_a_learner_that_is_not_there(self):
    self.assertEqual(self.start("--port=0", "--model=/nowhere"), 2)

  def test_flags(self):
    self.assertEqual(self.start("--port=70000"), 2)
    self.assertEqual(self.start("--help"), 0)


if __name__ == "__main__":
  absltest.main()
