"""`python -m jsharp.predict` on folders of images, with a learner that was saved."""

import contextlib
import csv
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from PIL import Image

from jsharp import learners
from jsharp._commands import predict
from jsharp.algorithms.protonet import ProtoNet
from jsharp.models.mlp import MLPOptions


def draw(path, label, rng):
  """An image of a class: 6x6 with a bright stripe."""
  image = rng.integers(0, 60, (6, 6), np.uint8)
  image[2 * label : 2 * label + 2] += 150
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


class PredictTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.root = pathlib.Path(directory)
    cls.model = cls.root / "learner"
    learners.save(
      learners.build(
        learners.Description(
          algorithm=ProtoNet(),
          network=MLPOptions(),
          num_outputs=3,
          input_shape=(6, 6, 1),
        )
      ),
      cls.model,
    )
    rng = np.random.default_rng(0)
    for label, name in enumerate(("sky", "sea", "ant hill")):
      for number in range(2):
        draw(cls.root / "examples" / name / f"{number}.png", label, rng)
      draw(cls.root / "known" / name / "new.png", label, rng)
      draw(cls.root / "new" / f"{name}.png", label, rng)

  def call(self, *arguments, model=None):
    out, err = io.StringIO(), io.StringIO()
    words = [f"--model={model or self.model}", f"--support={self.root / 'examples'}"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      code = predict.start([*words, *map(str, arguments)], flags.FlagValues())
    return code, out.getvalue(), err.getvalue()

  def test_a_table(self):
    code, out, err = self.call(f"--images={self.root / 'new'}", "--top=2")
    self.assertEqual(code, 0)
    rows = [re.split("  +", line) for line in out.splitlines()]
    self.assertLen(rows, 3)
    for row in rows:
      named = pathlib.Path(row[0]).stem
      self.assertStartsWith(row[1], f"{named} ")
      self.assertEndsWith(row[-1], " %")
    self.assertIn("ant hill, sea, sky", err)
    self.assertIn("adapted to 6 examples in", err)
    self.assertNotIn("match the name of their folder", err)

  def test_csv_and_json_have_the_same_figures(self):
    image = self.root / "new" / "sea.png"
    _, table, _ = self.call("--format=csv", image)
    _, document, _ = self.call("--format=json", image)
    (row,) = csv.DictReader(io.StringIO(table))
    (entry,) = json.loads(document)
    self.assertEqual((entry["file"], entry["name"]), (str(image), "sea"))
    self.assertEqual((row["file"], row["name"]), (str(image), "sea"))
    self.assertEqual(float(row["probability"]), entry["probability"])
    self.assertEqual(
      [row["name"], row["name_2"], row["name_3"]],
      [one["name"] for one in entry["top"]],
    )
    self.assertAlmostEqual(sum(one["probability"] for one in entry["top"]), 1, places=5)

  def test_any_name_of_a_file_is_one_line_and_can_be_read_back(self):
    name = os.fsdecode(b"a\n\x1b[31m\xff.png")
    image = self.root / "odd names" / name
    image.parent.mkdir()
    image.write_bytes((self.root / "new" / "sea.png").read_bytes())
    _, table, _ = self.call(image.parent)
    self.assertEqual(table.count("\n"), 1)
    self.assertIn("a\\n\\x1b[31m\\udcff.png", table)
    _, document, _ = self.call("--format=json", image.parent)
    self.assertEqual(json.loads(document)[0]["file"], str(image))

  def test_folders_that_are_called_after_classes_are_the_truth(self):
    code, out, err = self.call(f"--images={self.root / 'known'}")
    self.assertEqual((code, out.count("\n")), (0, 3))
    self.assertIn("3 of 3 match the name of their folder: 100.0 ± 0.0 %", err)

  @parameterized.parameters(
    (["--images=/nowhere"], "/nowhere does not exist"),
    ([], "--images is missing"),
    (["--images=x", "--top=0"], "top"),
    (["--images=x", "--policy=both"], "policy"),
  )
  def test_refuses(self, arguments, message):
    code, out, err = self.call(*arguments)
    self.assertEqual((code, out), (2, ""))
    self.assertIn(message, err)

  def test_names_every_image_that_cannot_be_read(self):
    for name in ("a.png", "b.png"):
      (self.root / name).write_bytes(b"no image")
    code, out, err = self.call(self.root / "a.png", self.root / "b.png")
    self.assertEqual((code, out), (2, ""))
    self.assertIn("a.png", err)
    self.assertIn("b.png", err)

  def test_unknown_learners_are_refused_with_those_that_come_with_jsharp(self):
    code, _, err = self.call(self.root / "new", model="/nowhere")
    self.assertEqual(code, 2)
    self.assertIn("does not contain a learner", err)

  def test_as_a_program(self):
    done = subprocess.run(
      [sys.executable, "-m", "jsharp.predict", "--help"],
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertIn("--support:", done.stdout)
    done = subprocess.run(
      [sys.executable, "-c", "import jsharp.evaluate"], capture_output=True, text=True
    )
    self.assertIn("`from jsharp import evaluate`", done.stderr)


if __name__ == "__main__":
  absltest.main()
