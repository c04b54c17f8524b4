"""Clips that are difficult to decode; see tests/data/clips/README.md."""

import pathlib

import av
import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer

CLIPS = pathlib.Path(__file__).resolve().parents[2] / "data" / "clips"


def orange(frame):
  """Where the F is, bool [height, width]."""
  red, blue = frame[..., 0].astype(int), frame[..., 2].astype(int)
  return (red > blue + 80) & (frame[..., 3] > 128)


def test_a_mirrored_clip_is_mirrored_and_upright():
  mask = orange(reader.read_frames(CLIPS / "mirror_matrix.mp4").frames[0])
  rows, columns = np.nonzero(mask)
  # A mirrored F: the stem at the right, the bar on top.
  assert mask[rows.max() - 5, columns.max() - 20]
  assert not mask[rows.max() - 5, columns.min() + 20]
  assert mask[rows.min() + 5, columns.min() + 10]


def test_the_hidden_picture_of_a_png_is_no_frame():
  clip = reader.read_frames(CLIPS / "hidden_default_image.apng")
  assert clip.num_frames == 8
  np.testing.assert_allclose(clip.timestamps, np.arange(8) / 10)
  is_red = (clip.frames == [255, 0, 0, 255]).all(axis=-1)
  assert is_red.mean() < 0.01


def test_a_png_of_one_hidden_and_one_shown_picture(tmp_path):
  hidden, shown = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32))
  hidden.save(
    tmp_path / "a.png", save_all=True, append_images=[shown], default_image=True
  )
  clip = reader.read_frames(tmp_path / "a.png")
  assert clip.num_frames == 1
  assert not clip.frames[..., :3].any()


def test_an_animated_avif_gives_all_frames_with_alpha():
  clip = reader.read_frames(CLIPS / "animated.avif")
  assert clip.num_frames == 8
  np.testing.assert_allclose(clip.timestamps, np.arange(8) / 10)
  assert (clip.frames[..., 3] > 128).mean() == pytest.approx(0.126, abs=0.005)
  assert np.ptp([np.argwhere(orange(f)).mean() for f in clip.frames]) > 2


def write_tiff(path, pages, **options):
  pages[0].save(path, save_all=True, append_images=pages[1:], **options)
  return path


def test_pages_of_a_tiff_are_frames(tmp_path):
  pages = [Image.new("L", (48, 32), 20 * level) for level in range(5)]
  clip = reader.read_frames(write_tiff(tmp_path / "a.tif", pages), fps=10)
  assert clip.frames[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80]
  np.testing.assert_allclose(clip.timestamps, np.arange(5) / 10)
  assert clip.fps == pytest.approx(10)
  part = reader.read_frames(tmp_path / "a.tif", num_frames=2)
  assert part.frames[:, 0, 0, 0].tolist() == [0, 80]


def test_thumbnails_in_a_tiff_are_no_frames(tmp_path, caplog):
  pages = [Image.new("L", size, 99) for size in ((48, 32), (24, 16), (48, 32))]
  clip = reader.read_frames(write_tiff(tmp_path / "a.tif", pages))
  assert clip.frames.shape == (2, 32, 48, 4)
  assert "3 pages; the 2 of the first one's size" in caplog.text


def test_uneven_times_are_kept():
  clip = reader.read_frames(CLIPS / "variable_rate.mp4", num_frames=8)
  np.testing.assert_allclose(
    clip.timestamps, [0, 0.083, 0.167, 0.25, 1.17, 2.17, 3.17, 4.17], atol=5e-3
  )


def test_hdr_becomes_standard_range():
  frame = reader.read_frames(CLIPS / "hdr_hlg.mp4", num_frames=1).frames[0]
  assert frame[2, 2, :3].min() >= 250
  near = np.abs(frame[..., :3].astype(int) - (184, 96, 25)).max(axis=-1) <= 4
  assert near.mean() > 0.01


@pytest.mark.parametrize("name", ["damaged_alpha.avif", "damaged_item.avif"])
def test_a_damaged_picture_is_said_to_be_one(name):
  with pytest.raises(reader.InputError, match="does not decode as a picture"):
    reader.read_frames(CLIPS / name)


def test_a_packet_that_does_not_decode_costs_its_frame_only(caplog):
  clip = reader.read_frames(CLIPS / "one_bad_frame.mov", num_frames=8)
  assert clip.num_frames == 5
  np.testing.assert_allclose(clip.timestamps * 12, [0, 2, 3, 4, 5], atol=0.1)
  assert "is damaged: 5 of 6 frames decode" in caplog.text


def test_whole_frames_beside_a_damaged_packet_are_unchanged(tmp_path, caplog):
  frames = np.full((6, 48, 64, 4), 255, np.uint8)
  frames[..., :3] = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3))
  path = writer.write_video(tmp_path / "clip.mov", frames, fps=12)
  whole = reader.read_frames(path)
  with av.open(str(path)) as container:
    packets = [p for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    content[packets[2].pos + 8] ^= 0xFF  # In the frame's header.
  path.write_bytes(content)
  clip = reader.read_frames(path, num_frames=6)
  left = [0, 1, 3, 4, 5]
  np.testing.assert_array_equal(clip.frames, whole.frames[left])
  np.testing.assert_allclose(clip.timestamps, whole.timestamps[left])
  assert "5 of 6 frames decode" in caplog.text


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm"])
def test_seeking_gives_what_decoding_everything_gives(
  tmp_path, monkeypatch, name
):
  """Late parts and thin selections of a clip with several key frames."""
  decoded = []
  frames = np.zeros((120, 32, 48, 3), np.uint8)
  frames[..., 0] = (2 * np.arange(120))[:, None, None]
  codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
  with av.open(str(tmp_path / name), "w") as container:
    stream = container.add_stream(codec, rate=24, options={"g": "20"})
    stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
    container.mux(stream.encode(None))
  inner = reader.decoder._decode_packet

  def counting(decoder, packet):
    result = inner(decoder, packet)
    decoded.extend(result)
    return result

  monkeypatch.setattr(reader.decoder, "_decode_packet", counting)
  for window in (dict(start=4.5), dict(num_frames=3), dict(start=1.1, end=1.3)):
    decoded.clear()
    fast = reader.read_frames(tmp_path / name, **window)
    count = len(decoded)
    with monkeypatch.context() as without:
      without.setattr(
        reader.decoder._Reader, "decode_by_seeking", lambda *_: {}
      )
      slow = reader.read_frames(tmp_path / name, **window)
    np.testing.assert_array_equal(fast.frames, slow.frames)
    np.testing.assert_array_equal(fast.timestamps, slow.timestamps)
    if "end" not in window:
      assert count < 70, window
