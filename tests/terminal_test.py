"""Printing where nobody reads, a disk is full or a stream is closed."""

import pathlib
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest, parameterized

_PRINTS = textwrap.dedent(
  """
  import sys
  from jsharp import _terminal
  _terminal.open_streams()
  file = open(sys.argv[1], "w")
  for _ in range(1000):
    _terminal.tell("one line \\u00b1 \\udcff" * 9)
    _terminal.say("another")
  file.write("whole")
  """
)


class TerminalTest(parameterized.TestCase):
  @parameterized.parameters(
    "{} | head -1", "{} > /dev/full", "{} >&-", "{} 2>&-", "{} >&- 2>&- <&-"
  )
  def test_no_stream_ends_a_program(self, form):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    file = pathlib.Path(folder, "file")
    command = form.format(f"'{sys.executable}' -S -c \"$0\" '{file}'")
    done = subprocess.run(
      ["bash", "-o", "pipefail", "-c", command, _PRINTS],
      capture_output=True,
      env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii"},
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertNotIn(b"Traceback", done.stderr)
    self.assertEqual(file.read_text(), "whole")


if __name__ == "__main__":
  absltest.main()
