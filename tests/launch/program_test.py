import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = '''"""Greets somebody.

  python -m launch.greet --name=Ada
"""
import asyncio, atexit, hashlib, os, sys, threading, time
from absl import flags, logging
from launch import program

_NAME = flags.DEFINE_string("name", None, "Whom to greet.", required=True)
_DEED = flags.DEFINE_string("deed", "greet", "What to do.")

def main(argv):
  if _DEED.value == "greet":
    print("Hello", _NAME.value)
  elif _DEED.value == "bad_mesh":
    from sculpt4d_jax.geometry import mesh
    mesh.TriangleMesh([[0.0, 0.0]], [])
  elif _DEED.value == "library_error":
    int("seven")
  elif _DEED.value == "missing_file":
    open("missing/file.txt")
  elif _DEED.value == "code":
    return 7
  elif _DEED.value == "wait":
    try:
      print("waiting", flush=True)
      time.sleep(60)
    finally:
      print("cleaned up", flush=True)
  elif _DEED.value == "finalize":
    try:
      Slow().wait()  # Nothing holds it: it is finalized here.
      time.sleep(60)
    finally:
      print("cleaned up", flush=True)
  elif _DEED.value == "thread":
    thread = threading.Thread(target=int, args=("seven",), name="counting")
    thread.start()
    thread.join()
  elif _DEED.value == "future":
    async def fail_twice():
      futures = [asyncio.ensure_future(fail()) for _ in range(2)]
      await futures[0]
    async def fail():
      raise OSError(28, "No space left on device")
    asyncio.run(fail_twice())
  elif _DEED.value == "compile":
    import jax
    def slow_to_compile(x):
      for number in range(1000):
        x = jax.numpy.sin(x @ x) + number
      return x
    from sculpt4d_jax.cli import signals
    signals.GRACE = 60.0  # Compiling may take longer than the default.
    jax.config.update("jax_enable_compilation_cache", False)
    lowered = jax.jit(slow_to_compile).lower(jax.numpy.ones((64, 64)))
    print("waiting", flush=True)
    try:
      lowered.compile()
    finally:
      print("cleaned up")
  elif _DEED.value == "leave":
    # One call of C, which no signal interrupts; it is called last.
    hashed = "sha256", b"", b"", 4_000_000
    atexit.register(hashlib.pbkdf2_hmac, *hashed)
    atexit.register(print, "waiting", flush=True)
  elif _DEED.value in ("deaf", "deaf with bar"):
    # One call of C that no signal ends: a lock that is held already.
    import ctypes
    if _DEED.value == "deaf with bar":
      import tqdm
      bar = tqdm.tqdm(total=3, desc="frames")
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    libc.pthread_mutex_lock(mutex)
  elif _DEED.value == "convert":
    print("waiting", flush=True)
    try:
      time.sleep(60)
    except KeyboardInterrupt:
      raise SystemError("initialization raised an unreported exception")
  elif _DEED.value == "late":
    async def fail_before(future):
      waiting = future.__await__()
      next(waiting)  # As a task does that begins to wait.
      raise OSError(28, "No space left on device")
    import tensorstore
    promise, future = tensorstore.Promise.new()
    try:
      asyncio.run(fail_before(future))
    finally:
      promise.set_result(None)

class Slow:
  def wait(self):
    print("waiting", flush=True)
  def __del__(self):
    time.sleep(0.5)  # Python drops what is raised in here.

if __name__ == "__main__":
  program.run(main)
'''


@pytest.fixture(name="script", scope="module")
def script_fixture(tmp_path_factory):
  path = tmp_path_factory.mktemp("program") / "greet.py"
  path.write_text(PROGRAM)
  return path


def _heed_interrupts():
  """A shell's background jobs ignore SIGINT, and so would their children."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(script, *arguments):
  return subprocess.Popen(
    [sys.executable, script, *arguments],
    cwd=script.parent,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    preexec_fn=_heed_interrupts,
    text=True,
  )


def run(script, *arguments):
  with start(script, *arguments) as process:
    stdout, stderr = process.communicate(timeout=60)
  return process.returncode, stdout, stderr


def test_runs_main_and_returns_its_code(script):
  assert run(script, "--name=Ada")[:2] == (0, "Hello Ada\n")
  assert run(script, "--name=Ada", "--deed=code")[0] == 7


def test_help_shows_docstring_then_own_flags(script):
  code, stdout, _ = run(script, "--help")
  assert code == 0
  assert stdout.startswith("Greets somebody.")
  assert "--name: Whom to greet." in stdout
  assert "--verbosity" not in stdout  # A flag of a library.


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "Flag --name must have a value"),
    (["--nmae=Ada"], "Did you mean: name"),
    (["--name=Ada", "Bob"], "Expected flags only, got 'Bob'"),
  ],
)
def test_usage_errors_exit_with_two_and_point_to_help(
  script, arguments, message
):
  code, stdout, stderr = run(script, *arguments)
  assert (code, stdout) == (2, "")
  assert message in stderr and "--help" in stderr
  assert "Traceback" not in stderr


def test_errors_of_this_project_are_messages(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=bad_mesh")
  assert code == 2
  assert stderr == "greet: vertices must be [V, 3], got (1, 2).\n"


def test_operating_system_errors_are_messages(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=missing_file")
  assert code == 2
  assert stderr == "greet: missing/file.txt: No such file or directory\n"


def test_a_program_that_is_a_folder_has_the_name_of_the_folder(tmp_path):
  script = tmp_path / "greetings" / "__main__.py"
  script.parent.mkdir()
  script.write_text(PROGRAM)
  _, _, stderr = run(script, "--name=Ada", "--deed=bad_mesh")
  assert stderr.startswith("greetings: vertices must be")


def test_errors_of_libraries_keep_their_traceback(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=library_error")
  assert code == 1
  assert "Traceback" in stderr and "invalid literal" in stderr


@pytest.mark.parametrize(
  "signal_number, expected",
  [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_interrupted_program_cleans_up(script, signal_number, expected):
  with start(script, "--name=Ada", "--deed=wait") as process:
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=30)
  assert process.returncode == expected
  assert stdout == "cleaned up\n"
  assert "Traceback" not in stderr


@pytest.mark.parametrize(
  "signal_number, expected",
  [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_signal_that_comes_in_a_finalizer_is_not_lost(
  script, signal_number, expected
):
  with start(script, "--name=Ada", "--deed=finalize") as process:
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=30)
  assert process.returncode == expected
  assert stdout == "cleaned up\n"
  assert "Traceback" not in stderr


@pytest.mark.parametrize(
  "signal_number, expected",
  [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_signal_while_jax_compiles_is_no_crash(
  script, signal_number, expected
):
  with start(script, "--name=Ada", "--deed=compile") as process:
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal_number)
    stdout, stderr = process.communicate(timeout=60)
  assert process.returncode == expected, stderr
  assert stdout == "cleaned up\n"
  assert "Fatal" not in stderr and "Traceback" not in stderr


@pytest.mark.parametrize(
  "signal_number, expected",
  [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_call_that_never_returns_is_ended_all_the_same(
  script, signal_number, expected
):
  with start(script, "--name=Ada", "--deed=deaf") as process:
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=30)
  assert process.returncode == expected
  assert stderr.count("\n") <= 1 and "Traceback" not in stderr


def test_a_late_message_does_not_continue_a_progress_bar(script):
  with start(script, "--name=Ada", "--deed=deaf with bar") as process:
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
  assert "frames" in stderr
  # tqdm may draw the bar again afterwards.
  assert "greet: Interrupted." in stderr.splitlines()


def test_an_interrupt_that_a_library_turns_into_an_error(script):
  with start(script, "--name=Ada", "--deed=convert") as process:
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
  assert (process.returncode, stderr) == (130, "greet: Interrupted.\n")


def test_an_interrupt_after_the_work_is_one_line(script):
  with start(script, "--name=Ada", "--deed=leave") as process:
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
  assert (process.returncode, stderr) == (130, "greet: Interrupted.\n")


def test_an_interrupt_while_a_program_imports_is_one_line():
  """At several times after the start, while the program has not ended."""
  for delay in (0.15, 0.4, 1.0):
    with subprocess.Popen(
      [sys.executable, "-m", "launch.sample", "--input=none", "--output=none"],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      preexec_fn=_heed_interrupts,
      text=True,
    ) as process:
      # Until Python itself has started none of our code can answer.
      while not _has_started(process.pid):
        time.sleep(0.01)
      time.sleep(delay)
      process.send_signal(signal.SIGINT)
      _, stderr = process.communicate(timeout=60)
    if delay > 0.15 and process.returncode == 2:
      break  # A fast machine has imported everything, and missed the input.
    assert process.returncode == 130, stderr
    assert stderr == "sample: Interrupted.\n"


def _has_started(process):
  """Whether a process has mapped libraries: it runs our code by then."""
  maps = pathlib.Path(f"/proc/{process}/maps")
  if not maps.exists():
    return True  # Not Linux: the delay must do.
  try:
    return "jaxlib" in maps.read_text() or "numpy" in maps.read_text()
  except OSError:
    return False


def test_of_futures_that_fail_together_only_the_first_speaks(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=future")
  assert code == 2
  assert stderr.strip() == "greet: No space left on device"


def test_who_tells_a_loop_that_has_ended_is_not_heard(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=late")
  assert code == 2
  assert stderr.strip() == "greet: No space left on device"


def test_a_thread_that_ends_badly_is_one_line(script):
  code, _, stderr = run(script, "--name=Ada", "--deed=thread")
  assert code == 0
  assert "counting ended: ValueError: invalid literal" in stderr
  assert "Traceback" not in stderr


def test_programs_that_share_a_model_share_its_default():
  """So that weights of a run fit --checkpoint without --config."""
  default = re.compile(r'DEFINE_config_file\(\s*"config",\s*"([^"]+)"')
  found = {
    name: default.search((ROOT / "launch" / f"{name}.py").read_text())[1]
    for name in ("sample", "train", "evaluate")
  }
  assert set(found.values()) == {"configs/small.py"}, found


def test_garbage_is_collected_from_the_start_of_a_program():
  code = (
    "import gc, sys; sys.argv = ['-m']; import launch\n"
    "assert not gc.isenabled()  # Only while it is imported.\n"
    "from sculpt4d_jax.cli import exits; exits.set_up('greet')\n"
    "assert gc.isenabled() and gc.get_freeze_count()"
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
