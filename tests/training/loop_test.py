import contextlib
import itertools
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jsharp._files import write_atomically
from jsharp.training import checkpoints as checkpoint
from jsharp.training import loop as training
from jsharp.training.checkpoints import Checkpoints
from jsharp.training.dispatch import Dispatcher
from jsharp.training.loop import NonFiniteLossError, StopSignal
from jsharp.training.records import Records
from jsharp.training.run_directory import RunDirectory
from tests import toy_runs
from tests.toy_runs import run_toy, same_bits, steady

_DISPATCHER = Dispatcher(
  toy_runs.algorithm(), toy_runs.sample_tasks, num_tasks=toy_runs.NUM_TASKS
)


class _Killed(BaseException):
  """Like a SIGKILL: no handler of an ordinary exception sees it."""


@contextlib.contextmanager
def _killed_at(call, *, after):
  """Dies before or after the `call`-th write of any kind."""
  calls = itertools.count(1)

  def killing(function):
    def wrapped(*args, **kwargs):
      due = next(calls) == call
      if due and not after:
        raise _Killed
      function(*args, **kwargs)
      if due:
        raise _Killed

    return wrapped

  append = killing(RunDirectory.append_metrics)
  with (
    mock.patch.object(checkpoint, "write_atomically", killing(write_atomically)),
    mock.patch.object(RunDirectory, "append_metrics", append),
  ):
    yield


@contextlib.contextmanager
def _stopping_at(step):
  """A stop signal that comes while the dispatch that reaches `step` runs."""
  stop, add = StopSignal(), Records.add

  def adding(records, reached, done):
    add(records, reached, done)
    if reached >= step:
      stop.request()

  with mock.patch.object(Records, "add", adding):
    yield stop


@contextlib.contextmanager
def _counting_compilations():
  """The number of programs that were compiled (or read from a cache) so far."""
  events = []

  def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield lambda: len(events)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


class TrainingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    # All tests here train one toy: compiled once for all of them.
    patch = mock.patch.object(training, "Dispatcher", lambda *_, **__: _DISPATCHER)
    patch.start()
    self.addCleanup(patch.stop)
    events = mock.patch("jsharp.training.records.EventFiles")
    events.start()
    self.addCleanup(events.stop)

  def _train(self, num_steps, name="run", **overrides):
    with RunDirectory.open(self.root / name, identity={}) as run:
      result = run_toy(run, num_steps, **overrides)
      return result, steady(run.read_metrics())

  def test_records_and_result(self):
    result, records = self._train(23)
    self.assertFalse(result.interrupted)
    self.assertIsNone(result.resumed_from)
    self.assertEqual(result.state.step, 23)
    self.assertGreater(result.tasks_per_second, 0)
    trained = [r for r in records if "loss" in r]
    validated = [r for r in records if "val_loss" in r]
    self.assertEqual([r["step"] for r in trained], [5, 10, 15, 20, 23])
    self.assertEqual([r["step"] for r in validated], [10, 20, 23])
    self.assertEqual(trained[0].keys(), {"step", "loss", "accuracy"})
    best = max(validated, key=lambda r: r["val_accuracy"])
    self.assertEqual(result.best_step, best["step"])
    self.assertEqual(result.best_score, best["val_accuracy"])
    self.assertEqual(toy_runs.validate(result.best_params)["loss"], best["val_loss"])

  def test_a_line_is_the_mean_over_its_steps(self):
    algorithm, state, losses = toy_runs.algorithm(), None, []
    state = algorithm.init(toy_runs.params())
    step = jax.jit(algorithm.step)
    for _ in range(6):
      state, metrics = step(state, toy_runs.sample_tasks(state.step, toy_runs.data()))
      losses.append(float(metrics["loss"].mean()))
    _, records = self._train(6, log_every=3, validate=None)
    means = [r["loss"] for r in records]
    np.testing.assert_allclose(means, [np.mean(losses[:3]), np.mean(losses[3:])], 1e-5)

  def test_nothing_is_compiled_after_the_first_validation(self):
    by_validation, lengths = [], []
    dispatcher = Dispatcher(
      toy_runs.algorithm(), toy_runs.sample_tasks, num_tasks=toy_runs.NUM_TASKS
    )
    take_dispatch = dispatcher.run

    def run_and_look(state, data, longest):
      state, done = take_dispatch(state, data, longest)
      lengths.append(done.num_steps)
      return state, done

    def validate(params):
      metrics = toy_runs.validate(params)
      by_validation.append(count())
      return metrics

    with (
      _counting_compilations() as count,
      mock.patch.object(training, "Dispatcher", lambda *_, **__: dispatcher),
      mock.patch.object(dispatcher, "run", run_and_look),
    ):
      before = count()
      self._train(40, validate=validate, log_every=7, keep_top=2, keep_path=True)
    self.assertGreater(len(set(lengths)), 2)
    self.assertLen(by_validation, 4)
    self.assertGreater(by_validation[0], before)
    self.assertLen(set(by_validation), 1)

  def test_speed_and_time_are_recorded(self):
    with RunDirectory.open(self.root / "run", identity={}) as run:
      run_toy(run, 5)
      record = run.read_metrics()[0]
    self.assertGreater(record["tasks_per_second"], 0)
    self.assertGreater(record["wall_time"], 1.7e9)

  def test_going_on_from_any_step_gives_the_same_bits(self):
    whole, records = self._train(20, "whole")
    for step in range(1, 20):
      name = f"stopped at {step}"
      with (
        mock.patch("jsharp.training.dispatch._SECONDS", 0),
        mock.patch.object(_DISPATCHER, "length", 1),
        _stopping_at(step) as stop,
      ):
        result, _ = self._train(20, name, stop=stop)
      self.assertTrue(result.interrupted)
      self.assertEqual(result.state.step, step)
      again, again_records = self._train(20, name)
      self.assertFalse(again.interrupted)
      self.assertEqual(again.resumed_from, step)
      self.assertEqual(again_records, records)
      self.assertTrue(same_bits(again.state, whole.state))
      self.assertEqual(again[2:4], whole[2:4])
      self.assertTrue(same_bits(again.best_params, whole.best_params))

  @parameterized.product(after=(False, True), checkpoint_seconds=(0, 1e9))
  def test_a_kill_at_any_write_changes_nothing(self, after, checkpoint_seconds):
    arguments = {"checkpoint_seconds": checkpoint_seconds}
    arguments |= {"keep_top": 1, "keep_path": True}
    whole, records = self._train(20, "whole", **arguments)
    path = self._path("whole")
    self.assertEqual([*path], [0, 10, 20])
    for call in itertools.count(1):
      name = f"killed at {call}"
      with _killed_at(call, after=after):
        try:
          self._train(20, name, **arguments)
          break
        except _Killed:
          pass
      again, again_records = self._train(20, name, **arguments)
      self.assertEqual(again_records, records)
      self.assertTrue(same_bits(again.state, whole.state))
      self.assertEqual(again[2:4], whole[2:4])
      self.assertTrue(same_bits(again.best_params, whole.best_params))
      self.assertEqual(again.top[0].extra, whole.top[0].extra)
      self.assertTrue(same_bits(again.top[0].tree, whole.best_params))
      self.assertTrue(same_bits(self._path(name), path))
    self.assertGreater(call, 12)

  def _path(self, name):
    """What a run has kept of its path: parameters by step."""
    checkpoints = Checkpoints(self.root / name / "checkpoints")
    found = checkpoints.restore_path(toy_runs.params())
    return {one.step: one.tree for one in found}

  def test_a_path_goes_from_the_initial_parameters_to_the_last_ones(self):
    result, _ = self._train(23, keep_path=True)
    path = self._path("run")
    self.assertEqual([*path], [0, 10, 20, 23])
    self.assertTrue(same_bits(path[0], toy_runs.params()))
    self.assertTrue(same_bits(path[23], result.state.params))
    self.assertTrue(same_bits(path[result.best_step], result.best_params))
    with self.assertRaisesRegex(ValueError, "keep_path=True .*pass validate"):
      self._train(10, "other", keep_path=True, validate=None)

  def test_a_validation_cut_short_is_made_up_for(self):
    whole, records = self._train(20, "whole")
    stop = StopSignal()

    def validate(params):
      stop.request()
      stop.check()

    result, cut = self._train(20, validate=validate, stop=stop)
    self.assertTrue(result.interrupted)
    self.assertEqual((result.state.step, result.best_score), (10, None))
    self.assertTrue(same_bits(result.best_params, result.state.params))
    self.assertEqual([r["step"] for r in cut], [5, 10])
    again, again_records = self._train(20)
    self.assertEqual(again_records, records)
    self.assertTrue(same_bits(again.state, whole.state))

  def test_a_stop_before_the_first_step(self):
    stop = StopSignal()
    stop.request()
    result, records = self._train(20, stop=stop)
    self.assertEqual((result.state.step, result.interrupted, records), (0, True, []))
    self.assertEqual(self._train(20)[0].resumed_from, 0)

  def test_more_steps_later(self):
    whole, _ = self._train(30, "whole")
    self._train(10)
    result, records = self._train(30)
    self.assertTrue(same_bits(result.state, whole.state))
    self.assertEqual(result.best_score, whole.best_score)
    again, same = self._train(20)
    self.assertEqual((again.state.step, same), (30, records))

  def test_a_damaged_newest_checkpoint(self):
    whole, records = self._train(20, "whole")
    self._train(20)
    newest = self.root / "run" / "checkpoints" / "step_00000020.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with self.assertLogs("absl", "WARNING") as logs:
      result, again = self._train(20)
    self.assertIn("step_00000020.npz is damaged", logs.output[0])
    self.assertLess(result.resumed_from, 20)
    self.assertEqual(again, records)
    self.assertTrue(same_bits(result.state, whole.state))

  def test_a_damaged_best_checkpoint_is_named_in_the_result(self):
    scores = {"validate": lambda params: {"accuracy": next(values)}}
    values = iter([0.1, 0.2, 0.3])
    result, _ = self._train(30, **scores)
    self.assertEqual((result.best_step, result.damaged), (30, ()))
    path = self.root / "run" / "checkpoints" / "best_00000030.npz"
    path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):  # It is remembered.
      with mock.patch("absl.logging.warning"):
        result, _ = self._train(30, **scores)
      self.assertEqual(
        (result.best_step, result.damaged), (20, (f"{path.name}.damaged",))
      )

  def test_records_that_are_missing_are_told(self):
    _, records = self._train(20)
    path = self.root / "run" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with self.assertLogs("absl", "WARNING") as logs:
      _, found = self._train(30)
    self.assertIn(f"has 2 of the {len(records)} records that its", logs.output[0])
    self.assertEqual(found[:2], records[:2])
    self.assertGreater(found[2]["step"], 20)

  def test_without_its_checkpoints_a_run_keeps_the_records_that_it_had(self):
    _, records = self._train(20)
    shutil.rmtree(self.root / "run" / "checkpoints")
    path = self.root / "run" / "metrics.jsonl"
    before = path.read_bytes()
    with self.assertLogs("absl", "WARNING") as logs:
      _, found = self._train(20)
    self.assertIn("training starts at step 0 again", logs.output[0])
    self.assertEqual(path.with_name("metrics.jsonl.before").read_bytes(), before)
    self.assertEqual(found, records)

  def test_the_earlier_of_two_equal_scores_is_best(self):
    scores = iter([0.2, 0.5, 0.5, 0.1])
    result, _ = self._train(
      40, validate=lambda params: {"accuracy": next(scores)}, eval_every=10
    )
    self.assertEqual((result.best_step, result.best_score), (20, 0.5))

  def test_the_best_few_are_kept_for_an_ensemble(self):
    scores = iter([0.2, 0.5, 0.4, 0.1])
    result, _ = self._train(
      40, validate=lambda params: {"accuracy": next(scores)}, keep_top=2
    )
    self.assertEqual([one.step for one in result.top], [20, 30])
    self.assertTrue(same_bits(result.top[0].tree, result.best_params))
    self.assertFalse(same_bits(result.top[1].tree, result.best_params))

  def test_a_bad_number_of_the_best_is_named(self):
    for keep_top in (-1, 1.5):
      with self.assertRaisesRegex(ValueError, f"keep_top .* got {keep_top}"):
        self._train(10, keep_top=keep_top)

  def test_the_best_stays_the_best_after_a_resume(self):
    self._train(10, validate=lambda params: {"accuracy": 0.9})
    result, _ = self._train(30, validate=lambda params: {"accuracy": 0.5})
    self.assertEqual((result.best_step, result.best_score), (10, 0.9))

  def test_score_functions_and_names(self):
    result, _ = self._train(30, score=lambda metrics: -metrics["loss"])
    loss = toy_runs.validate(result.best_params)["loss"]
    self.assertEqual(result.best_score, -loss)
    with self.assertRaisesRegex(ValueError, r"score='f1'.*\['accuracy', 'loss'\]"):
      self._train(10, "other", score="f1")

  def test_a_score_that_is_no_number_is_never_best(self):
    scores = iter([float("nan"), 0.5, float("nan")])
    result, records = self._train(
      30, validate=lambda params: {"accuracy": next(scores)}
    )
    self.assertEqual((result.best_step, result.best_score), (20, 0.5))
    self.assertIsNone(records[-1]["val_accuracy"])

  @parameterized.parameters((0, 1), (12, 3), (15, 0))
  def test_a_loss_that_is_not_finite(self, step, task):
    sample = toy_runs.sample_tasks_with_nan(step, task)
    dispatcher = Dispatcher(toy_runs.algorithm(), sample, num_tasks=toy_runs.NUM_TASKS)
    with mock.patch.object(training, "Dispatcher", lambda *_, **__: dispatcher):
      for _ in range(2):
        with self.assertRaises(NonFiniteLossError) as raised:
          self._train(20)
        self.assertEqual(raised.exception.step, step + 1)
        self.assertEqual(raised.exception.tasks, (task,))
        message = str(raised.exception)
        self.assertRegex(message, f"task {task} is not finite at meta-step {step + 1};")
        self.assertIn("smaller step size (inner_lr", message)
    template = toy_runs.algorithm().init(toy_runs.params())
    kept = Checkpoints(self.root / "run" / "checkpoints").restore(template)
    self.assertEqual(kept.step, step)
    if step:
      whole, _ = self._train(step, "whole")
      self.assertTrue(same_bits(kept.tree, whole.state))

  def test_several_tasks_are_named(self):
    error = NonFiniteLossError(7, (1, 3))
    self.assertIn("the loss of task 1, 3 is not finite at meta-step 7", str(error))

  def test_ordinary_training_has_examples_and_steps(self):
    message = str(NonFiniteLossError(7, (1, 3), "examples"))
    self.assertStartsWith(message, "the loss of example 1, 3 is not finite at step 7;")
    self.assertIn("after 6 steps is kept. Use a smaller step size (lr) or rho", message)
    state = str(NonFiniteLossError(7, (), "examples"))
    self.assertStartsWith(state, "the state after the update is not finite")
    for text in (message, state):
      self.assertNotRegex(text, "task|meta|inner|outer")

  @parameterized.parameters("metrics.jsonl", "checkpoints/")
  def test_a_full_disk(self, place):
    self._train(10)
    fsync = os.fsync

    def full(descriptor):
      if place in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(28, "No space left on device")
      fsync(descriptor)

    with (
      mock.patch("os.fsync", full),
      self.assertRaisesRegex(OSError, f"cannot write .*{place}.*No space left"),
    ):
      self._train(20)
    whole, records = self._train(20, "whole")
    result, again = self._train(20)
    self.assertTrue(same_bits(result.state, whole.state))
    self.assertEqual(again, records)

  def test_the_parameters_stay_the_callers(self):
    given = toy_runs.params()
    with mock.patch.object(toy_runs, "params", lambda: given):
      self._train(5)
    self.assertTrue(same_bits(given, toy_runs.params()))

  @parameterized.parameters("num_steps", "log_every", "eval_every")
  def test_counts_are_checked(self, name):
    arguments = {"num_steps": 10, name: 0}
    with self.assertRaisesRegex(ValueError, f"{name} must be an integer"):
      self._train(**arguments)

  def test_the_number_of_tasks_is_checked(self):
    dispatcher = Dispatcher(toy_runs.algorithm(), toy_runs.sample_tasks, num_tasks=3)
    with (
      mock.patch.object(training, "Dispatcher", lambda *_, **__: dispatcher),
      self.assertRaisesRegex(ValueError, "draws 4 tasks, but num_tasks=3"),
    ):
      self._train(5)

  def test_another_program_is_refused(self):
    self._train(5)
    other = {**toy_runs.params(), "w": jnp.zeros((3, 9))}
    with (
      mock.patch.object(toy_runs, "params", lambda: other),
      self.assertRaisesRegex(ValueError, r"params/w' is float32\[3, 8\]"),
    ):
      self._train(10)


if __name__ == "__main__":
  absltest.main()
