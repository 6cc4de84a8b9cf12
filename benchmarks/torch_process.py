"""The PyTorch process that alternates with the benchmarks."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any


class Torch:
  """Runs PyTorch's side of a benchmark, which is suspended while it is idle.

  Args:
    python: an interpreter with PyTorch.
    threads: PyTorch's threads.
    device: "cpu" or "cuda".
    script: the file beside this one that it runs.
  """

  def __init__(
    self,
    python: str,
    threads: int,
    device: str = "cpu",
    script: str = "torch_meta_step.py",
  ):
    path = Path(__file__).with_name(script)
    self._process = subprocess.Popen(
      [python, str(path), str(threads), device],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.versions = self._answer()

  def _answer(self) -> Any:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        "the PyTorch process ended; see its message above and check --torch_python"
      )
    return json.loads(line)

  def ask(
    self,
    name: str,
    setting: dict[str, int],
    algorithm: str,
    form: str,
    amount: float,
    precision: str = "float32",
  ) -> Any:
    """Runs one form for `amount` seconds, or `form="error"` on `amount` tasks.

    Args:
      name: name of the setting.
      setting: values of the setting.
      algorithm: "maml", ...
      form: one of the forms of the script.
      amount: seconds, or tasks.
      precision: "float32", "tf32" or "bfloat16".

    Returns:
      Tasks or examples per second, or a list of errors.

    Raises:
      RuntimeError: if PyTorch raised an error; the process goes on.
    """
    self._process.send_signal(signal.SIGCONT)
    request = {
      "setting": setting | {"name": name},
      "algorithm": algorithm,
      "form": form,
      "amount": amount,
      "precision": precision,
    }
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    answer = self._answer()
    self._process.send_signal(signal.SIGSTOP)  # Its idle threads would spin.
    if isinstance(answer, dict):
      raise RuntimeError(answer["error"])
    return answer

  @property
  def ended(self) -> bool:
    """Whether the process has died."""
    return self._process.poll() is not None

  def close(self) -> None:
    """Ends the process."""
    self._process.send_signal(signal.SIGCONT)
    self._process.communicate()
