r"""A page to draw on: new characters from one drawing each, recognised as you draw.

  python -m experiments.demo
  python -m experiments.demo --model=runs/A,runs/B --port=8100

Draw one example each of a few characters that the learner has never seen, name them,
and draw another: its name and the probabilities update as you draw. Learners of colour
images take photographs instead. The page is served to this computer only, and neither
sends nor loads anything elsewhere. It needs starlette and uvicorn:

  python -m pip install -e ".[demo]"
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import os
import pathlib
import socket
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from absl import flags

from experiments import _program
from jsharp._flags import Group, Program
from jsharp._terminal import say, tell
from jsharp.options import Options, Role, between, option

if TYPE_CHECKING:
  from experiments._demo_recognition import Recogniser

_ADDRESS = "127.0.0.1"
PAGE = pathlib.Path(__file__).with_name("demo.html")
"""The page that the browser shows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Options):
  """The learners that the page offers, and its port."""

  role: ClassVar[Role] = Role.MACHINE

  model: tuple[str, ...] | None = option(
    None,
    "Learners to choose from, separated by commas: names of shipped learners, run "
    "directories or saved learners. Default: all shipped learners, starting with one "
    "of Omniglot that supports any number of classes.",
  )
  port: int = option(
    8028,
    "Port of the page on 127.0.0.1; 0 for any free port.",
    check=between(0, 65535),
  )
  open_browser: bool = option(True, "Open the page in the browser.")
  compilation_cache_dir: str = option(
    "~/.cache/jsharp/xla",
    "Directory for compiled programs, as in training; private to you. Empty: no cache.",
  )


PROGRAM = Program("demo", (Group("demo", {"demo": Demo}),), {}, __doc__ or "")


def start(arguments: Sequence[str], values: flags.FlagValues) -> int:
  """Serves the page until it is stopped; returns the exit code.

  Codes are 0 after Ctrl-C and 2 for bad arguments.
  """
  return _program.call(PROGRAM, arguments, values, lambda given: run(**given.build()))


def run(demo: Demo) -> int:
  """Loads the learners and serves the page.

  Returns:
    The exit code.
  """
  missing = [m for m in ("starlette", "uvicorn") if not importlib.util.find_spec(m)]
  if missing:
    return _program.refuse(
      "demo",
      f"{' and '.join(missing)} must be installed: python -m pip install -e '.[demo]'",
    )
  try:
    with listener(demo.port) as at:
      recogniser = _recogniser(demo)
      _serve(recogniser, at, open_browser=demo.open_browser)
  except (ValueError, OSError) as error:
    return _program.refuse("demo", _program.message(error))
  except KeyboardInterrupt:
    pass  # After Ctrl-C asyncio either raises it or returns.
  say("demo: stopped.")
  return 0


def listener(port: int) -> socket.socket:
  """A socket that listens on a port of this computer.

  Raises:
    ValueError: if another program has the port.
  """
  opened = socket.socket()
  opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    opened.bind((_ADDRESS, port))
    opened.listen()
  except OSError as error:
    opened.close()
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
      raise
    why = "is in use, perhaps by another demo"
    if error.errno == errno.EACCES:
      why = "is reserved for the system"
    raise ValueError(
      f"--port={port} {why}; choose another, or --port=0 for any free port"
    ) from error
  return opened


def _recogniser(demo: Demo) -> Recogniser:
  """Loads the learners; compiles the first one's program, so that the page is fast."""
  # Imported late: they import JAX.
  import jsharp
  from experiments._demo_recognition import Recogniser
  from jsharp import training

  training.use_compilation_cache(demo.compilation_cache_dir)
  names = demo.model or jsharp.models_available()
  if not names:
    raise ValueError(
      "no trained learner comes with this jsharp; train one in minutes, without data:\n"
      "  python -m experiments.omniglot "
      "--flagfile=experiments/flagfiles/quickstart.txt --run_dir=runs/quickstart\n"
      "  python -m experiments.demo --model=runs/quickstart"
    )
  # Fast compilation matters: every new number of examples needs a new program.
  execution = jsharp.Execution(inner_steps="scanned", convolution="direct")
  learners = {name: jsharp.load(name, execution=execution) for name in names}
  recogniser = Recogniser(learners, sort=demo.model is None)
  first = next(iter(recogniser.choices))
  say(f"demo: getting {first} ready")
  recogniser.warm_up(first)
  return recogniser


def server(recogniser: Recogniser) -> Any:
  """The demo's server.

  Args:
    recogniser: recognises pictures.

  Returns:
    A `uvicorn.Server`, for `run(sockets=[listener(port)])`.
  """
  import uvicorn

  from experiments import _demo_server

  app = _demo_server.application(recogniser, PAGE.read_text(encoding="utf-8"))
  return uvicorn.Server(
    uvicorn.Config(
      app,
      access_log=False,
      lifespan="off",
      log_level="warning",
      server_header=False,
      timeout_graceful_shutdown=1,
      ws="none",
    )
  )


def _serve(recogniser: Recogniser, at: socket.socket, *, open_browser: bool) -> None:
  url = f"http://{_ADDRESS}:{at.getsockname()[1]}/"
  tell(f"demo: {url} (Ctrl-C stops it)")
  if open_browser and _has_screen():
    webbrowser.open(url)
  server(recogniser).run(sockets=[at])


def _has_screen() -> bool:
  """Whether a browser would open a window instead of taking over the terminal."""
  return sys.platform in ("darwin", "win32") or bool(
    os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
  )


if __name__ == "__main__":
  sys.exit(start(sys.argv[1:], flags.FLAGS))
