"""The demo's page in a real browser, headless: what a person does with it."""

import contextlib
import io
import math
import os
import pathlib
import shutil
import tempfile
import unittest

import numpy as np
from absl.testing import absltest
from PIL import Image

from tests import demo_pages

try:
  from playwright import sync_api
except ImportError:
  sync_api = None

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = (
  *(["--no-sandbox"] if os.getuid() == 0 else []),
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-gpu",
  "--disable-sync",
  "--no-first-run",
)
SHOTS = os.environ.get("JSHARP_DEMO_SHOTS")  # where pictures of the steps are put

HOOK = [[(0.3, 0.2), (0.3, 0.7), (0.6, 0.7)]]
WHEEL = [
  [(0.5 + 0.3 * math.cos(t / 1.6), 0.5 + 0.3 * math.sin(t / 1.6)) for t in range(11)],
  [(0.2, 0.5), (0.8, 0.5)],
]
ZIGZAG = [[(0.2, 0.2), (0.8, 0.25), (0.2, 0.75), (0.8, 0.8)]]


def file_of(name, pixels):
  buffer = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(buffer, "PNG")
  return {"name": name, "mimeType": "image/png", "buffer": buffer.getvalue()}


@unittest.skipIf(sync_api is None, "playwright is not installed: .[browser]")
@unittest.skipIf(CHROMIUM is None, f"no browser on the PATH: {', '.join(NAMES)}")
class DemoBrowserTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.url = cls.enterClassContext(demo_pages.served())
    playwright = cls.enterClassContext(sync_api.sync_playwright())
    cls.browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    cls.addClassCleanup(cls.browser.close)

  def setUp(self):
    super().setUp()
    self.problems = []
    self.addresses = set()
    self.addCleanup(lambda: self.assertEqual(self.problems, []))

  def opened(self, url=None, **options):
    """The page in a fresh browser, ready to draw on."""
    options = {"viewport": {"width": 1200, "height": 900}, **options}
    context = self.browser.new_context(**options)
    self.addCleanup(context.close)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda message: self.problems.append(message.text))
    page.on("pageerror", lambda error: self.problems.append(str(error)))
    page.on("request", lambda request: self.addresses.add(request.url))
    page.goto(url or self.url)
    page.locator(".card").first.wait_for()
    return page

  def draw(self, page, pad, strokes, by=0.0):
    canvas = pad.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for stroke in strokes:
      places = [
        (box["x"] + box["width"] * (x + by), box["y"] + box["height"] * (y - by))
        for x, y in stroke
      ]
      page.mouse.move(*places[0])
      page.mouse.down()
      for place in places[1:]:
        page.mouse.move(*place, steps=3)
      page.mouse.up()

  def card(self, page, number):
    return page.locator(".card").nth(number)

  def fill(self, page):
    """Draws and names three examples."""
    for number, (name, strokes) in enumerate(
      {"hook": HOOK, "wheel": WHEEL, "zigzag": ZIGZAG}.items()
    ):
      self.card(page, number).locator("input[type=text]").fill(name)
      self.draw(page, self.card(page, number).locator(".pad"), strokes)

  def shares(self, page):
    """Name -> what its bar says, in the order of the bars."""
    rows = page.locator("#bars li")
    who, share = (rows.locator(part).all_inner_texts() for part in (".who", ".share"))
    return dict(zip(who, share, strict=True))

  def expect(self, page, name):
    """Waits for a name."""
    sync_api.expect(page.locator("#verdict strong")).to_have_text(name)
    self.assertEqual(next(iter(self.shares(page))), name)

  def shoot(self, page, name):
    if SHOTS:
      page.screenshot(path=pathlib.Path(SHOTS, f"{name}.png"), full_page=True)

  def test_draws_and_is_named(self):
    page = self.opened()
    verdict, query = page.locator("#verdict"), page.locator("#query .pad")
    sync_api.expect(verdict).to_have_text(
      "First draw an example of two classes or more."
    )
    self.fill(page)
    sync_api.expect(verdict).to_have_text("Now draw one of them above.")
    self.draw(page, query, WHEEL, by=0.05)
    self.expect(page, "wheel")
    self.shoot(page, "named")
    sync_api.expect(page.locator("#spoken")).to_contain_text("wheel, ")
    self.assertSetEqual(set(self.shares(page)), {"hook", "wheel", "zigzag"})

    with self.subTest("another name"):
      self.card(page, 1).locator("input[type=text]").fill("sun")
      self.expect(page, "sun")
    with self.subTest("undo, clear"):
      page.get_by_role("button", name="Undo: New drawing").click()
      page.get_by_role("button", name="Clear New drawing").click()
      sync_api.expect(verdict).to_have_text("Now draw one of them above.")
      page.get_by_role("button", name="Undo: New drawing").click()
      sync_api.expect(query.get_by_label("New drawing: 1 stroke")).to_have_count(1)
      self.draw(page, query, WHEEL[1:])
      self.expect(page, "sun")
      page.get_by_role("button", name="Clear New drawing").click()
      self.draw(page, query, ZIGZAG)
      self.expect(page, "zigzag")
    with self.subTest("a class more, taught by the new drawing"):
      page.get_by_role("button", name="Add a class").click()
      page.keyboard.type("line")
      self.assertEqual(self.shares(page)["line"], "no example yet")
      page.get_by_role("button", name="Clear New drawing").click()
      line = [[(0.2, 0.5), (0.8, 0.5)]]
      self.draw(page, query, line)
      self.shoot(page, "no_example_yet")
      page.get_by_role("button", name="Add the new one to the examples of line").click()
      self.draw(page, query, line, by=0.1)
      self.expect(page, "line")
    with self.subTest("another example, removed again"):
      page.get_by_role("button", name="Another example of zigzag").click()
      self.draw(page, self.card(page, 2).locator(".pad"), ZIGZAG, by=0.05)
      page.get_by_role("button", name="Remove example 1 of zigzag").click()
      self.assertEqual(self.card(page, 2).locator(".strip button").count(), 0)
    with self.subTest("a class less and back"):
      page.get_by_role("button", name="Remove line").click()
      sync_api.expect(page.locator("#bars li")).to_have_count(3)
      page.get_by_role("button", name="Put line back").click()
      self.expect(page, "line")
    self.assertEqual({a for a in self.addresses if not a.startswith(self.url)}, set())

  def test_one_request_at_a_time(self):
    page = self.opened()
    self.fill(page)
    running, most, count = set(), 0, 0

    def begun(request):
      nonlocal most, count
      if request.url.endswith("/name"):
        running.add(request)
        most, count = max(most, len(running)), count + 1

    page.on("request", begun)
    page.on("requestfinished", lambda request: running.discard(request))
    self.draw(page, page.locator("#query .pad"), WHEEL)
    self.expect(page, "wheel")
    self.assertEqual(most, 1)
    self.assertGreater(count, 1)

  def test_the_learners(self):
    page = self.opened()
    self.fill(page)
    self.draw(page, page.locator("#query .pad"), HOOK)
    self.expect(page, "hook")
    page.get_by_label("Learner").select_option("two")
    sync_api.expect(page.locator("#verdict")).to_contain_text("at most 2 classes")
    sync_api.expect(page.get_by_role("button", name="Add a class")).to_be_disabled()
    page.get_by_label("Learner").select_option("photographs")
    sync_api.expect(page.locator("#verdict")).to_contain_text("First give an example")
    self.draw(page, page.locator("#query .pad"), HOOK)  # does nothing here
    colors = {"red": (200, 30, 30), "green": (30, 200, 30)}
    for number, (name, color) in enumerate(colors.items()):
      files = [file_of(f"{i}.png", np.full((90, 120, 3), color) + i) for i in range(2)]
      self.card(page, number).locator("input[type=text]").fill(name)
      self.card(page, number).locator("input[type=file]").set_input_files(files)
      sync_api.expect(self.card(page, number).locator(".strip button")).to_have_count(1)
    dropped = page.evaluate_handle(
      """async (bytes) => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], "drop.png"));
        return files;
      }""",
      list(file_of("", np.full((90, 120, 3), (60, 180, 40)))["buffer"]),
    )
    page.locator("#query .pad").dispatch_event("drop", {"dataTransfer": dropped})
    self.expect(page, "green")
    self.shoot(page, "photographs")
    page.get_by_label("Learner").select_option("drawings")
    self.expect(page, "hook")

  def test_uploads_that_are_refused(self):
    page = self.opened()
    choose = self.card(page, 0).locator("input[type=file]")
    problem = self.card(page, 0).locator(".problem")
    choose.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    sync_api.expect(problem).to_contain_text("a.png is damaged or not a picture")
    self.shoot(page, "bad_upload")
    large = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), "b.png")
    large.write_bytes(bytes(20 * 2**20))
    choose.set_input_files(large)
    sync_api.expect(problem).to_contain_text("b.png has 20 MB; at most 16 MB")
    page.evaluate("maxBytes = Infinity")  # and what the server says of it
    choose.set_input_files(large)
    sync_api.expect(problem).to_contain_text("At most 16 MB can be sent")
    choose.set_input_files(file_of("c.png", 255 * np.eye(40)))
    sync_api.expect(problem).to_be_hidden()
    sync_api.expect(self.card(page, 0).locator(".pad.filled")).to_have_count(1)
    # The browser reports answers of 400 and 413 by itself.
    refused = [text for text in self.problems if "status of 4" in text]
    self.assertLen(refused, 2)
    self.problems = [text for text in self.problems if text not in refused]

  def test_a_phone(self):
    page = self.opened(
      viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    devtools = page.context.new_cdp_session(page)

    def touch(pad, strokes):
      canvas = pad.locator("canvas").first
      canvas.scroll_into_view_if_needed()
      box, scrolled = canvas.bounding_box(), page.evaluate("scrollY")

      def send(kind, *points):
        devtools.send(
          "Input.dispatchTouchEvent",
          {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]},
        )

      for stroke in strokes:
        places = [
          (box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke
        ]
        send("touchStart", places[0])
        for place in places[1:]:
          send("touchMove", place)
        send("touchEnd")
      self.assertEqual(page.evaluate("scrollY"), scrolled)

    for number, strokes in enumerate((HOOK, WHEEL, ZIGZAG)):
      touch(self.card(page, number).locator(".pad"), strokes)
    touch(page.locator("#query .pad"), WHEEL)
    self.expect(page, "Class 2")
    self.shoot(page, "phone")
    self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), 360)
    sizes = page.evaluate(
      """[...document.querySelectorAll("button, .button, select, input[type=text]")]
         .map((e) => e.getBoundingClientRect()).filter((r) => r.width)
         .map((r) => Math.min(r.width, r.height))"""
    )
    self.assertGreaterEqual(min(sizes), 28)

  def test_the_keyboard(self):
    page = self.opened()
    self.fill(page)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#learner").focus()
    reached = []
    for _ in range(60):
      page.keyboard.press("Tab")
      name, outline = page.evaluate(
        """() => {
          const at = document.activeElement;
          const inside = at.matches("canvas, [type=file]");
          const shown = inside ? at.parentElement : at;
          return [at.ariaLabel || at.textContent.trim(),
                  parseFloat(getComputedStyle(shown).outlineWidth)];
        }"""
      )
      if name in reached:
        break
      reached.append(name)
      self.assertGreaterEqual(outline, 2, name)
    expected = [
      "Name of class 1",
      "Remove hook",
      "hook: 1 stroke",
      "Choose an image of hook",
      "Undo: hook",
      "Clear hook",
      "Another example of hook",
      "Name of class 2",
    ]
    self.assertEqual(reached[: len(expected)], expected)
    self.assertContainsSubset(
      ["Add a class", "New drawing: empty", "Choose an image of New drawing"], reached
    )

    with self.subTest("keys on the pad"):
      pad = self.card(page, 1).locator("canvas").first
      pad.focus()
      page.keyboard.press("Control+z")
      self.assertEqual(pad.get_attribute("aria-label"), "wheel: 1 stroke")
      page.keyboard.press("Delete")
      self.assertEqual(pad.get_attribute("aria-label"), "wheel: empty")
      page.keyboard.press("Control+z")
      page.keyboard.press("Control+z")
      self.assertEqual(pad.get_attribute("aria-label"), "wheel: empty")
    with self.subTest("a picture is pasted"):
      page.locator("#query canvas").focus()
      page.evaluate(
        """(bytes) => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([new Uint8Array(bytes)], "paste.png"));
          document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(file_of("", self.photo_of_zigzag())["buffer"]),
      )
      self.expect(page, "zigzag")

  def photo_of_zigzag(self):
    from experiments import _demo_drawing as drawing

    strokes = [np.array(stroke) for stroke in ZIGZAG]
    hand = drawing.HANDS["characters"]
    return 255 - drawing.render(strokes, size=(120, 120), hand=hand)[..., 0]

  def test_a_server_that_stops_and_returns(self):
    with contextlib.ExitStack() as stack:
      url = stack.enter_context(demo_pages.served())
      page = self.opened(url)
      self.fill(page)
      sync_api.expect(page.locator("#gone")).to_be_hidden()
      stack.close()
      self.draw(page, page.locator("#query .pad"), HOOK)
      sync_api.expect(page.locator("#gone")).to_be_visible()
      sync_api.expect(page.locator("#gone")).to_contain_text("The server has stopped.")
      self.shoot(page, "gone")
      port = int(url.rpartition(":")[2])
      stack.enter_context(demo_pages.served(port))
      self.expect(page, "hook")
      sync_api.expect(page.locator("#gone")).to_be_hidden()
    self.problems = [p for p in self.problems if "ERR_CONNECTION_REFUSED" not in p]


if __name__ == "__main__":
  absltest.main()
