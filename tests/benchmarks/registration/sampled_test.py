from benchmarks.registration import sampled
from sculpt4d_jax.geometry.registration import result

Verdict = result.Verdict


def _reports(*rows: tuple[float, Verdict]) -> tuple[result.FrameReport, ...]:
  return tuple(
    result.FrameReport(frame, 0, verdict, 0.0, hausdorff99, 0.0, 0.0)
    for frame, (hausdorff99, verdict) in enumerate(rows)
  )


GOOD = _reports((0.01, Verdict.REGISTERED), (0.03, Verdict.DOUBTFUL))
BAD = _reports((0.01, Verdict.REGISTERED), (float("inf"), Verdict.FAILED))


def _row(alone, shown, seconds=1.0):
  return sampled.ClipRow("machine 0", 0, alone, shown, 2, seconds, 300.0)


def test_a_frame_without_surface_counts_as_the_whole_box():
  assert sampled.distances(GOOD) == (0.02, 0.03)
  assert sampled.distances(BAD) == (0.505, 1.0)
  assert sampled.verdicts(BAD) == "rf"


def test_a_line_has_one_topology_before_the_meshes_as_shown():
  line = _row(BAD, GOOD).line().split()
  assert line[2:9] == ["0", "50.50", "100.00", "rf", "2.00", "3.00", "rd"]


def test_the_summary_counts_clips_within_the_bar_and_frames():
  rows = [_row(BAD, GOOD, 1.0), _row(GOOD, GOOD, 3.0)]
  lines = sampled.summary(rows).splitlines()
  assert "one topology, mean HD99: 1 of 2 clips within 4 %" in lines[0]
  assert lines[1].endswith(": 3.00 27.25 51.50 75.75 90.30 100.00")
  assert lines[2] == "one topology, frames: 2 registered, 1 doubtful, 1 failed"
  assert "as shown, worst HD99: 2 of 2 clips" in lines[4]
  assert "mean 2.00, largest 3.00" in lines[6]
