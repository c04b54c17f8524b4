"""Real processes of `launch.train` on the micro preset, for tests of runs."""

from collections.abc import Sequence
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

from tests import conftest


def free_port() -> int:
  """A port of this machine that nothing listens on."""
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def command(workdir: pathlib.Path, stages: str = "data,vae") -> list[str]:
  """The command of a run of the micro preset."""
  return [
    sys.executable,
    "-u",
    "-m",
    "launch.train",
    "--config=tests/integration/micro.py",
    f"--workdir={workdir}",
    f"--stages={stages}",
  ]


def environment(devices: int = 1) -> dict[str, str]:
  """Of a process with so many virtual CPU devices; keeps this one's flags."""
  flags = os.environ.get("XLA_FLAGS", "").split()
  flags.append(f"--xla_force_host_platform_device_count={devices}")
  return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


class Process(subprocess.Popen):
  """A process whose output goes to a file.

  A pipe that is not read meanwhile would fill up and block the process.
  """

  def __init__(self, args: Sequence[str], **options):
    self._file = tempfile.NamedTemporaryFile("a")
    super().__init__(
      args, stdout=self._file, stderr=subprocess.STDOUT, **options
    )

  def output(self) -> str:
    """Its output so far."""
    return pathlib.Path(self._file.name).read_text(errors="replace")

  def communicate(self, timeout: float | None = None) -> tuple[str, None]:
    """Waits for its end; returns its output."""
    self.wait(timeout)
    return self.output(), None


def start(
  workdir: pathlib.Path,
  num_processes: int = 1,
  *flags: str,
  stages: str = "data,vae",
  devices: int = 1,
) -> list[Process]:
  """Starts a run.

  Args:
    workdir: The run's folder.
    num_processes: Processes that join each other.
    *flags: More flags of launch.train.
    stages: Stages to run.
    devices: Virtual CPU devices of each process.
  """
  own = [*command(workdir, stages), *flags]
  joined = [
    "--distributed=flags",
    f"--coordinator=127.0.0.1:{free_port()}",
    f"--num_processes={num_processes}",
  ]
  return [
    Process(
      own + (joined + [f"--process_id={i}"] if num_processes > 1 else []),
      cwd=conftest.ROOT,
      env=environment(devices),
    )
    for i in range(num_processes)
  ]


def finish(
  processes: Sequence[Process], code: int = 0, timeout: float = 900
) -> list[str]:
  """Waits for the end and checks the exit codes; returns each output."""
  outputs = [p.communicate(timeout=timeout)[0] for p in processes]
  for process, output in zip(processes, outputs):
    assert process.returncode == code, output[-3000:]
  return outputs


def run(workdir: pathlib.Path, num_processes: int = 1, *flags, **kwargs):
  """Starts a run and waits for its end."""
  return finish(start(workdir, num_processes, *flags, **kwargs))


def wait_for(happens, processes=(), timeout: float = 600) -> None:
  """Waits until `happens()`, as long as the processes live."""
  end = time.monotonic() + timeout
  while not happens():
    for process in processes:
      assert process.poll() is None, process.output()[-3000:]
    if time.monotonic() > end:
      said = [process.output()[-3000:] for process in processes]
      for process in processes:
        process.kill()
      raise AssertionError("\n".join(["It did not happen in time.", *said]))
    time.sleep(0.01)


def records(workdir: pathlib.Path, stage: str = "vae") -> list[dict]:
  """The lines of metrics of a stage; none if it has not begun."""
  path = workdir / stage / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text().split("\n")[:-1]  # The last may be being written.
  return [json.loads(line) for line in lines if line]


def losses(
  workdir: pathlib.Path, stage: str = "vae", name: str = "train/loss"
) -> dict[int, float]:
  """The loss of every step, the last one where a step was taken again."""
  return {r["step"]: r[name] for r in records(workdir, stage) if name in r}


def checkpoint_steps(workdir: pathlib.Path, stage: str = "vae") -> list[int]:
  """Steps of the whole checkpoints."""
  folder = workdir / stage / "checkpoints"
  if not folder.exists():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
