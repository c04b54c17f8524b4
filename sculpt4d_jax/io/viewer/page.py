"""Writes the viewer: one HTML file that plays meshes next to their video.

The page opens from disk without a server, a network or a library: it contains
styles, program, meshes and pictures. `template.html` has the page's body and
styles, `decoder.js` unpacks the meshes, `renderer.js` draws them with WebGL
from the camera of `orbit.js`, and `viewer.js` is the player. For an asset of
one topology, `layers.js` adds texture, errors, bones, onion skin and trails.
"""

import base64
from collections.abc import Mapping, Sequence
import html
from importlib import resources
import io
import json
import os
import re
from typing import Any

import fast_simplification
import numpy as np
from PIL import Image

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.meshes import frame_times
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.viewer import mesh_packing

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_JPEG_QUALITY = 86
_SCRIPTS = ("decoder.js", "renderer.js", "orbit.js", "layers.js", "viewer.js")


def write_viewer(
  path: PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float,
  video_frames: np.ndarray | None = None,
  *,
  times: Sequence[float] | None = None,
  title: str = "Sculpt4D",
  details: Mapping[str, Any] | None = None,
  max_faces: int | None = 60_000,
  max_picture_side: int = 512,
) -> None:
  """Writes a self-contained page that plays the meshes next to the video.

  Args:
    path: Output file (.html).
    meshes: One mesh a frame; topologies may differ and frames may be empty.
    fps: Frames a second.
    video_frames: The input's frames, uint8 [F, h, w, 3], one for each mesh; or
      None for a page without them.
    times: Start of each frame, seconds, increasing from 0; None spaces them by
      1 / fps.
    title: The page's title.
    details: Name -> value, listed next to the meshes, for instance the settings
      of the run.
    max_faces: Frames with more faces are simplified to this many, for the page
      only, so that it stays small; None keeps every face.
    max_picture_side: Larger video frames are scaled down to this many pixels.

  Raises:
    ValueError: There are no frames, the video does not fit the meshes, the rate
      or the times are invalid, or a position is not finite.
    OutputError: The file cannot be written.
  """
  glb.check_sequence(path, meshes, fps, (".html", ".htm"))
  page = viewer_page(
    meshes,
    fps,
    video_frames,
    times=times,
    title=title,
    details=details,
    max_faces=max_faces,
    max_picture_side=max_picture_side,
  )
  atomic.write_bytes(path, page.encode("utf-8"))


def viewer_page(
  meshes: Sequence[TriangleMesh],
  fps: float,
  video_frames: np.ndarray | None = None,
  *,
  times: Sequence[float] | None = None,
  title: str = "Sculpt4D",
  details: Mapping[str, Any] | None = None,
  max_faces: int | None = 60_000,
  max_picture_side: int = 512,
  more: Mapping[str, Any] | None = None,
) -> str:
  """The text of the page that `write_viewer` writes, for the same arguments.

  `more` is added to the page's data; `asset_layers` makes it.

  Raises:
    ValueError: The video does not fit the meshes, or `max_faces` is too small.
  """
  _check_video(video_frames, len(meshes))
  if max_faces is not None and max_faces < 4:
    raise UserError(f"max_faces must be 4 or more, got {max_faces}.")
  meshes = [_simplified(mesh, max_faces) for mesh in meshes]
  quantization = mesh_packing.clip_quantization(meshes)
  pictures = [] if video_frames is None else video_frames
  edges = frame_times.frame_edges(len(meshes), fps, times)
  data = {
    "fps": float(fps),
    "edges": [round(float(edge), 6) for edge in edges],
    "isEven": frame_times.is_even(edges),
    "origin": quantization.origin,
    "step": quantization.step,
    "frames": [mesh_packing.pack_mesh(mesh, quantization) for mesh in meshes],
    "pictures": [data_uri(image, max_picture_side) for image in pictures],
    **(more or {}),
  }
  return _fill_template(title, details or {}, data)


def _check_video(video_frames: np.ndarray | None, num_frames: int) -> None:
  if video_frames is None:
    return
  shape, dtype = np.shape(video_frames), np.asarray(video_frames).dtype
  if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or 0 in shape:
    raise UserError(
      f"video_frames must be uint8 [F, h, w, 3], got {dtype} {list(shape)}."
    )
  if shape[0] != num_frames:
    raise UserError(
      f"there are {num_frames} meshes but {shape[0]} video frames; give the"
      " resampled frames, one for each mesh."
    )


def _simplified(mesh: TriangleMesh, max_faces: int | None) -> TriangleMesh:
  if max_faces is None or mesh.num_faces <= max_faces:
    return mesh
  vertices, faces = fast_simplification.simplify(
    mesh.vertices, mesh.faces, target_count=max_faces
  )
  return TriangleMesh(vertices, faces)


def data_uri(image: np.ndarray, max_side: int) -> str:
  """A picture as a JPEG data URI, reduced to `max_side` pixels."""
  picture = Image.fromarray(image)
  picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
  content = io.BytesIO()
  picture.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
  encoded = base64.b64encode(content.getvalue()).decode("ascii")
  return f"data:image/jpeg;base64,{encoded}"


def _fill_template(
  title: str, details: Mapping[str, Any], data: Mapping[str, Any]
) -> str:
  files = resources.files("sculpt4d_jax.io.viewer")
  program = "\n".join((files / name).read_text("utf-8") for name in _SCRIPTS)
  parts = {
    "title": html.escape(title),
    "details": "\n".join(
      f"<dt>{html.escape(str(name))}</dt>"
      f"<dd>{html.escape(_as_text(value))}</dd>"
      for name, value in details.items()
    ),
    # "<" could end the script element; JSON allows it to be escaped.
    "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    "program": program,
  }
  template = (files / "template.html").read_text("utf-8")
  # One pass, so that text inside a part is not taken for a placeholder.
  return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _as_text(value: Any) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, float):
    return f"{value:.4g}"
  return str(value)
