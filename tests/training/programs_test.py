"""Programs of their own: exit codes, output, stops. Signals: tests of comparisons."""

import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp.training import programs
from jsharp.training.programs import Interrupted, Runner, interruptible, run_all

PATIENT = """
import pathlib, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
pathlib.Path(sys.argv[1]).write_text("ready")
deadline = time.monotonic() + 20
while len(heard) < 2 and time.monotonic() < deadline:
  time.sleep(0.01)
sys.exit(len(heard))
"""


class RunnerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

  def test_exit_code_and_output(self):
    runner = Runner(self.out / "logs", lambda program: [sys.executable, "-S", "-c"])
    words = ["import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"]
    for _ in range(2):
      self.assertEqual(runner("any", "one", words), 7)
    text = (self.out / "logs" / "one.txt").read_text()
    self.assertCountEqual(text.split(), ["out", "err"] * 2)

  def test_nothing_starts_after_a_stop(self):
    started = self.out / "started"
    runner = Runner(self.out, lambda program: ["touch", str(started)])
    runner.stop()
    self.assertEqual(runner("any", "late", []), 143)
    self.assertFalse(started.exists())

  def test_waits_for_what_it_did_not_start(self):
    runner = Runner(self.out)
    busy = iter([True, False])
    with mock.patch.object(programs.time, "sleep"):
      runner.wait_while(lambda: next(busy))
      self.assertIsNone(next(busy, None))
      runner.stop()
      runner.wait_while(lambda: True)

  def test_its_output_follows_no_link(self):
    victim = self.out / "victim"
    victim.write_text("precious")
    (self.out / "one.txt").symlink_to(victim)
    with self.assertRaisesRegex(OSError, "it is a link; remove it"):
      Runner(self.out, lambda program: ["echo"])("any", "one", ["x"])
    self.assertEqual(victim.read_text(), "precious")

  def test_a_program_that_cannot_start_is_an_error(self):
    with self.assertRaisesRegex(OSError, "No such file"):
      Runner(self.out, lambda program: ["/nowhere"])("any", "one", [])

  def test_a_signal_while_stopping_asks_once_more(self):
    runner = Runner(self.out, lambda program: [sys.executable, "-S", "-c", PATIENT])
    ready = self.out / "ready"
    codes = []
    running = threading.Thread(
      target=lambda: codes.append(runner("any", "one", [str(ready)]))
    )
    running.start()
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
      time.sleep(0.01)
    said = []

    def say(what):
      said.append(what)
      if len(said) == 1:
        delay = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM])
        delay.start()
        self.addCleanup(delay.join)

    with interruptible():
      programs.stop_and_wait(runner.stop, say)
    running.join()
    self.assertEqual(codes, [2])
    self.assertLen(said, 2)
    self.assertEqual(said[1], "the runs end now")


class RunAllTest(parameterized.TestCase):
  def test_one_at_a_time_in_order_and_in_this_thread(self):
    threads = []

    def call(code):
      threads.append(threading.current_thread())
      return code

    calls = {str(code): lambda code=code: call(code) for code in (2, 0, 1)}
    self.assertEqual(list(run_all(calls, jobs=1)), [("2", 2), ("0", 0), ("1", 1)])
    self.assertEqual(set(threads), {threading.current_thread()})

  def test_several_at_a_time_in_the_order_of_their_ends(self):
    second = threading.Event()

    def wait():
      self.assertTrue(second.wait(20))
      return 0

    calls = {"first": wait, "second": lambda: second.set() or 1}
    ended = list(run_all(calls, jobs=2))
    self.assertCountEqual(ended, [("second", 1), ("first", 0)])

  @parameterized.parameters(1, 2)
  def test_an_error_ends_all(self, jobs):
    made = []

    def fail():
      raise OSError("no")

    def slow():
      time.sleep(0.05)
      made.append(1)
      return 0

    calls = {"bad": fail, **{str(i): slow for i in range(20)}}
    with self.assertRaisesRegex(OSError, "no"):
      list(run_all(calls, jobs=jobs))
    self.assertLess(len(made), 20)


class InterruptibleTest(parameterized.TestCase):
  @parameterized.parameters(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  def test_a_signal_raises_and_handlers_come_back(self, number):
    before = signal.default_int_handler  # Not what pytest was started with.
    self.addCleanup(signal.signal, number, signal.signal(number, before))
    with interruptible(), self.assertRaises(Interrupted) as caught:
      signal.raise_signal(number)
    self.assertEqual(caught.exception.args, (number,))
    self.assertIs(signal.getsignal(number), before)

  def test_a_signal_that_comes_twice_asks_once(self):
    with interruptible():
      with self.assertRaises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
      signal.raise_signal(signal.SIGTERM)

  def test_nohup_is_respected(self):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGHUP, before)
    with interruptible():
      signal.raise_signal(signal.SIGHUP)


if __name__ == "__main__":
  absltest.main()
