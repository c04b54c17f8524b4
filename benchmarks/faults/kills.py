r"""Kills programs at random times and checks the remaining files.

  python -m benchmarks.faults.kills --signal=SIGKILL --count=200
  python -m benchmarks.faults.kills --signal=SIGINT --count=200
  python -m benchmarks.faults.kills --what=registration --count=50
  python -m benchmarks.faults.kills --what=writer --count=200
  python -m benchmarks.faults.kills --what=batch --count=50
  python -m benchmarks.faults.kills --warm --count=200

`sampler` and `registration` are the programs `launch.sample` and
`launch.register` on their smallest inputs. Two of three signals are sent at a
time drawn uniformly from the length of a run, of which the imports take the
greater part; the third is drawn from the short time in which results are
written, counted from the moment at which the run's temporary folder appears.
`writer` is a process that only writes results, again and again, because files
move during a thousandth of a run. `batch` is `launch.sample --batch` on three
clips, of which two are in work at a time: the next run makes those that were not
finished, and the folder is emptied when all are.

With `--warm`, three of four runs start in a copy of a process that has imported
the program's modules already (`warm_starts.py`), so that the signals fall into
the program's work instead of its imports, and a run takes a third of the time.

All runs write to one folder, alternately results of two and of three frames, so
that each run also handles the remains of the previous one. After every run the
results must be those of a single run: the record (run.json or
registration.json) has the number of frames, and the other files are compared
with those of a complete run. A folder without record was killed while files
moved; the next run completes it; these cases are counted. After a SIGINT the
exit code must be 130 (0 if the run had ended), with one line and no traceback,
within 20 s. Nothing hidden may be left, unless the run had to be ended inside a
library's call (`signals.GRACE`). No process may outlive its program.
A final complete run must leave nothing except its results.
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
from PIL import Image

from benchmarks.faults import warm_starts
from sculpt4d_jax.cli import signals
from sculpt4d_jax.io.video import reader

_SIGNAL = flags.DEFINE_enum(
  "signal", "SIGKILL", ["SIGKILL", "SIGINT"], "Signal that is sent."
)
_COUNT = flags.DEFINE_integer("count", 200, "Number of killed runs.")
_WHAT = flags.DEFINE_enum(
  "what",
  "sampler",
  ["sampler", "registration", "writer", "batch"],
  "Killed program.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the times.")
_SECONDS = flags.DEFINE_float(
  "seconds", None, "Time after which no further run is killed."
)
_WARM = flags.DEFINE_bool(
  "warm", False, "Whether most runs begin after the imports."
)

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LIMIT = 20.0  # Seconds from SIGINT to the end.
_FRAMES = (2, 3)  # Alternating, so that mixed results would be noticed.
_RECORDS = ("run.json", "registration.json")
_STEP = 0.002  # Between two looks at the folder (s).
_CLIPS = {"first": range(4), "second": range(6, 10), "third": range(12, 16)}
# What may stay in the folder: the list of files, for the next run.
_LIST = ".sculpt4d-files"

_WRITER = """
import json, sys
from sculpt4d_jax.io import staged
folder, frames = sys.argv[1], int(sys.argv[2])
for _ in range(1 if "whole" in folder else 30):
  with staged.staged_folder(folder, replaces=["frame_*.ply"]) as staging:
    for index in range(frames):
      (staging / f"frame_{index:04d}.ply").write_text(str(frames) * 10000)
    for name in ("animation.glb", "viewer.html"):
      (staging / name).write_text(str(frames) * 10000)
    record = {"input": {"frames": frames}}
    (staging / "run.json").write_text(json.dumps(record))
"""

# The command of a run: from output folder and number of frames.
Command = Callable[[pathlib.Path, int], list[str]]


@dataclasses.dataclass(frozen=True)
class Length:
  """Duration of a complete run.

  Attributes:
    all: From start to end (s).
    writing: From the appearance of its temporary folder to the end (s).
  """

  all: float
  writing: float


def sampler(folder: pathlib.Path, frames: int) -> list[str]:
  """The command of the smallest sample."""
  return [
    sys.executable,
    "-m",
    "launch.sample",
    "--config=configs/tiny.py",
    "--input=demo/clip.mp4",
    f"--output={folder}",
    f"--config.sampling.num_frames={frames}",
    "--config.sampling.num_steps=4",
    "--config.surface.resolution=24",
  ]


def writer(folder: pathlib.Path, frames: int) -> list[str]:
  """The command of a process that only writes results."""
  return [sys.executable, "-c", _WRITER, str(folder), str(frames)]


def registration(inputs: pathlib.Path) -> Command:
  """The command of a registration of samples, which are made first."""
  for frames in _FRAMES:
    subprocess.run(
      sampler(inputs / str(frames), frames),
      cwd=_ROOT,
      check=True,
      capture_output=True,
    )

  def command(folder: pathlib.Path, frames: int) -> list[str]:
    return [
      sys.executable,
      "-m",
      "launch.register",
      f"--input={inputs / str(frames)}",
      f"--output={folder}",
      "--max_faces=300",
    ]

  return command


def batch(inputs: pathlib.Path) -> Command:
  """The command of a sample of three clips, which are made first."""
  decoded = reader.read_frames(_ROOT / "demo" / "clip.mp4")
  for name, frames in _CLIPS.items():
    (inputs / name).mkdir(parents=True)
    for frame in frames:
      picture = Image.fromarray(decoded.frames[frame][..., :3])
      picture.save(inputs / name / f"{frame:02d}.png")

  def command(folder: pathlib.Path, frames: int) -> list[str]:
    given = [each for each in sampler(folder, frames) if "--input" not in each]
    return [*given, f"--input={inputs}", "--batch"]

  return command


def _heed_interrupts() -> None:
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment(temporary: pathlib.Path) -> dict[str, str]:
  """Variables of a run, which takes compiled programs from earlier ones."""
  return os.environ | {
    "TMPDIR": str(temporary),
    "JAX_COMPILATION_CACHE_DIR": str(temporary.parent / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


@contextlib.contextmanager
def _started(
  command: list[str], temporary: pathlib.Path
) -> Iterator[subprocess.Popen]:
  """Starts a program in a group of processes, with a folder for its files.

  If this program is ended, so is the other one.
  """
  temporary.mkdir(exist_ok=True)
  process = subprocess.Popen(
    command,
    cwd=_ROOT,
    env=_environment(temporary),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    preexec_fn=_heed_interrupts,
  )
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def _is_writing(folder: pathlib.Path, before: set[str]) -> bool:
  """Whether a temporary folder has appeared that was not among `before`."""
  return bool(hidden(folder) - before - {_LIST})


def hidden(folder: pathlib.Path) -> set[str]:
  """Names of hidden files and folders."""
  return {path.name for path in folder.rglob(".*")}


def whole_run(
  command: list[str], folder: pathlib.Path, temporary: pathlib.Path
) -> Length:
  """Runs a program to its end; returns how long it took.

  Raises:
    UsageError: It fails by itself.
  """
  start = time.monotonic()
  before = hidden(folder)
  writing = None
  with _started(command, temporary) as process:
    while process.poll() is None:
      if writing is None and _is_writing(folder, before):
        writing = time.monotonic()
      time.sleep(_STEP)
    _, text = process.communicate()
  end = time.monotonic()
  if process.returncode:
    raise app.UsageError(f"The program fails by itself: {text}")
  return Length(end - start, end - (writing or end))


def _warm_length(
  template: warm_starts.Template, arguments: list[str]
) -> Length:
  """Duration of a run without its imports."""
  start = time.monotonic()
  with template.started(arguments) as process:
    _, text = process.communicate(timeout=600)
  if process.returncode:
    raise app.UsageError(f"The program fails after a warm start: {text}")
  return Length(time.monotonic() - start, 0.0)


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """Hashes of the results that do not depend on the time of day."""
  names = [path.name for path in folder.iterdir() if path.name[0] != "."]
  return {
    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in sorted(names)
    if name not in _RECORDS
  }


def hashes_of_clips(folder: pathlib.Path) -> dict[str, dict[str, str]]:
  """Hashes of a batch's results, by the clip's name."""
  return {name: hashes(folder / name) for name in _CLIPS}


def state_of_clips(
  folder: pathlib.Path, whole: dict[int, dict[str, dict[str, str]]]
) -> str:
  """State of a batch: "nothing", "one run" of some clips, "all", or a fault."""
  found = {}
  for name in _CLIPS:
    own = {frames: clips[name] for frames, clips in whole.items()}
    found[name] = state(folder / name, own)
    if found[name] not in ("nothing", "one run"):
      return f"{name}: {found[name]}"
  done = [name for name, each in found.items() if each == "one run"]
  if len(done) == len(_CLIPS):
    return "all"
  return "one run" if done else "nothing"


def state(folder: pathlib.Path, whole: dict[int, dict[str, str]]) -> str:
  """State of a folder: "nothing", "one run", or a description of the fault.

  Args:
    folder: Output folder; may be missing.
    whole: Hashes of a complete run's files, by number of frames.
  """
  if not any(path.name[0] != "." for path in folder.glob("*")):
    return "nothing"
  records = [folder / name for name in _RECORDS if (folder / name).exists()]
  if not records:
    return "no record: killed while files moved"
  try:
    frames = json.loads(records[0].read_bytes())["input"]["frames"]
  except (LookupError, OSError, TypeError, ValueError) as error:
    return f"no whole record ({error})"
  return "one run" if hashes(folder) == whole[frames] else "files of two runs"


def judge_end(code: int, text: str, name: str) -> str:
  """The fault of a program that got SIGINT, or "".

  Args:
    code: Its exit code.
    text: Text that it wrote to stderr.
    name: Name of the program in its messages.
  """
  if code == 0:
    return ""  # It had ended.
  if code == -signal.SIGINT and not ("launch" in text or "sculpt4d" in text):
    return ""  # Python had not started: none of our code could answer.
  if "Traceback" in text:
    return "a traceback"
  if code != 130:
    return f"exit code {code}"
  lines = re.findall(rf"^{name}: .*$", text, re.MULTILINE)
  return "" if lines == [f"{name}: Interrupted."] else f"lines {lines}"


def _wait(
  process: subprocess.Popen | warm_starts.Run,
  folder: pathlib.Path,
  delay: float,
  at_end: bool,
) -> None:
  """Waits for the time of the signal: from the start, or from writing."""
  start, before = time.monotonic(), hidden(folder)
  if at_end:
    while process.poll() is None and not _is_writing(folder, before):
      time.sleep(_STEP)
    start = time.monotonic()
  while process.poll() is None and time.monotonic() - start < delay:
    time.sleep(_STEP)


def _survivors(group: int) -> bool:
  """Whether a process of a group lives a second after its program."""
  for _ in range(20):
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return False
    time.sleep(0.05)
  return True


def _kill_once(
  command: list[str],
  folder: pathlib.Path,
  temporary: pathlib.Path,
  delay: float,
  at_end: bool,
  template: warm_starts.Template | None,
) -> tuple[list[str], float]:
  """Starts a run, sends the signal; returns faults, and seconds to the end.

  Args:
    command: The command of the run.
    folder: Its output folder.
    temporary: Its folder for temporary files.
    delay: Seconds until the signal.
    at_end: Whether they are counted from the appearance of results.
    template: Starts it after its imports; None starts it from the beginning.
  """
  number = getattr(signal, _SIGNAL.value)
  left = hidden(folder)  # By a run that had to be ended; see below.
  if template:
    start = template.started(command[3:])
  else:
    start = _started(command, temporary)
  with start as process:
    _wait(process, folder, delay, at_end)
    start = time.monotonic()
    process.send_signal(number)
    try:
      _, text = process.communicate(timeout=5 * _LIMIT)
    except subprocess.TimeoutExpired:
      return ["it did not end"], 5 * _LIMIT
    seconds = time.monotonic() - start
  faults = ["a process outlived it"] if _survivors(process.pid) else []
  is_late = seconds > signals.GRACE
  if number == signal.SIGINT and _WHAT.value != "writer":
    name = "register" if _WHAT.value == "registration" else "sample"
    faults.append(judge_end(process.returncode, text, name))
    if seconds > _LIMIT:
      faults.append("too slow")
    # Its own thread ended it inside a library's call; the next run cleans up.
    new = hidden(folder) - left - {_LIST}
    if new and not is_late:
      faults.append("hidden files after SIGINT")
      text += f"\nHidden: {', '.join(sorted(new))}"
  faults = list(filter(None, faults))
  if faults:
    print("\n".join(["What it wrote:", *text.splitlines()[-12:]]), flush=True)
  return faults, seconds


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  rng = random.Random(_SEED.value)
  with contextlib.ExitStack() as stack:
    base = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    temporary, folder = base / "temporary", base / "out"
    folder.mkdir()
    of_inputs = {"registration": registration, "batch": batch}
    if _WHAT.value in of_inputs:
      command = of_inputs[_WHAT.value](base / "inputs")
    else:
      command = {"sampler": sampler, "writer": writer}[_WHAT.value]
    is_batch = _WHAT.value == "batch"
    results = hashes_of_clips if is_batch else hashes
    state_of = state_of_clips if is_batch else state
    whole, lengths = {}, []
    for frames in _FRAMES:
      made = base / f"whole{frames}"
      lengths.append(whole_run(command(made, frames), made, temporary))
      whole[frames] = results(made)
    length = min(lengths, key=lambda each: each.all)
    if _WHAT.value == "writer":  # Killed runs write thirty times.
      length = Length(2 * length.all, length.all)
    template, warm = None, length
    if _WARM.value:
      module = command(folder, 2)[2]
      template = warm_starts.Template(module, _ROOT, _environment(temporary))
      stack.callback(template.close)
      warm = _warm_length(template, command(base / "warm", _FRAMES[0])[3:])
    faults: collections.Counter[str] = collections.Counter()
    slowest, num_runs, num_completed, left_in_tmp = 0.0, 0, 0, set()
    began = time.monotonic()
    for index in range(_COUNT.value):
      if _SECONDS.value and time.monotonic() - began > _SECONDS.value:
        break
      at_end = index % 3 == 2
      is_warm = template is not None and index % 4 != 3
      span = length.writing if at_end else (warm if is_warm else length).all
      delay = rng.uniform(0, 1.05 * span)
      said, seconds = _kill_once(
        command(folder, _FRAMES[index % 2]),
        folder,
        temporary,
        delay,
        at_end,
        template if is_warm else None,
      )
      num_runs += 1
      slowest = max(slowest, seconds)
      left_in_tmp |= {path.name for path in temporary.iterdir()}
      found = state_of(folder, whole)
      if found == "all":
        num_completed += 1
        shutil.rmtree(folder)
        folder.mkdir()
      elif found not in ("nothing", "one run"):
        said.append(found)
      for fault in said:
        faults[fault] += 1
        phase = "writing" if at_end else "start"
        print(f"run {index}, {delay:.2f} s after {phase}: {fault}", flush=True)
      if num_runs % 5 == 0:
        print(f"{num_runs} runs: {dict(faults) or 'no fault'}", flush=True)
    frames = _FRAMES[0]
    whole_run(command(folder, frames), folder, temporary)
    print(
      f"{num_runs} times {_SIGNAL.value} within {length.all:.1f} s"
      f" ({warm.all:.1f} s warm), of which {length.writing:.2f} s write: {dict(faults) or 'no fault'}; slowest"
      f" end {slowest:.1f} s; left after a whole run:"
      f" {sorted(hidden(folder) - {_LIST}) or 'nothing'}; in the folder for"
      f" temporary files: {sorted(left_in_tmp)[:5] or 'nothing'}; results of"
      f" it: {state_of(folder, whole)}"
      + (f"; {num_completed} batches completed before" if is_batch else "")
    )


if __name__ == "__main__":
  app.run(main)
