"""Reading clips: which frames come out, with which colours, and what fails."""

import os
import pathlib
import struct

import av
import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.io.video import frames as video_frames
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer

GREYS = 20 * np.arange(12) + 10  # Frame i of a test clip has this level.


def grey_clip(num_frames=12, height=32, width=48):
  levels = GREYS[:num_frames, None, None, None].astype(np.uint8)
  return np.broadcast_to(levels, (num_frames, height, width, 3)).copy()


def encode(path, frames, codec, pixel_format, rate=10, options=None):
  """Encodes with any codec and container, pixel for pixel as given."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixel_format
    for picture in frames:
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def shown_indices(clip):
  """Which frames of a grey clip these are, by their level."""
  levels = clip.frames[..., :3].astype(float).mean(axis=(1, 2, 3))
  indices = np.rint((levels - 10) / 20).astype(int)
  assert np.abs(levels - GREYS[indices]).max() < 4
  return indices.tolist()


def select(times, num_frames, start=None, end=None):
  return video_frames.select_frames(
    np.array(times), num_frames, start, end, "clip"
  ).tolist()


def test_selection_is_uniform_in_time_with_both_ends():
  assert select(range(10), 4) == [0, 3, 6, 9]
  assert select(range(8), 3) == [0, 3, 7]  # The earlier of two equally near.
  assert select(range(5), 1) == [0]


def test_selection_takes_every_frame_once_where_times_are_uneven():
  # Nearest to 0, 3.3, 6.7 and 10 would be frames 0, 3, 4 and 4.
  assert select([0, 0.1, 0.2, 0.3, 10], 4) == [0, 2, 3, 4]


def test_selection_never_repeats_frames():
  assert select(range(3), 16) == [0, 1, 2]


def test_selection_keeps_to_start_and_end():
  assert select([0, 0.1, 0.2, 0.3, 0.4], None, 0.1, 0.3) == [1, 2, 3]
  with pytest.raises(reader.InputError, match="no frame between 7 and 8 s"):
    select(range(5), None, 7, 8)


@pytest.mark.parametrize(
  "name, codec, pixel_format",
  [
    ("clip.mp4", "libx264", "yuv420p"),
    ("clip.mp4", "mpeg4", "yuv420p"),
    ("clip.mov", "prores_ks", "yuv422p10le"),
    ("clip.webm", "libvpx-vp9", "yuv420p"),
    ("clip.avi", "mpeg4", "yuv420p"),
    ("clip.mkv", "ffv1", "yuv444p"),
    ("clip.gif", "gif", "rgb8"),
    ("odd:name, 100%.mp4", "libx264", "yuv420p"),
  ],
)
def test_reads_every_container(tmp_path, name, codec, pixel_format):
  path = encode(tmp_path / name, grey_clip(), codec, pixel_format)
  clip = reader.read_frames(path)
  assert clip.frames.shape == (12, 32, 48, 4)
  assert not clip.has_alpha
  assert clip.name == name.rpartition(".")[0]
  if codec != "gif":  # 3-3-2 bits of colour cannot tell these greys apart.
    assert shown_indices(clip) == list(range(12))
  np.testing.assert_allclose(clip.timestamps, np.arange(12) / 10, atol=2e-3)
  assert clip.fps == pytest.approx(10, rel=0.01)


def test_resamples_a_video_by_nearest_time(tmp_path):
  path = encode(tmp_path / "clip.mp4", grey_clip(), "libx264", "yuv420p")
  clip = reader.read_frames(path, num_frames=4)
  assert shown_indices(clip) == [0, 4, 7, 11]  # Nearest to 0, 3.7, 7.3, 11.
  np.testing.assert_allclose(clip.timestamps, [0, 0.4, 0.7, 1.1], atol=1e-6)
  assert clip.fps == pytest.approx(3 / 1.1)


def test_reads_a_part_of_a_video(tmp_path):
  path = encode(tmp_path / "clip.webm", grey_clip(), "libvpx-vp9", "yuv420p")
  clip = reader.read_frames(path, start=0.3, end=0.7, num_frames=3)
  assert shown_indices(clip) == [3, 5, 7]
  np.testing.assert_allclose(clip.timestamps, [0.3, 0.5, 0.7], atol=2e-3)


def test_short_clip_gives_the_frames_it_has(tmp_path):
  path = encode(tmp_path / "c.mp4", grey_clip(3), "libx264", "yuv420p")
  assert shown_indices(reader.read_frames(path, num_frames=16)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["clip.webm", "clip.mov", "clip.gif", "clip"])
def test_keeps_alpha(tmp_path, name):
  frames = np.full((4, 32, 48, 4), 255, np.uint8)
  frames[:, :, :, :3] = (200, 60, 30)
  frames[:, :, 24:, 3] = 0
  path = writer.write_video(tmp_path / name, frames, fps=10)
  clip = reader.read_frames(path)
  assert clip.has_alpha
  assert clip.num_frames == (1 if name == "clip.gif" else 4)  # Equal frames.
  assert clip.frames[:, :, :22, 3].min() > 250
  assert clip.frames[:, :, 26:, 3].max() < 5
  np.testing.assert_allclose(clip.frames[0, 16, 8, :3], (200, 60, 30), atol=5)


def test_scales_large_frames_down(tmp_path):
  clip = grey_clip(3, height=64, width=160)
  path = encode(tmp_path / "clip.mp4", clip, "libx264", "yuv420p")
  assert reader.read_frames(path, max_side=80).frames.shape == (3, 32, 80, 4)
  assert reader.read_frames(clip, max_side=80).frames.shape == (3, 32, 80, 4)


def test_scaling_down_lets_no_hidden_colour_into_the_edges():
  frames = np.zeros((1, 64, 64, 4), np.uint8)
  frames[..., 1] = 255  # Green, but fully transparent ...
  frames[:, :33, :] = (200, 0, 0, 255)  # ... next to opaque red.
  clip = reader.read_frames(frames, max_side=32)
  assert clip.frames[..., 1][clip.frames[..., 3] > 25].max() <= 5


def test_honours_the_turn_of_a_phone_video(tmp_path):
  frames = np.zeros((3, 32, 64, 3), np.uint8)
  frames[:, :, :16] = 255  # White at the left.
  path = encode(tmp_path / "clip.mp4", frames, "libx264", "yuv420p")
  content = bytearray(path.read_bytes())
  matrix = content.index(b"tkhd") + 44  # After tag, version and times.
  one = 1 << 16
  assert struct.unpack_from(">i", content, matrix)[0] == one
  turn = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # A quarter clockwise.
  struct.pack_into(">9i", content, matrix, *turn)
  path.write_bytes(content)
  clip = reader.read_frames(path)
  assert clip.frames.shape == (3, 64, 32, 4)
  assert clip.frames[0, :12, :, 0].min() > 200  # The left came to the top.
  assert clip.frames[0, 20:, :, 0].max() < 50


def test_honours_the_pixel_aspect(tmp_path):
  path = tmp_path / "clip.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    stream.codec_context.sample_aspect_ratio = 2
    picture = av.VideoFrame.from_ndarray(grey_clip(1, 32, 32)[0])
    container.mux(stream.encode(picture))
    container.mux(stream.encode(None))
  assert reader.read_frames(path).frames.shape == (1, 32, 64, 4)


def test_refuses_what_does_not_fit_in_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(video_frames, "MAX_BYTES", 5 * 32 * 48 * 4)
  path = encode(tmp_path / "clip.mp4", grey_clip(), "libx264", "yuv420p")
  with pytest.raises(reader.InputError, match="ask for fewer frames"):
    reader.read_frames(path)
  assert reader.read_frames(path, num_frames=5).num_frames == 5


def test_reads_a_single_picture(tmp_path):
  path = tmp_path / "cat.png"
  Image.fromarray(grey_clip(3)[2]).save(path)
  clip = reader.read_frames(path, num_frames=16)
  assert clip.frames.shape == (1, 32, 48, 4)
  assert (clip.name, clip.fps, clip.timestamps.tolist()) == ("cat", 24.0, [0])


def test_reads_pictures_of_every_mode(tmp_path):
  deep = np.full((20, 30), 51 * 257, np.uint16)
  Image.fromarray(deep).save(tmp_path / "deep.png")
  palette = Image.fromarray(np.zeros((20, 30), np.uint8), "P")
  palette.putpalette([51, 51, 51, 9, 9, 9])
  palette.save(tmp_path / "palette.png", transparency=1)
  grey = Image.new("LA", (30, 20), (51, 128))
  grey.save(tmp_path / "grey.png")
  for name, alpha in (("deep", 255), ("palette", 255), ("grey", 128)):
    frames = reader.read_frames(tmp_path / f"{name}.png").frames
    assert frames.shape == (1, 20, 30, 4)
    assert frames[0, 5, 5].tolist() == [51, 51, 51, alpha]


def test_applies_exif_orientation(tmp_path):
  picture = Image.new("RGB", (40, 20))
  exif = picture.getexif()
  exif[0x0112] = 6
  picture.save(tmp_path / "a.jpg", exif=exif)
  assert reader.read_frames(tmp_path / "a.jpg").frames.shape == (1, 40, 20, 4)
  assert reader.read_frames(tmp_path).frames.shape == (1, 40, 20, 4)


def test_reads_an_animated_gif_with_its_delays(tmp_path):
  pictures = [Image.fromarray(frame) for frame in grey_clip(4)]
  pictures[0].save(
    tmp_path / "a.gif",
    save_all=True,
    append_images=pictures[1:],
    duration=[100, 300, 50, 200],
  )
  clip = reader.read_frames(tmp_path / "a.gif")
  assert shown_indices(clip) == [0, 1, 2, 3]
  np.testing.assert_allclose(clip.timestamps, [0, 0.1, 0.4, 0.45])


def test_reads_a_folder_in_natural_order(tmp_path):
  frames = grey_clip(12)
  for index in range(12):
    Image.fromarray(frames[index]).save(tmp_path / f"frame{index}.png")
  (tmp_path / "notes.txt").write_text("not a frame")
  (tmp_path / ".hidden.png").write_bytes(b"not a frame")
  clip = reader.read_frames(tmp_path, fps=10)
  assert shown_indices(clip) == list(range(12))
  assert clip.fps == pytest.approx(10)
  assert shown_indices(reader.read_frames(tmp_path, num_frames=2)) == [0, 11]


def test_reads_an_array():
  clip = reader.read_frames(grey_clip(), num_frames=3, start=0.1, fps=10)
  assert shown_indices(clip) == [1, 6, 11]
  np.testing.assert_allclose(clip.timestamps, [0.1, 0.6, 1.1])
  with pytest.raises(reader.InputError, match=r"got float64 \[2, 3, 4\]"):
    reader.read_frames(np.zeros((2, 3, 4)))
  with pytest.raises(reader.InputError, match="no frames"):
    reader.read_frames(np.zeros((0, 32, 32, 3), np.uint8))


def test_refuses_arguments_without_sense():
  for arguments in (
    dict(num_frames=0),
    dict(fps=0.0),
    dict(start=2, end=1),
    dict(max_side=1),
  ):
    with pytest.raises(ValueError):
      reader.read_frames(grey_clip(), **arguments)


def make_random_bytes(path: pathlib.Path):
  path.write_bytes(np.random.default_rng(0).bytes(20000))


def make_sound(path: pathlib.Path):
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("aac", rate=48000)
    silence = np.zeros((1, 4096), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
    frame.sample_rate = 48000
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_no_frames(path: pathlib.Path):
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    container.start_encoding()


@pytest.mark.parametrize(
  "name, make, message",
  [
    ("random.mp4", make_random_bytes, "not a video"),
    ("none.mp4", make_no_frames, "no video in it|no frame"),
    ("empty.mp4", lambda path: path.write_bytes(b""), "not a video"),
    ("text.mp4", lambda p: p.write_text("hello\n" * 99), "not a video"),
    ("text.txt", lambda p: p.write_text("hello\n" * 99), "not a video"),
    ("list.m3u8", lambda p: p.write_text("#EXTM3U\nx.ts\n"), "not a vid"),
    ("random.png", make_random_bytes, "not a video"),
    ("sound.mp4", make_sound, "only 1 other stream"),
    ("none.mkv", make_no_frames, "no frame that decodes"),
    ("none.avi", make_no_frames, "no frame that decodes"),
    ("missing.mp4", lambda path: None, "does not exist"),
    ("folder", lambda path: path.mkdir(), "is empty"),
    ("pipe.mp4", os.mkfifo, "neither a file nor a folder"),
  ],
)
def test_says_what_is_wrong_with_bad_input(tmp_path, name, make, message):
  make(tmp_path / name)
  with pytest.raises(reader.InputError, match=message):
    reader.read_frames(tmp_path / name)


def test_refuses_frames_of_one_pixel(tmp_path):
  dot = np.zeros((3, 1, 1, 3), np.uint8)
  encode(tmp_path / "dot.mkv", dot, "ffv1", "yuv444p")
  Image.fromarray(dot[0]).save(tmp_path / "dot.png")
  for source in (tmp_path / "dot.mkv", tmp_path / "dot.png", dot, tmp_path):
    with pytest.raises(reader.InputError, match="1x1 pixels"):
      reader.read_frames(source)


def test_refuses_a_folder_without_pictures(tmp_path):
  (tmp_path / "notes.txt").write_text("nothing to see")
  with pytest.raises(reader.InputError, match="1 entries but no picture"):
    reader.read_frames(tmp_path)


def test_names_the_picture_of_another_size(tmp_path):
  for index, width in enumerate((48, 48, 50)):
    Image.new("RGB", (width, 32)).save(tmp_path / f"{index}.png")
  with pytest.raises(reader.InputError, match="2.png is 50x32"):
    reader.read_frames(tmp_path)


def test_names_the_picture_that_does_not_decode(tmp_path):
  Image.new("RGB", (48, 32)).save(tmp_path / "0.png")
  (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
  with pytest.raises(reader.InputError, match="1.png does not decode"):
    reader.read_frames(tmp_path)


def noisy_clip(tmp_path, name, options):
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
  return encode(tmp_path / name, frames, "libx264", "yuv420p", options=options)


def test_uses_what_decodes_of_a_truncated_video(tmp_path):
  path = noisy_clip(tmp_path, "clip.mkv", {"g": "1"})
  whole = reader.read_frames(path)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  part = reader.read_frames(path)
  assert 2 <= part.num_frames < 12
  np.testing.assert_array_equal(part.frames, whole.frames[: part.num_frames])


def test_refuses_a_truncated_video_with_too_few_frames(tmp_path):
  path = noisy_clip(tmp_path, "clip.mp4", {"g": "1"})
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])  # Its index is at the end.
  with pytest.raises(reader.InputError, match="not a video that can be read"):
    reader.read_frames(path)
  # With the index kept, but the second half of the data overwritten:
  start = content.index(b"mdat") + 4
  end = content.index(b"moov") - 4
  middle = (start + end) // 2
  path.write_bytes(content[:middle] + bytes(end - middle) + content[end:])
  with pytest.raises(reader.InputError, match=r"of 12 frames decode, and 10"):
    reader.read_frames(path, num_frames=10)
  assert reader.read_frames(path, num_frames=3).num_frames == 3


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif"])
def test_damaged_bytes_give_frames_or_a_message(tmp_path, name):
  whole = writer.write_video(tmp_path / name, grey_clip(), fps=10)
  content = np.frombuffer(whole.read_bytes(), np.uint8)
  for seed in range(10):
    rng = np.random.default_rng(seed)
    damaged = content.copy()
    where = rng.integers(0, len(content), 20)
    damaged[where] = rng.integers(0, 256, 20)
    path = tmp_path / f"{seed}{name}"
    path.write_bytes(damaged.tobytes())
    try:
      clip = reader.read_frames(path, num_frames=4)
    except reader.InputError:
      continue
    assert 1 <= clip.num_frames <= 4
    assert (np.diff(clip.timestamps) > 0).all()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_refuses_a_file_without_permission(tmp_path):
  path = encode(tmp_path / "c.mp4", grey_clip(3), "libx264", "yuv420p")
  path.chmod(0)
  with pytest.raises(reader.InputError, match="may not be read"):
    reader.read_frames(path)


def _thin(count, num_frames, rate, caplog):
  caplog.set_level("INFO")
  frames = np.zeros((count, 16, 16, 4), np.uint8)
  frames[..., 3] = 255
  reader.read_frames(frames, num_frames=num_frames, fps=rate)
  return caplog.text


def test_a_long_clip_that_is_thinned_is_warned_about(caplog):
  # 31 frames, one a second: 30 s from the first to the last, in 7 gaps.
  text = _thin(31, 8, 1.0, caplog)
  assert "The array: 8 of 31 frames are used, 4.29 s apart." in text
  assert "Faster motion is lost" in text and "WARNING" in text


def test_frames_left_out_of_a_short_clip_are_counted(caplog):
  text = _thin(9, 5, 10.0, caplog)
  assert "The array: 5 of 9 frames are used, 0.20 s apart." in text
  assert "WARNING" not in text


def test_one_frame_of_a_clip_and_a_whole_clip(caplog):
  text = _thin(9, 1, 1.0, caplog)
  assert "The array: 1 of 9 frames are used." in text
  assert "WARNING" not in text
  caplog.clear()
  assert _thin(9, 9, 24.0, caplog) == "" == _thin(9, None, 24.0, caplog)
