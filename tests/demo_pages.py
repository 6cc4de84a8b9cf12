"""The demo's page, served in this process, for its tests."""

import contextlib
import functools
import threading

import jsharp
from experiments import _demo_recognition, demo
from jsharp import learners
from jsharp.algorithms.maml import MAML
from jsharp.algorithms.protonet import ProtoNet
from jsharp.data import characters
from jsharp.data.characters import Characters
from jsharp.models.mlp import SineNetwork


@functools.cache
def learner(*, takes="drawings"):
  """A small learner with its initial parameters: near pixels are near."""
  shape = {"drawings": (28, 28, 1), "photographs": (16, 16, 3)}[takes]
  return jsharp.build(
    learners.Description(
      algorithm=ProtoNet(),
      network=SineNetwork(hidden_width=64),
      num_outputs=5,
      input_shape=shape,
      source=Characters() if takes == "drawings" else None,
    )
  )


@functools.cache
def recogniser():
  """Three learners: of drawings, of drawings of two classes at most, of photographs."""
  two = learners.Description(
    algorithm=MAML(),
    network=SineNetwork(hidden_width=64),
    num_outputs=2,
    input_shape=(28, 28, 1),
  )
  return _demo_recognition.Recogniser(
    {
      "drawings": learner(),
      "two": jsharp.build(two),
      "photographs": learner(takes="photographs"),
    }
  )


@contextlib.contextmanager
def served(port=0):
  """Serves the page on the loopback address; yields its URL without a path."""
  with demo.listener(port) as listener:
    server = demo.server(recogniser())
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
      yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join()


@functools.cache
def drawings(num_classes=5, num_drawings=4):
  """Strokes of made-up characters.

  Returns:
    `[class][drawing]`, each a list of strokes, which are lists of points `[x, y]`.
  """
  found = []
  for index in range(num_classes):
    numbers = characters._uniforms(0, 2 * index, 41)
    strokes = characters._character(numbers)
    per_drawing = 2 * strokes.size + 7
    numbers = characters._uniforms(0, 2 * index + 1, num_drawings * per_drawing)
    curves, _ = characters._drawings(strokes, numbers.reshape(num_drawings, -1))
    found.append([((curve + 1) / 2).tolist() for curve in curves])
  return found
