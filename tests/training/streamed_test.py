"""Training on batches that come from the host, one by one."""

import pathlib
import tempfile
import time
from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest

from jsharp._files import FileError
from jsharp.data.streams import Stream
from jsharp.training import NonFiniteLossError, StopSignal, dispatch, train
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.run_directory import RunDirectory
from tests import toy_runs

_STEPS = 30
_ARGUMENTS = {
  "num_steps": _STEPS,
  "num_tasks": toy_runs.NUM_TASKS,
  "log_every": 5,
  "eval_every": 10,
  "validate": toy_runs.validate,
  "progress": False,
}


class _Tasks(Stream):
  """The toy's tasks as a stream; `before(step)` is called first."""

  def __init__(self, before=lambda step: None):
    self._before = before
    self.spec = jax.eval_shape(lambda: toy_runs.sample_tasks(0, toy_runs.data()))
    self.begun = []

  def batches(self, first=0):
    self.begun.append(first)
    for step in range(first, _STEPS):
      self._before(step)
      yield _sample(jnp.int32(step))


_sample = jax.jit(lambda step: toy_runs.sample_tasks(step, toy_runs.data()))


class StreamedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(folder)

  def _train(self, name, data=None, sample=None, **overrides):
    default = toy_runs.sample_tasks if data is None else lambda step, data: data
    sample = sample or default
    with RunDirectory.open(self.root / name, identity={"toy": 1}) as run:
      result = train(
        toy_runs.algorithm(),
        toy_runs.params(),
        sample,
        toy_runs.data() if data is None else data,
        run=run,
        **{**_ARGUMENTS, **overrides},
      )
      return result, toy_runs.steady(run.read_metrics())

  def _saved(self, name):
    template = toy_runs.algorithm().init(toy_runs.params())
    return Checkpoints(self.root / name / "checkpoints").restore(template).tree

  def test_a_stream_gives_the_bits_of_data_in_memory(self):
    whole, records = self._train("memory")
    stream = _Tasks()
    found, streamed = self._train("stream", stream)
    self.assertTrue(toy_runs.same_bits(found.state, whole.state))
    self.assertEqual(streamed, records)
    self.assertEqual(stream.begun, [0])
    self.assertGreater(found.tasks_per_second, 0)

  def test_an_error_of_the_stream_loses_nothing(self):
    whole, records = self._train("whole", _Tasks())

    def before(step):
      if step == 17:
        raise ValueError("17.JPEG cannot be decoded")

    with self.assertRaisesRegex(FileError, "17.JPEG cannot be decoded"):
      self._train("cut", _Tasks(before))
    self.assertEqual(int(self._saved("cut").step), 17)
    mended = _Tasks()
    found, resumed = self._train("cut", mended)
    self.assertEqual(mended.begun, [17])
    self.assertTrue(toy_runs.same_bits(found.state, whole.state))
    self.assertEqual(resumed, records)

  def test_a_stop_while_a_batch_is_waited_for(self):
    stop = StopSignal()

    def before(step):
      if step == 9:
        time.sleep(0.3)  # All that was read before is computed meanwhile.
        stop.request()
        raise RuntimeError("the workers were stopped too")

    result, _ = self._train("stopped", _Tasks(before), stop=stop)
    self.assertTrue(result.interrupted)
    self.assertEqual(int(self._saved("stopped").step), 9)

  def test_a_step_that_is_not_finite_is_not_taken(self):
    class Bad(_Tasks):
      def batches(self, first=0):
        for step, tasks in enumerate(super().batches(first), first):
          bad = (step == 11) & (jnp.arange(toy_runs.NUM_TASKS) == 2)
          targets = jnp.where(bad[:, None], jnp.nan, tasks.query.targets)
          yield tasks._replace(query=tasks.query._replace(targets=targets))

    for name, first in (("far", 0), ("long", 8)):
      with self.subTest(name):
        # Both with one step per dispatch and with several.
        with (
          mock.patch.object(dispatch, "_SECONDS", 100.0 if first else 0.0),
          self.assertRaisesRegex(NonFiniteLossError, "task 2 .* meta-step 12"),
        ):
          self._train(name, Bad())
        self.assertEqual(int(self._saved(name).step), 11)

  def test_another_step_begins_the_stream_again(self):
    stream, state = _Tasks(), toy_runs.algorithm().init(toy_runs.params())
    dispatcher = dispatch.Dispatcher(
      toy_runs.algorithm(), lambda step, data: data, num_tasks=toy_runs.NUM_TASKS
    )
    dispatcher.compile(state, stream)
    self.addCleanup(dispatcher.close)
    copies = [jax.tree.map(jnp.array, state) for _ in range(2)]
    losses = [dispatcher.run(copy, stream, 1)[1].metrics["loss"] for copy in copies]
    self.assertEqual(losses[0].tolist(), losses[1].tolist())
    self.assertEqual(stream.begun, [0, 0])

  def test_several_devices_are_refused(self):
    with self.assertRaisesRegex(ValueError, "streamed tasks support only one device"):
      self._train("two", _Tasks(), num_devices=2)


if __name__ == "__main__":
  absltest.main()
