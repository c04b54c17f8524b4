"""Meshes as PLY and OBJ files, one mesh a file.

PLY is binary little-endian with float32 positions, so reading returns the same
bits, and a mesh gives the same bytes on every machine. OBJ has the shortest
decimals that round to the same float32. A frame without a surface is a file
without faces.
"""

from collections.abc import Sequence
import os
import pathlib
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_SUFFIXES = (".ply", ".obj")


def write_mesh(
  path: paths.PathLike, mesh: TriangleMesh, *, normals: bool = False
) -> None:
  """Writes one mesh; the suffix (.ply or .obj) chooses the format.

  Args:
    path: Output file. Missing parent folders are made.
    mesh: The mesh; may be empty.
    normals: Whether to store the vertex normals too.

  Raises:
    ValueError: The suffix is unknown or a position is not finite.
    OutputError: The file cannot be written.
  """
  suffix = _checked_suffix(path)
  check_finite(mesh, str(path))
  encode = _ply_bytes if suffix == ".ply" else _obj_bytes
  atomic.write_bytes(path, encode(mesh, normals))


def read_mesh(path: PathLike) -> TriangleMesh:
  """Reads one mesh from a PLY or OBJ file; polygons become triangles.

  Args:
    path: A .ply (ASCII or binary) or .obj file.

  Returns:
    The mesh with its vertices in the file's order; empty if the file has no
    faces.

  Raises:
    ValueError: The file is missing, has another suffix or is not readable.
  """
  path = pathlib.Path(path)
  suffix = _checked_suffix(path)
  if not path.is_file():
    raise UserError(f"there is no mesh file at {path}.")
  if suffix == ".obj" and not path.read_bytes().strip():
    return empty_mesh()
  import trimesh  # Half a second that writers do not need.

  try:
    loaded = trimesh.load(path, process=False, maintain_order=True)
  except Exception as error:  # trimesh's parsers raise many types.
    raise UserError(
      f"{path} is not a readable {suffix} mesh"
      f" ({type(error).__name__}: {error})."
    ) from error
  try:
    return _from_trimesh(loaded)
  except UserError as error:
    raise UserError(f"{path} is damaged: {error}") from error


def write_mesh_sequence(
  folder: paths.PathLike,
  meshes: Sequence[TriangleMesh],
  *,
  normals: bool = False,
) -> list[paths.LocalPath | paths.StorePath]:
  """Writes frame_0000.ply, frame_0001.ply, ...: all or none.

  Args:
    folder: Output folder; made if missing. Frames of an earlier sequence in it
      are replaced, other files stay.
    meshes: One mesh a frame.
    normals: Whether to store the vertex normals too.

  Returns:
    The paths, in order.

  Raises:
    ValueError: There are no meshes or a position is not finite.
    OutputError: The folder cannot be written to.
  """
  if not meshes:
    raise UserError("a mesh sequence needs at least one frame, got none.")
  names = [frame_name(index) for index in range(len(meshes))]
  with staged.staged_folder(folder, replaces=["frame_*.ply"]) as staging:
    for name, mesh in zip(names, meshes):
      write_mesh(staging / name, mesh, normals=normals)
  return [paths.of(folder) / name for name in names]


def write_frames(
  path: PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float | None = None,
  *,
  times: Sequence[float] | None = None,
) -> None:
  """Writes a file for every frame, as one of `exporters.EXPORTERS`.

  Args:
    path: A folder that exists, and the pattern of the files' names, as
      out/frame_*.obj; the * becomes the frame's number.
    meshes: One mesh a frame.
    fps: Not kept: the files have no times.
    times: Not kept either.

  Raises:
    ValueError: See `write_mesh`.
    OutputError: A file cannot be written.
  """
  del fps, times
  path = pathlib.Path(path)
  for index, mesh in enumerate(meshes):
    write_mesh(path.with_name(path.name.replace("*", f"{index:04d}")), mesh)


def read_mesh_sequence(folder: PathLike) -> list[TriangleMesh]:
  """Reads the frame_*.ply files of a folder in the order of their numbers."""
  paths = sorted(
    pathlib.Path(folder).glob("frame_*.ply"),
    key=lambda path: (len(path.name), path.name),
  )
  if not paths:
    raise UserError(f"there are no frame_*.ply files in {folder}.")
  return [read_mesh(path) for path in paths]


def frame_name(index: int) -> str:
  """The file name of a frame, for instance frame_0007.ply."""
  return f"frame_{index:04d}.ply"


def empty_mesh() -> TriangleMesh:
  """A frame without a surface."""
  return TriangleMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))


def check_finite(mesh: TriangleMesh, name: str) -> None:
  """Raises ValueError if a position is NaN or infinite."""
  finite = np.isfinite(mesh.vertices).all(axis=1)
  if not finite.all():
    raise UserError(
      f"{name}: {np.count_nonzero(~finite)} of {mesh.num_vertices} vertices"
      " are not finite; mesh files hold finite positions only."
    )


def _checked_suffix(path: paths.PathLike) -> str:
  suffix = paths.of(path).suffix.lower()
  if suffix not in _SUFFIXES:
    raise UserError(
      f"{path}: expected a mesh file ending in .ply or .obj, got"
      f" {suffix or 'no suffix'!r}."
    )
  return suffix


def _ply_bytes(mesh: TriangleMesh, normals: bool) -> bytes:
  columns = ["x", "y", "z"] + (["nx", "ny", "nz"] if normals else [])
  header = [
    "ply",
    "format binary_little_endian 1.0",
    f"element vertex {mesh.num_vertices}",
    *(f"property float {name}" for name in columns),
    f"element face {mesh.num_faces}",
    "property list uchar int vertex_indices",
    "end_header",
  ]
  values = mesh.vertices
  if normals:
    values = np.concatenate([values, mesh.vertex_normals()], axis=1)
  faces = np.zeros(mesh.num_faces, [("count", "u1"), ("corners", "<i4", 3)])
  faces["count"] = 3
  faces["corners"] = mesh.faces
  return b"".join(
    (
      ("\n".join(header) + "\n").encode("ascii"),
      values.astype("<f4").tobytes(),
      faces.tobytes(),
    )
  )


def _obj_bytes(mesh: TriangleMesh, normals: bool) -> bytes:
  lines = [_obj_vector("v", vertex) for vertex in mesh.vertices]
  if normals:
    lines += [_obj_vector("vn", normal) for normal in mesh.vertex_normals()]
  corner = "{0}//{0}" if normals else "{0}"
  face = " ".join(["f"] + [corner.replace("0", str(i)) for i in range(3)])
  lines += [face.format(*row) for row in (mesh.faces + 1).tolist()]
  return "".join(line + "\n" for line in lines).encode("ascii")


def _obj_vector(kind: str, vector: np.ndarray) -> str:
  return " ".join(
    [kind, *(np.format_float_positional(x, trim="0") for x in vector)]
  )


def _from_trimesh(loaded: Any) -> TriangleMesh:
  """The single mesh in the object that trimesh returns."""
  import trimesh

  if isinstance(loaded, trimesh.Scene):
    if not loaded.geometry:
      return empty_mesh()
    loaded = loaded.to_mesh()
  if isinstance(loaded, trimesh.PointCloud):
    faces = np.zeros((0, 3), np.int32)
  else:
    faces = loaded.faces
  return TriangleMesh(np.reshape(loaded.vertices, (-1, 3)), faces)
