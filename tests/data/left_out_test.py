"""Tests of jsharp.data._left_out: what is hidden, and what is said of the rest."""

from absl.testing import absltest, parameterized

from jsharp.data import _left_out


class LeftOutTest(parameterized.TestCase):
  @parameterized.parameters(
    ".DS_Store",
    "a/.git/1.png",
    "a/._1.png",
    "__MACOSX/a/1.png",
    "a/Thumbs.db",
    "a/thumbs.db",
    "Desktop.ini",
  )
  def test_files_of_systems_are_hidden(self, path):
    self.assertTrue(_left_out.is_hidden(path))

  @parameterized.parameters(
    "_1.png",
    "__background__/1.png",
    "./a/1.png",
    "../a/1.png",
    "a.b/1..png",
    "MACOSX/1",
  )
  def test_all_others_are_not(self, path):
    self.assertFalse(_left_out.is_hidden(path))

  def test_one_line_counts_and_names_the_others(self):
    left_out = _left_out.LeftOut("photos")
    self.assertTrue(left_out.is_image("a/1.PNG"))
    with self.assertNoLogs():
      left_out.warn()
    for name in ("b.txt", "a.heic", "a.heic"):
      self.assertFalse(left_out.is_image(name))
    with self.assertLogs() as logs:
      left_out.warn()
    (line,) = logs.output
    self.assertRegex(line, "photos: ignored 2 files that are not PNG.*: a.heic, b.txt$")
    with self.assertNoLogs():  # It has been said.
      left_out.warn()
    left_out.add(f"{i}.txt" for i in range(9))
    with self.assertLogs() as logs:
      left_out.warn()
    self.assertRegex(
      logs.output[0], "ignored 9 files .*: 0.txt, 1.txt, .*, 4.txt, ...$"
    )


if __name__ == "__main__":
  absltest.main()
