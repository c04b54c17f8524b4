import os
import threading

import pytest

from sculpt4d_jax.inference import batch
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import registering


@pytest.fixture
def clips(tmp_path):
  """Three videos, a folder of pictures, and what is no clip."""
  folder = tmp_path / "clips"
  (folder / "walk").mkdir(parents=True)
  (folder / "walk" / "0.png").touch()
  (folder / "empty").mkdir()
  for name in ("c10.mp4", "c2.mp4", "c2.webm", "notes.txt", ".hidden.mp4"):
    (folder / name).touch()
  return folder


def finish(job):
  job.output.mkdir(parents=True)
  (job.output / outputs.RUN).touch()


def test_clips_are_found_in_natural_order(clips, tmp_path):
  jobs = batch.find(clips, tmp_path / "out")
  names = [(j.source.name, j.output.name) for j in jobs]
  assert names == [
    ("c2.mp4", "c2.mp4"),
    ("c2.webm", "c2.webm"),
    ("c10.mp4", "c10"),
    ("walk", "walk"),
  ]


def test_results_in_the_same_folder_are_no_clips(clips):
  (clips / "out").mkdir()
  (clips / "out" / "preview.png").touch()
  jobs = batch.find(clips, clips / "out")
  assert "out" not in {job.source.name for job in jobs}


def test_the_rest_is_made_after_an_interruption(clips, tmp_path):
  jobs = batch.find(clips, tmp_path / "out")
  finish(jobs[1])
  made = []

  def make(job):
    made.append(job)
    finish(job)

  report = batch.run(jobs, make, str)
  assert jobs[1] not in made and len(made) == 3
  assert list(report.skipped) == [jobs[1]]
  assert report.made == [jobs[0], *jobs[2:]]
  assert (
    batch.run(jobs, make, str)
    .describe()
    .startswith("0 clips made, 4 done before, 0 failed.")
  )


def test_a_clip_is_done_once_its_sample_is_registered(clips, tmp_path):
  job = batch.find(clips, tmp_path / "out", is_registered=True)[0]
  finish(job)
  assert not job.is_done  # Stopped during registration.
  record = job.output / registering.RECORD
  record.touch()
  sampled = (job.output / outputs.RUN).stat().st_mtime_ns
  os.utime(record, ns=(sampled, sampled - 1))
  assert not job.is_done  # The registration of an earlier sample.
  os.utime(record, ns=(sampled, sampled + 1))
  assert job.is_done


def test_failures_stop_nothing_and_are_told_at_the_end(clips, tmp_path):
  jobs = batch.find(clips, tmp_path / "out")

  def make(job):
    if job.source.name == "c2.webm":
      raise ValueError("it has no frames.")
    finish(job)

  ended = {}
  report = batch.run(
    jobs, make, str, lambda job, reason: ended.update({job: reason})
  )
  assert len(report.made) == 3
  assert [job.source.name for job, _ in report.failed] == ["c2.webm"]
  assert (
    report.describe().splitlines()[1].endswith("c2.webm: it has no frames.")
  )
  assert ended == {j: None for j in report.made} | dict(report.failed)
  # It is tried again the next time.
  assert len(batch.run(jobs, finish, str).made) == 1


def test_two_clips_are_in_work(clips, tmp_path):
  """Each waits until the other has begun."""
  jobs = batch.find(clips, tmp_path / "out")[:2]
  barrier = threading.Barrier(2, timeout=20)
  report = batch.run(jobs, lambda job: (barrier.wait(), finish(job)), str)
  assert len(report.made) == 2


def test_folders_without_clips_are_refused(tmp_path):
  with pytest.raises(ValueError, match="needs a folder of clips"):
    batch.find(tmp_path / "none", tmp_path / "out")
  with pytest.raises(ValueError, match="holds no videos"):
    batch.find(tmp_path, tmp_path / "out")
