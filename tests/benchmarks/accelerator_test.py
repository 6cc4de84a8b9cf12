"""The benchmark for a short loan of an accelerator, on the CPU."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest

from benchmarks import accelerator, cases

_FINISHES = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text('{"finished": true, "cases": {"a": {"value": 1}}}')
"""
_FAILS = "raise ValueError('no such device')"
_HANGS = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1])
path.write_text('{"finished": false, "cases": {"a": {"value": 1}}}')
time.sleep(100)
"""


class PartsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _run(self, codes, seconds=60.0):
    def part(name, code):
      command = [sys.executable, "-c", code, str(self.out / f"{name}.json")]
      return lambda end: accelerator.run_part(name, command, self.out, end)

    parts = {name: part(name, code) for name, code in codes.items()}
    accelerator.run_all(parts, self.out, seconds)
    return {name: cases.read(self.out / f"{name}.json") for name in codes}

  def test_a_part_that_fails_does_not_stop_the_others(self):
    codes = {"checks": _FAILS, "speed": _FINISHES}
    first = self._run(codes)
    self.assertFalse(first["checks"]["finished"])
    self.assertEqual(first["checks"]["stopped"], "exit code 1")
    self.assertIn("ValueError: no such device", first["checks"]["output"])
    self.assertTrue(first["speed"]["finished"])
    # The next start repeats what failed and leaves alone what is finished.
    second = self._run({"checks": _FINISHES, "speed": _FAILS})
    self.assertTrue(second["checks"]["finished"])
    self.assertEqual(second["speed"], first["speed"])

  def test_a_part_is_stopped_at_its_time_and_keeps_its_results(self):
    start = time.monotonic()
    found = self._run({"checks": _HANGS, "speed": _FINISHES}, seconds=6.0)
    self.assertLess(time.monotonic() - start, 50.0)
    self.assertEqual(found["checks"]["stopped"], "its time was over")
    self.assertEqual(found["checks"]["cases"], {"a": {"value": 1}})
    self.assertTrue(found["speed"]["finished"])

  def test_a_case_that_fails_is_recorded_and_repeated(self):
    path, calls = self.out / "part.json", []

    def broken(values):
      calls.append(dict(values))
      raise ValueError("no memory")

    def works(values):
      calls.append(dict(values))
      return 2

    cases.run(path, {"first": works, "second": broken, "third": works}, about={})
    self.assertEqual(calls, [{}, {"first": 2}, {"first": 2}])
    record = cases.read(path)
    self.assertFalse(record["finished"])
    self.assertIn("ValueError: no memory", record["cases"]["second"]["error"])
    self.assertEqual(record["cases"]["third"]["value"], 2)
    calls.clear()
    cases.run(path, {"first": works, "second": works, "third": works}, about={})
    self.assertLen(calls, 1)
    self.assertTrue(cases.read(path)["finished"])

  def test_tiny(self):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--tiny"]

    def run():
      done = subprocess.run(
        [*command, f"--out={self.out}"],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      return done.stdout

    text = run()
    checks = json.loads((self.out / "checks.json").read_text())
    self.assertTrue(checks["finished"], text)
    values = {name: case["value"] for name, case in checks["cases"].items()}
    bits = {"resumed is bitwise": True, "repeated is bitwise": True}
    self.assertEqual(values["resume"], bits)
    for name in ("algorithm protonet", "optimizer sam"):
      self.assertLess(values[name]["smallest"], 1e-4)
    speed = json.loads((self.out / "speed.json").read_text())
    self.assertTrue(speed["finished"], text)
    (cell,) = [case for name, case in speed["cases"].items() if "jsharp" in name]
    self.assertGreater(cell["value"]["tasks/s"], 0)
    self.assertIn("training: skipped: no --data_dir", text)
    self.assertIn("| tiny | fomaml | float32 | 2 |", text)
    again = run()
    for part in ("checks", "speed"):
      self.assertIn(f"{part}: finished before", again)


if __name__ == "__main__":
  absltest.main()
