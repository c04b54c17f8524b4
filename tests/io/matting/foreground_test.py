"""Foregrounds of synthetic clips, compared with the known masks."""

import builtins

import numpy as np
import pytest
from scipy import ndimage

from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.matting import motion
from sculpt4d_jax.io.matting import onnx
from sculpt4d_jax.io.matting import plain_background
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer

HEIGHT, WIDTH = 120, 160


def discs(num_frames=6, radius=28, step=10):
  """Coverage in [0, 1] of a disc that moves to the right, [F, H, W]."""
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  return np.stack(
    [
      np.clip(radius + 0.5 - np.hypot(rows - 60, columns - 40 - step * i), 0, 1)
      for i in range(num_frames)
    ]
  )


def textured(shape=(HEIGHT, WIDTH), seed=0, low=60, high=230):
  """A smooth random colour texture, float [H, W, 3]."""
  noise = np.random.default_rng(seed).normal(size=(*shape, 3))
  smooth = ndimage.gaussian_filter(noise, (6, 6, 0))
  smooth = (smooth - smooth.min()) / np.ptp(smooth)
  return low + (high - low) * smooth


def paint(coverage, background, colours=None):
  """Mixes an object into a background by its coverage: uint8 frames."""
  colours = np.array([200, 60, 40.0]) if colours is None else colours
  share = coverage[..., None]
  return np.rint(share * colours + (1 - share) * background).astype(np.uint8)


def intersection_over_union(alpha, coverage):
  found, true = alpha >= 128, coverage >= 0.5
  return (found & true).sum() / (found | true).sum()


def compressed(tmp_path, frames, name="clip.mp4"):
  path = writer.write_video(tmp_path / name, frames, fps=10)
  return reader.read_frames(path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm"])
@pytest.mark.parametrize(
  "background", [(255, 255, 255), (0, 0, 0), (0, 200, 40), (128, 128, 128)]
)
def test_finds_moving_discs_on_compressed_plain_colours(
  tmp_path, name, background
):
  coverage = discs()
  clip = compressed(tmp_path, paint(coverage, background), name)
  result = foreground.extract(clip)
  assert result.method == "plain"
  assert result.confidence > 0.9
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.98


def test_finds_textured_object_on_a_gradient_with_noise():
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  vignette = 150 + 0.3 * rows - 0.004 * (columns - 80) ** 2
  background = np.stack([vignette, vignette + 10, vignette + 20], axis=-1)
  coverage = discs()
  frames = paint(coverage, background, textured(low=0, high=110))
  noise = np.random.default_rng(1).normal(scale=2, size=frames.shape)
  frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "plain"
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.98


def test_alpha_at_the_edge_is_the_coverage_and_colours_are_pure():
  coverage = discs()
  clip = reader.read_frames(paint(coverage, (255, 255, 255)))
  result = foreground.extract(clip)
  alpha = result.frames[..., 3] / 255
  # What is fainter than ringing would be is taken for background.
  assert coverage[alpha == 0].max() < 0.11
  seen = alpha > 0
  np.testing.assert_allclose(alpha[seen], coverage[seen], atol=0.01)
  solid = coverage > 0.4
  np.testing.assert_allclose(
    result.frames[solid][:, :3],
    np.broadcast_to([200, 60, 40], (solid.sum(), 3)),
    atol=6,
  )


def test_background_colour_inside_the_object_stays():
  coverage = discs()
  hole = discs(radius=8)
  frames = paint(coverage, (255, 255, 255))
  frames[hole > 0.5] = 255
  result = foreground.extract(reader.read_frames(frames), "plain")
  assert result.frames[..., 3][hole > 0.5].min() == 255


def test_follows_a_fade_to_black_and_keeps_empty_frames():
  coverage = discs()
  coverage[0] = 0
  fade = np.array([1, 1, 1, 0.8, 0.5, 0.0])[:, None, None, None]
  frames = np.rint(paint(coverage, (60, 90, 120)) * fade).astype(np.uint8)
  result = foreground.extract(reader.read_frames(frames))
  alpha = result.frames[..., 3]
  assert not alpha[0].any() and not alpha[5].any()
  assert intersection_over_union(alpha[1:5], coverage[1:5]) > 0.98


def test_object_may_touch_the_border():
  coverage = discs()
  coverage[:, 60:, 60:110] = 1
  result = foreground.extract(reader.read_frames(paint(coverage, (9, 9, 9))))
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.99


def test_stray_specks_are_dropped():
  coverage = discs()
  frames = paint(coverage, (250, 250, 250))
  frames[:, 5, 5] = (240, 240, 240)
  result = foreground.extract(reader.read_frames(frames))
  assert not result.frames[:, :20, :11, 3].any()


def test_given_alpha_comes_first():
  frames = np.full((2, 40, 40, 4), 255, np.uint8)
  frames[:, :, 20:, 3] = 0
  clip = reader.read_frames(frames)
  result = foreground.extract(clip)
  assert result.method == "alpha"
  np.testing.assert_array_equal(result.frames, frames)


def test_whole_frame_can_be_the_object():
  result = foreground.extract(reader.read_frames(paint(discs(), 0)), "none")
  assert (result.frames[..., 3] == 255).all()


def test_opaque_alpha_is_none():
  clip = reader.read_frames(paint(discs(), 255))
  with pytest.raises(reader.InputError, match="no alpha channel"):
    foreground.extract(clip, "alpha")


@pytest.mark.parametrize("num_frames", [1, 4])
def test_plain_clip_without_object_is_refused(num_frames):
  frames = np.full((num_frames, 64, 64, 3), 77, np.uint8)
  with pytest.raises(reader.InputError, match="No object was found"):
    foreground.extract(reader.read_frames(frames))


def test_empty_alpha_is_refused():
  frames = np.zeros((2, 64, 64, 4), np.uint8)
  with pytest.raises(reader.InputError, match="No object was found"):
    foreground.extract(reader.read_frames(frames))


def test_textured_border_is_not_plain():
  frames = paint(discs(), textured())
  assert plain_background.remove(frames) is None
  with pytest.raises(reader.InputError, match="not plain.*--matte none"):
    foreground.extract(reader.read_frames(frames), "plain")


def test_unknown_way_is_refused():
  with pytest.raises(ValueError, match="'magic' is unknown"):
    foreground.extract(reader.read_frames(paint(discs(), 0)), "magic")


def test_finds_what_moves_before_a_still_camera():
  coverage = discs(num_frames=12, radius=14, step=8)
  frames = paint(coverage, textured(), textured(seed=1, low=0, high=120))
  noise = np.random.default_rng(1).normal(scale=2, size=frames.shape)
  frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "motion"
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.9


def test_moving_camera_is_no_moving_object():
  scene = textured((HEIGHT, 2 * WIDTH))
  frames = np.stack([scene[:, 8 * i : 8 * i + WIDTH] for i in range(12)])
  with pytest.raises(cutout.NotApplicable, match="camera moves"):
    motion.cut_out(reader.read_frames(frames.astype(np.uint8)), "")


def test_object_that_stays_in_its_place_is_not_taken_by_its_motion():
  coverage = discs(num_frames=12, step=0)
  coverage[6:] = discs(num_frames=6, step=1)[:]
  frames = paint(coverage, textured())
  with pytest.raises(cutout.NotApplicable):
    motion.cut_out(reader.read_frames(frames), "")


def test_finds_an_object_of_another_colour_before_a_textured_background():
  pytest.importorskip("cv2", reason="the extra 'matting' is missing")
  background = textured() * np.array([0.3, 1.0, 0.4])
  coverage = discs(num_frames=2, step=8)
  clip = reader.read_frames(paint(coverage, background))
  result = foreground.extract(clip)
  assert result.method == "colour"
  assert result.confidence < 0.5
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.9


def test_results_do_not_depend_on_chance():
  pytest.importorskip("cv2", reason="the extra 'matting' is missing")
  frames = paint(discs(num_frames=2), textured())[:, ::2, ::2]
  clip = reader.read_frames(frames)
  first, second = foreground.extract(clip), foreground.extract(clip)
  np.testing.assert_array_equal(first.frames, second.frames)


def protobuf(*fields):
  """Encodes (number, value) pairs; ints as varints, the rest as bytes."""
  content = b""
  for number, value in fields:
    if isinstance(value, int):
      content += bytes([number << 3 & 127 | (128 if number > 15 else 0)])
      content += bytes([number >> 4] if number > 15 else []) + bytes([value])
    else:
      value = value.encode() if isinstance(value, str) else value
      assert len(value) < 16384 and number <= 15
      length = len(value)
      content += bytes([number << 3 | 2])
      if length < 128:
        content += bytes([length])
      else:
        content += bytes([length & 127 | 128, length >> 7])
      content += value
  return content


def onnx_brightest_channel(height, width):
  """A network whose map is the largest of a pixel's three values."""

  def value(name, *sides):
    shape = protobuf(*((1, protobuf((1, side))) for side in sides))
    tensor = protobuf((1, 1), (2, shape))  # 1: float32.
    return protobuf((1, name), (2, protobuf((1, tensor))))

  axes = protobuf((1, "axes"), (8, 1), (20, 7))
  node = protobuf((1, "picture"), (2, "map"), (4, "ReduceMax"), (5, axes))
  graph = protobuf(
    (1, node),
    (2, "graph"),
    (11, value("picture", 1, 3, height, width)),
    (12, value("map", 1, 1, height, width)),
  )
  return protobuf((1, 6), (7, graph), (8, protobuf((2, 11))))


def test_onnx_network_gives_the_alpha(tmp_path):
  pytest.importorskip("onnxruntime", reason="the extra 'matting' is missing")
  path = tmp_path / "brightest.onnx"
  path.write_bytes(onnx_brightest_channel(60, 80))
  coverage = discs(num_frames=2)
  clip = reader.read_frames(paint(coverage, 0, np.array([250, 240, 230.0])))
  result = foreground.extract(clip, f"onnx:{path}")
  assert result.method == "onnx"
  assert intersection_over_union(result.frames[..., 3], coverage) > 0.95


def test_file_that_is_no_network_is_refused(tmp_path):
  pytest.importorskip("onnxruntime", reason="the extra 'matting' is missing")
  path = tmp_path / "net.onnx"
  path.write_bytes(b"no network")
  with pytest.raises(reader.InputError, match="does not load as an ONNX"):
    onnx.OnnxMatting(path)


def test_missing_onnxruntime_names_the_extra(tmp_path, monkeypatch):
  path = tmp_path / "net.onnx"
  path.write_bytes(b"")
  real_import = builtins.__import__

  def without_runtime(name, *args, **kwargs):
    if name == "onnxruntime":
      raise ImportError(name)
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without_runtime)
  with pytest.raises(ImportError, match=r"sculpt4d-jax\[matting\]"):
    onnx.OnnxMatting(path)


def test_missing_network_is_named():
  clip = reader.read_frames(paint(discs(), 0))
  with pytest.raises(reader.InputError, match="nowhere.onnx does not exist"):
    foreground.extract(clip, "onnx:nowhere.onnx")
