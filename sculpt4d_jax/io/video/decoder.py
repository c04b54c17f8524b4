"""Video files, decoded with PyAV.

Only the selected frames are held in memory. First the packets' times are listed
without decoding, and frames are selected by time. One decoding pass then
converts and scales down only these, and seeks past the parts of a long clip
without selected frames. If seeking misses a frame, the pass is repeated from
the start. If the packets' times differ from the frames' (damaged files, missing
time stamps), frames are selected among those that were decoded.
"""

import bisect
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fractions
import os
import pathlib

from absl import logging
import av
import numpy as np

from sculpt4d_jax.io.video import display_matrix
from sculpt4d_jax.io.video import frames as video_frames
from sculpt4d_jax.io.video import hdr
from sculpt4d_jax.io.video import images
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

# Containers that hold video. FFmpeg also "decodes" text files as terminal
# recordings and follows playlists to other addresses, which must not happen.
_CONTAINERS = (
  "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,flv,"
  "asf,ogg,mjpeg,h264,hevc,av1,obu,ivf,yuv4mpegpipe,mxf,nut,dv,apng"
)
# The default decoders of these codecs drop the alpha layer.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Metadata in other encodings is no reason to reject a clip; PyAV 19 and later
# ignore such errors by default.
_PYAV_MAJOR = int(av.__version__.partition(".")[0])
_OPEN_ARGUMENTS = {} if _PYAV_MAJOR >= 19 else {"metadata_errors": "replace"}
_NO_FRAMES = "{} has no frame that decodes; it may be empty or damaged."
_HD_HEIGHT = 720
_DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX
_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED.
# Decoding so many unused frames is cheaper than a seek, which drains the
# decoder.
_MIN_SKIPPED = 24
# A damaged clip with this share of its frames still shows the motion.
_ENOUGH_DECODED = 0.75


def read_video(
  path: pathlib.Path,
  *,
  num_frames: int | None,
  start: float | None,
  end: float | None,
  max_side: int,
) -> VideoFrames:
  """Reads frames of a video file; see `video.read_frames`.

  Raises:
    InputError: Not a video, no frames, frames too small, or a damaged file with
      fewer than `num_frames` (if None, two) decodable frames.
  """
  reader = _Reader(path, max_side)

  def select(ticks: Sequence[int]) -> list[int]:
    seconds = (np.asarray(ticks) - ticks[0]) * float(reader.time_base)
    chosen = video_frames.select_frames(
      seconds, num_frames, start, end, path.name
    )
    return [ticks[i] for i in chosen]

  listed, key_ticks = reader.list_packet_ticks()
  wanted = select(listed) if listed else []
  origin = listed[0] if listed else 0
  kept = {}
  if wanted:
    kept = reader.decode_by_seeking(_runs(wanted, listed, key_ticks))
  if len(kept) < len(wanted):
    kept, _ = reader.decode(wanted)
  if not kept or len(kept) < len(wanted):
    decoded = reader.decode(None)[1]
    if not decoded and reader.is_intra_only:
      logging.warning("%s is damaged: its frames decode with errors.", path)
      reader.keeps_doubtful = True
      decoded = reader.decode(None)[1]
    if not decoded:
      raise InputError(_NO_FRAMES.format(path))
    wanted = select(decoded)
    kept, _ = reader.decode(wanted)
    _check_damage(path, len(wanted), num_frames, len(listed), len(decoded))
    origin = decoded[0]
  ticks = np.array(sorted(kept))
  return video_frames.make_video_frames(
    np.stack([kept[tick] for tick in ticks]),
    (ticks - origin) * float(reader.time_base),
    path.stem,
    reader.fps,
  )


@dataclasses.dataclass
class _Run:
  """Selected frames that are decoded in one pass.

  Attributes:
    seek_to: Tick of the key frame to start from; None starts at the file's
      beginning.
    wanted: Ticks, increasing.
  """

  seek_to: int | None
  wanted: list[int]


def _runs(
  wanted: Sequence[int], listed: Sequence[int], key_ticks: Sequence[int]
) -> list[_Run]:
  """Splits the selected ticks where seeking saves decoding; lists increase."""
  runs: list[_Run] = []
  position = 0  # Index of the next decoded frame.
  for tick in wanted:
    before = bisect.bisect_right(key_ticks, tick)
    key = key_ticks[before - 1] if before else listed[0]
    if bisect.bisect_left(listed, key) - position > _MIN_SKIPPED:
      runs.append(_Run(key, []))
    elif not runs:
      runs.append(_Run(None, []))
    runs[-1].wanted.append(tick)
    position = bisect.bisect_right(listed, tick)
  return runs


def _check_damage(
  path: pathlib.Path,
  num_kept: int,
  num_frames: int | None,
  num_listed: int,
  num_decoded: int,
) -> None:
  if num_decoded >= num_listed:
    return
  too_few = num_kept < (num_frames or 2)
  if too_few and num_decoded < _ENOUGH_DECODED * num_listed:
    raise InputError(
      f"{path} is damaged: {num_decoded} of {num_listed} frames decode, and"
      f" {num_frames or 2} are needed; give a whole file or ask for fewer"
      " frames."
    )
  logging.warning(
    "%s is damaged: %d of %d frames decode; the others are left out.",
    path,
    num_decoded,
    num_listed,
  )


class _Reader:
  """Passes over one video file; times are integer ticks of its time base.

  Attributes:
    time_base: Seconds a tick.
    fps: Mean frame rate.
    is_intra_only: Every frame is coded alone, so that damage does not spread.
    keeps_doubtful: Whether frames that the decoder marks as damaged are used.
  """

  def __init__(self, path: pathlib.Path, max_side: int):
    self._path = path
    self._max_side = max_side
    self._size = None  # Of the first displayed frame.
    with self._open() as (_, stream):
      self.time_base = stream.time_base or fractions.Fraction(1, 1000)
      rate = stream.average_rate or stream.guessed_rate or 24
      self.fps = float(rate)
      self.is_intra_only = stream.codec_context.codec.intra_only
      self.keeps_doubtful = False
      self._ticks_per_frame = max(1, round(1 / (rate * self.time_base)))

  def list_packet_ticks(self) -> tuple[list[int], list[int]]:
    """Times of all packets and of key frames; empty if some packet has none."""
    ticks, keys = set(), set()
    with self._open() as (container, stream):
      for packet in _packets(container, stream):
        if packet.size and packet.pts is None:
          return [], []
        if packet.size and not packet.is_discard:
          ticks.add(packet.pts)
          if packet.is_keyframe:
            keys.add(packet.pts)
    return sorted(ticks), sorted(keys)

  def decode_by_seeking(self, runs: Sequence[_Run]) -> dict[int, np.ndarray]:
    """Decodes runs of frames, each from its key frame.

    Returns:
      The frames by tick, uint8 [height, width, 4]; some are missing where the
      file's index is wrong or its format has none.
    """
    kept: dict[int, np.ndarray] = {}
    num_wanted = sum(len(run.wanted) for run in runs)
    with self._open() as (container, stream):
      for run in runs:
        if run.seek_to is not None:
          try:
            container.seek(run.seek_to, stream=stream)
          except av.error.FFmpegError:
            return kept
        targets = set(run.wanted)
        for frame in self._frames(container, stream):
          if frame.pts in targets:
            self._check_first(frame, num_wanted, stream)
            kept[frame.pts] = self._to_rgba(frame)
            targets.remove(frame.pts)
          if not targets or (frame.pts or 0) > run.wanted[-1]:
            break
        if targets:
          return kept
    return kept

  def decode(
    self, wanted: Sequence[int] | None
  ) -> tuple[dict[int, np.ndarray], list[int]]:
    """Decodes from the start to the last wanted frame, or all for None.

    Returns:
      The wanted frames by tick, uint8 [height, width, 4], and the ticks of
      all frames seen, increasing.
    """
    kept: dict[int, np.ndarray] = {}
    seen: list[int] = []
    targets = set(wanted or ())
    with self._open() as (container, stream):
      for frame in self._frames(container, stream):
        tick = frame.pts
        if tick is None or (seen and tick <= seen[-1]):
          tick = seen[-1] + self._ticks_per_frame if seen else 0
        seen.append(tick)
        if tick in targets:
          self._check_first(frame, len(targets), stream)
          kept[tick] = self._to_rgba(frame)
          if len(kept) == len(targets):
            break
    return kept, seen

  @contextlib.contextmanager
  def _open(
    self,
  ) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
      with av.open(
        # Without the prefix, FFmpeg would read "a:b.mp4" as protocol "a".
        "file:" + os.fspath(self._path),
        options={
          "format_whitelist": _CONTAINERS,
          "protocol_whitelist": "file",
        },
        **_OPEN_ARGUMENTS,
      ) as container:
        streams = [
          stream
          for stream in container.streams.video
          if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not streams:
          raise InputError(
            f"{self._path} has no video in it, only"
            f" {len(container.streams)} other streams (sound, pictures)."
          )
        if streams[0].codec_context is None:
          raise InputError(
            f"{self._path} is of a kind that FFmpeg cannot decode; convert"
            " it to mp4 (H.264)."
          )
        streams[0].thread_type = "AUTO"
        yield container, streams[0]
    except av.error.EOFError as error:
      raise InputError(_NO_FRAMES.format(self._path)) from error
    except av.error.FFmpegError as error:
      raise InputError(
        f"{self._path} is not a video that can be read"
        f" ({error.strerror or error}); give an mp4, mov, webm, mkv, avi or"
        " gif file that is whole."
      ) from error

  def _frames(
    self, container: av.container.InputContainer, stream: av.VideoStream
  ) -> Iterator[av.VideoFrame]:
    for frame in _frames(container, stream):
      if self.keeps_doubtful or not frame.is_corrupt:
        yield frame

  def _check_first(
    self, frame: av.VideoFrame, num_frames: int, stream: av.VideoStream
  ) -> None:
    if self._size is not None:
      return
    video_frames.check_size(frame.width, frame.height, self._path.name)
    aspect = stream.sample_aspect_ratio or 1
    if not 0.25 <= aspect <= 4:
      aspect = 1  # From a damaged header.
    self._size = video_frames.fit_size(
      round(frame.width * aspect), frame.height, self._max_side
    )
    video_frames.check_memory(num_frames, *self._size, self._path.name)

  def _to_rgba(self, frame: av.VideoFrame) -> np.ndarray:
    width, height = self._size
    matrix = frame.side_data.get(_DISPLAY_MATRIX)
    has_alpha = any(part.is_alpha for part in frame.format.components)
    is_hdr = frame.color_trc in hdr.TRANSFERS and not has_alpha
    transfer, primaries = frame.color_trc, frame.color_primaries
    size = {} if has_alpha else {"width": width, "height": height}
    colorspace = _colorspace(frame)
    if not frame.format.is_rgb:
      # Through full-size chroma planes, which are interpolated instead of
      # repeated. Direct conversion to RGBA also leaves the last columns of some
      # widths unwritten (FFmpeg 8).
      planes = "yuva444p" if has_alpha else "yuv444p"
      frame = frame.reformat(
        format=f"{planes}16le" if is_hdr else planes,
        interpolation="BICUBIC",
        src_colorspace=colorspace,
        dst_colorspace=colorspace,
        **size,
      )
    rgb = "rgb48le" if is_hdr else "rgb24"
    array = frame.to_ndarray(
      format="rgba" if has_alpha else rgb,
      interpolation="BICUBIC",
      src_colorspace=colorspace,
      **size,
    )
    if has_alpha:
      array = images.resize_rgba(array, width, height)
    else:
      if is_hdr:
        array = hdr.to_srgb(array, transfer, primaries)
      opaque = np.full(array.shape[:2], 255, np.uint8)
      array = np.dstack([array, opaque])
    # Phones store upright clips in landscape, with the rotation in the header.
    signs = display_matrix.read(bytes(matrix) if matrix else b"")
    return display_matrix.apply(array, signs)


def _colorspace(frame: av.VideoFrame) -> av.video.reformatter.Colorspace | None:
  """BT.709 for untagged high-definition video, as players assume."""
  if frame.colorspace == _UNTAGGED and frame.height >= _HD_HEIGHT:
    return av.video.reformatter.Colorspace.ITU709
  return None


def _packets(
  container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet]:
  """Packets up to the end, or to where the file is truncated."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except (StopIteration, av.error.FFmpegError):
      return
    yield packet


def _frames(
  container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
  """Frames in display order, including damaged ones."""
  decoder = stream.codec_context
  alpha_mode = stream.metadata.get("alpha_mode") or stream.metadata.get(
    "ALPHA_MODE"
  )
  if alpha_mode == "1" and decoder.name in _ALPHA_DECODERS:
    decoder = av.CodecContext.create(_ALPHA_DECODERS[decoder.name], "r")
  is_flushed = False
  for packet in _packets(container, stream):
    is_flushed = not packet.size
    yield from _decode_packet(decoder, packet if packet.size else None)
  if not is_flushed:
    yield from _decode_packet(decoder, None)


def _decode_packet(
  decoder: av.CodecContext, packet: av.Packet | None
) -> list[av.VideoFrame]:
  try:
    return decoder.decode(packet)
  except av.error.FFmpegError:
    # Decoders report damage by various errors; ProRes by "not permitted".
    return []
