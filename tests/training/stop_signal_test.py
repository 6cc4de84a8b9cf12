import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized

from jsharp.training import stop_signal
from jsharp.training.stop_signal import StopRequested, StopSignal

_DEAF = """
import signal, time
from jsharp.training.stop_signal import StopSignal
signal.signal(signal.SIGINT, signal.default_int_handler)
with StopSignal() as stop:
  print("ready", flush=True)
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    sum(range(10**7))  # Calls that keep the interpreter's lock, as a compilation does.
"""


class StopSignalTest(parameterized.TestCase):
  def _wait_for(self, stop):
    deadline = time.monotonic() + 10
    while not stop.requested and time.monotonic() < deadline:
      time.sleep(0.01)

  @parameterized.parameters(
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)
  )
  def test_the_first_signal_is_a_request(self, signum, exit_code):
    if signal.getsignal(signum) is signal.SIG_IGN:
      self.skipTest(f"{signum.name} is ignored here")
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    threads = threading.active_count()
    with StopSignal() as stop:
      self.assertFalse(stop.requested)
      self.assertEqual(stop.exit_code, 0)
      stop.check()
      os.kill(os.getpid(), signum)
      self._wait_for(stop)
      self.assertEqual(stop.exit_code, exit_code)
      with self.assertRaises(StopRequested):
        stop.check()
    after = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    self.assertEqual(after, before)
    self.assertEqual(threading.active_count(), threads)
    self.assertTrue(stop.requested)

  def test_the_request_does_not_wait_for_the_watching_thread(self):
    with (
      mock.patch.object(StopSignal, "_watch", lambda self: None),
      StopSignal() as stop,
    ):
      signal.raise_signal(signal.SIGTERM)
      with self.assertRaises(StopRequested):
        stop.check()
    self.assertEqual(stop.exit_code, 143)

  def _send(self, *, pauses, at_once=False):
    """Sends SIGTERMs with pauses; returns the codes that the process would end with."""
    ends = []
    now = [100.0]
    with (
      mock.patch.object(os, "_exit", ends.append),
      mock.patch.object(stop_signal, "_say"),
      mock.patch.object(stop_signal.time, "monotonic", lambda: now[0]),
      StopSignal() as stop,
      stop.ending_at_once() if at_once else contextlib.nullcontext(),
    ):
      for pause in (0, *pauses):
        now[0] += pause
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)  # For the thread that watches.
    self.assertTrue(stop.requested)
    return ends

  def test_signals_of_the_same_half_second_are_one(self):
    self.assertEqual(self._send(pauses=(0.2, 0.2)), [])
    self.assertEqual(self._send(pauses=(0.2, 0.4)), [143])

  def test_while_nothing_is_unsaved_the_first_signal_ends_it(self):
    self.assertEqual(self._send(pauses=(), at_once=True), [143])

  def test_other_signals_go_on_as_before(self):
    heard = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    self.addCleanup(signal.signal, signal.SIGUSR1, previous)
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGUSR1)
      time.sleep(0.05)
    self.assertEqual((heard, stop.requested), ([1], False))

  def test_an_ignored_signal_stays_ignored(self):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    self.addCleanup(signal.signal, signal.SIGINT, previous)
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.05)
    self.assertFalse(stop.requested)

  @parameterized.parameters((signal.SIGTERM, 143), (signal.SIGINT, 130))
  def test_the_second_signal_ends_it_at_once(self, signum, exit_code):
    process = subprocess.Popen(
      [sys.executable, "-c", _DEAF],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    self.addCleanup(process.kill)
    self.assertEqual(process.stdout.readline(), "ready\n")
    process.send_signal(signum)
    self.assertEqual(process.stderr.readline(), "\n")
    self.assertIn("saving and stopping", process.stderr.readline())
    self.assertIsNone(process.poll())
    time.sleep(stop_signal.SAME_SECONDS)
    start = time.monotonic()
    process.send_signal(signum)
    _, error = process.communicate(timeout=30)
    self.assertEqual(process.returncode, exit_code)
    self.assertIn("stopping at once", error)
    self.assertLess(time.monotonic() - start, 5)


if __name__ == "__main__":
  absltest.main()
