"""Frame times, and the frames visible to players with fixed steps."""

import json
import struct

import numpy as np
import pytest

from sculpt4d_jax.io.meshes import frame_times
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import usd
from tests.io import clips

UNEVEN = [0, 0.083, 0.167, 0.25, 1.17, 2.17, 3.17, 4.17]


def seen(path, instants):
  """The frames whose nodes are at full size at each of some times."""
  content = path.read_bytes()
  length = struct.unpack_from("<I", content, 12)[0]
  document = json.loads(content[20 : 20 + length])
  binary = content[28 + length :]

  def floats(number):
    accessor = document["accessors"][number]
    view = document["bufferViews"][accessor["bufferView"]]
    count = accessor["count"] * (3 if accessor["type"] == "VEC3" else 1)
    return np.frombuffer(binary, "<f4", count, view["byteOffset"])

  frames = []
  for instant in instants:
    shown = []
    for node, sampler in enumerate(document["animations"][0]["samplers"]):
      keys, scales = floats(sampler["input"]), floats(sampler["output"])[::3]
      key = np.searchsorted(keys.astype(np.float64), instant, side="right") - 1
      if scales[max(0, key)]:
        shown.append(node)
    assert len(shown) == 1
    frames += shown
  return frames


def test_edges_by_hand():
  assert frame_times.frame_edges(2, 4).tolist() == [0, 0.25, 0.5]
  # The median of 1, 1 and 3 seconds is the last frame's length.
  edges = frame_times.frame_edges(4, 1, [2, 3, 4, 7])
  assert edges.tolist() == [0, 1, 2, 5, 6]
  assert frame_times.frame_edges(1, 4, [9]).tolist() == [0, 0.25]


@pytest.mark.parametrize(
  "times, message",
  [
    ([0, 1], "one number a frame, 3"),
    ([0, 1, 1], "increase"),
    ([0, np.nan, 2], "finite"),
  ],
)
def test_bad_times_are_refused(tmp_path, times, message):
  for write, name in (
    (glb.write_animated_glb, "a.glb"),
    (usd.write_animated_usd, "a.usda"),
  ):
    with pytest.raises(ValueError, match=message):
      write(tmp_path / name, [clips.TRIANGLE] * 3, 8, times=times)
  assert not list(tmp_path.iterdir())


def test_a_containers_clock_does_not_make_frames_uneven():
  milliseconds = np.round(np.arange(12) / 23.976, 3)
  edges = frame_times.frame_edges(12, 23.976, milliseconds)
  assert frame_times.is_even(edges)
  assert not frame_times.is_even(frame_times.frame_edges(8, 1, UNEVEN))


def test_short_frames_take_from_the_next_one():
  edges = np.array([0, 0.5, 0.51, 1.0])
  assert frame_times.for_players(edges, 10).tolist() == [0, 0.5, 0.6, 1.0]
  # All are short: the whole becomes longer, and the first lasts two steps.
  even = frame_times.for_players(np.arange(5) / 30, 10)
  np.testing.assert_allclose(even, [0, 0.2, 0.3, 0.4, 0.5])


def test_every_frame_of_a_glb_has_its_own_time(tmp_path):
  path = tmp_path / "clip.glb"
  glb.write_animated_glb(path, [clips.TRIANGLE] * 8, 1.68, times=UNEVEN)
  assert seen(path, np.array(UNEVEN) + 0.01) == list(range(8))
  assert seen(path, [0.24, 0.26, 1.16, 1.18, 4.9]) == [2, 3, 3, 4, 7]


@pytest.mark.parametrize("fps", [5.3, 8, 12, 23.976, 24, 30, 60, None])
@pytest.mark.parametrize("rate", [24, 30, 60])
def test_players_that_step_skip_no_frame(tmp_path, fps, rate):
  times = UNEVEN if fps is None else np.arange(40) / fps
  count = len(times)
  edges = frame_times.for_players(
    frame_times.frame_edges(count, fps or 1.68, times)
  )
  path = tmp_path / "clip.glb"
  glb.write_animated_glb(
    path, [clips.TRIANGLE] * count, fps or 1.68, times=edges[:-1]
  )
  steps = np.arange(int(np.ceil(edges[-1] * rate))) / rate
  for played in (steps, steps[1:]):  # Blender's timeline starts at frame 1.
    frames = seen(path, played)
    assert sorted(set(frames)) == list(range(count))
    assert (np.diff(frames) >= 0).all()


def test_every_frame_of_a_usd_file_has_its_own_time(tmp_path):
  pxr = pytest.importorskip("pxr.Usd", reason="the extra 'usd' is missing")
  # Frame i has i + 1 triangles, so that nothing is interpolated.
  meshes = [
    clips.TriangleMesh(
      np.tile(clips.TRIANGLE.vertices, (i + 1, 1)),
      np.arange(3 * (i + 1)).reshape(-1, 3),
    )
    for i in range(8)
  ]
  path = tmp_path / "clip.usda"
  usd.write_animated_usd(path, meshes, 1.68, times=UNEVEN)
  stage = pxr.Stage.Open(str(path))
  rate = stage.GetTimeCodesPerSecond()
  counts = stage.GetPrimAtPath("/Sculpt4D/Mesh").GetAttribute(
    "faceVertexCounts"
  )
  shown = [len(counts.Get(rate * (time + 1e-3))) - 1 for time in UNEVEN]
  assert shown == list(range(8))
  first, last = stage.GetStartTimeCode(), stage.GetEndTimeCode()
  stepped = [len(counts.Get(code)) - 1 for code in np.arange(first, last + 0.5)]
  assert sorted(set(stepped)) == list(range(8))
  read, _ = usd.read_animated_usd(path)
  clips.assert_same_meshes(read, meshes)
