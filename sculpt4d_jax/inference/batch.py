"""Processes every clip of a folder, with one output folder each.

Finished clips are skipped, so the same command resumes after a kill. Failures
are reported at the end and do not stop the other clips. Two clips are processed
at a time: while one uses the networks, the other's meshes are extracted and
written.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import pathlib
import re

from absl import logging

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import registering
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.video import images

_VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
_AT_A_TIME = 2


@dataclasses.dataclass(frozen=True)
class Job:
  """One clip.

  Attributes:
    source: Path of the clip.
    output: Folder of its results.
    is_registered: Whether the results include a registration, which is written
      after the sample.
  """

  source: pathlib.Path
  output: paths.PathLike
  is_registered: bool = False

  @property
  def is_done(self) -> bool:
    """Whether all results exist; the files of each appear together."""
    sampled = _time_of(self.output / outputs.RUN)
    if sampled is None or not self.is_registered:
      return sampled is not None
    registered = _time_of(self.output / registering.RECORD)
    # An older one is of an earlier sample.
    return registered is not None and registered >= sampled


@dataclasses.dataclass(frozen=True)
class Report:
  """The outcome of all jobs.

  Attributes:
    made: Clips that were made now.
    skipped: Clips that an earlier run had made.
    failed: Clips that could not be made, with the reason.
  """

  made: Sequence[Job]
  skipped: Sequence[Job]
  failed: Sequence[tuple[Job, str]]

  def describe(self) -> str:
    """Returns a line of counts, and one line for each failure."""
    lines = [
      f"{len(self.made)} clips made, {len(self.skipped)} done before,"
      f" {len(self.failed)} failed."
    ]
    lines += [f"  {job.source}: {reason}" for job, reason in self.failed]
    return "\n".join(lines)


def _time_of(path: paths.PathLike) -> int | None:
  """Time of the last change (ns) of a file, None if it does not exist."""
  return path.stat().st_mtime_ns if path.is_file() else None


def find(
  folder: pathlib.Path, output: paths.PathLike, *, is_registered: bool = False
) -> list[Job]:
  """The clips of a folder: videos, pictures, and folders of pictures.

  Args:
    folder: Hidden entries and other files in it are left out.
    output: Folder of results; a clip's own are in a folder of its name.
    is_registered: Whether results include a registration.

  Raises:
    ValueError: There is no such folder, or no clip in it.
  """
  if not folder.is_dir():
    raise UserError(f"--batch needs a folder of clips; {folder} is none.")
  sources = [
    path
    for path in sorted(folder.iterdir(), key=lambda p: _natural(p.name))
    if not path.name.startswith(".")
    and (paths.is_remote(output) or path.resolve() != output.resolve())
    and _is_clip(path)
  ]
  if not sources:
    raise UserError(
      f"{folder} holds no videos ({', '.join(_VIDEOS)}), pictures or folders"
      " of pictures."
    )
  stems = [path.stem for path in sources]
  return [
    # Clips whose names differ only in the suffix keep it, to get two folders.
    Job(
      path,
      output / (path.name if stems.count(stem) > 1 else stem),
      is_registered,
    )
    for path, stem in zip(sources, stems)
  ]


def run(
  jobs: Sequence[Job],
  make: Callable[[Job], None],
  describe: Callable[[Exception], str],
  on_end: Callable[[Job, str | None], None] = lambda job, reason: None,
) -> Report:
  """Makes all clips that are not done.

  Args:
    jobs: Jobs from `find`.
    make: Makes one clip and writes its files; called in threads.
    describe: Turns an error of `make` into the reason for the report.
    on_end: Called for every clip that has ended, with the reason if it failed.
  """
  skipped = [job for job in jobs if job.is_done]
  left = [job for job in jobs if not job.is_done]
  made, failed = [], []
  pool = concurrent.futures.ThreadPoolExecutor(_AT_A_TIME)
  try:
    futures = {pool.submit(make, job): job for job in left}
    for future in concurrent.futures.as_completed(futures):
      job = futures[future]
      try:
        future.result()
      except Exception as error:
        logging.debug("%s", job.source, exc_info=error)
        failed.append((job, describe(error)))
      else:
        made.append(job)
      on_end(job, failed[-1][1] if failed and failed[-1][0] is job else None)
  finally:
    # After a signal, clips that have not started must not run.
    pool.shutdown(wait=False, cancel_futures=True)
  order = {job: number for number, job in enumerate(jobs)}
  return Report(
    sorted(made, key=order.get),
    skipped,
    sorted(failed, key=lambda pair: order[pair[0]]),
  )


def _is_clip(path: pathlib.Path) -> bool:
  if path.is_dir():
    return any(x.suffix.lower() in images.SUFFIXES for x in path.iterdir())
  return path.suffix.lower() in images.SUFFIXES.union(_VIDEOS)


def _natural(name: str) -> list[tuple[int, str]]:
  """Sorts clip2 before clip10."""
  parts = re.split(r"(\d+)", name)
  return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
