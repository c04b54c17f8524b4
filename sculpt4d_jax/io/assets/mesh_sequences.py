"""A folder or a zip of per-frame meshes as one deforming mesh.

The files are taken in the order of the numbers in their names. All of them must
have the same faces. Otherwise vertices do not correspond between frames, and
the sequence is rejected.
"""

from collections.abc import Sequence
import io
import os
import pathlib
import re

import numpy as np
import trimesh

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import asset_files

AssetError = asset_files.AssetError
TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

SUFFIXES = (".ply", ".obj", ".stl")
_PLY_ELEMENT = re.compile(rb"element\s+(\w+)\s+(-?\d+)")
_PLY_HEADER_BYTES = 1 << 16


def list_frames(folder: PathLike) -> list[pathlib.Path]:
  """The mesh files of a folder, in order.

  Hidden files and links that lead out of the folder are left out.
  """
  folder = pathlib.Path(folder)
  root = folder.resolve()
  files = [
    path
    for path in folder.iterdir()
    if path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
    and path.resolve().is_relative_to(root)
  ]
  return sorted(files, key=lambda path: natural_order(path.name))


def read_folder(
  folder: PathLike,
  frames: list[int] | None = None,
  limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
) -> deforming_mesh.DeformingMesh:
  """Reads the frames of a folder.

  Args:
    folder: Holds one mesh a frame.
    frames: Subset of `list_frames`; all by default.
    limits: Limits on their size.

  Raises:
    AssetError: A file is damaged or the frames do not match.
  """
  files = list_frames(folder)
  if len(files) > limits.frames:
    raise AssetError(
      f"the folder has {len(files):,} meshes; the limit is {limits.frames:,}."
    )
  chosen = files if frames is None else [files[i] for i in frames]
  return _join(
    [
      (path.name, asset_files.read_file(path, limits.file_bytes))
      for path in chosen
    ],
    limits,
  )


def read_zip(
  path: PathLike,
  frames: list[int] | None = None,
  limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
) -> deforming_mesh.DeformingMesh:
  """Reads the frames of a zip; for arguments see `read_folder`."""
  contents = asset_files.unpack_zip(path, SUFFIXES, limits)
  items = sorted(contents.items(), key=lambda item: natural_order(item[0]))
  return _join(items if frames is None else [items[i] for i in frames], limits)


def parse_mesh(
  name: str,
  content: bytes,
  limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
) -> TriangleMesh:
  """A mesh from the bytes of a PLY, OBJ or STL file.

  No other file is read: materials of an OBJ are ignored.

  Raises:
    AssetError: They are not a mesh, or the mesh is too large or not finite.
  """
  suffix = pathlib.PurePath(name).suffix.lower()
  if suffix == ".ply":
    _check_ply_counts(name, content)
  kind = suffix.removeprefix(".")
  try:
    loaded = trimesh.load(
      io.BytesIO(content),
      file_type=kind,
      process=False,
      maintain_order=True,
      force="mesh",
      skip_materials=True,
    )
    mesh = TriangleMesh(
      np.reshape(loaded.vertices, (-1, 3)), np.reshape(loaded.faces, (-1, 3))
    )
  except Exception as error:  # trimesh's parsers raise many types.
    raise AssetError(
      f"{name!r} is not a readable {kind.upper()} mesh"
      f" ({type(error).__name__}: {str(error)[:100]})."
    ) from error
  if mesh.num_vertices > limits.vertices or mesh.num_faces > limits.faces:
    raise AssetError(
      f"{name!r} has {mesh.num_vertices:,} vertices and {mesh.num_faces:,}"
      f" faces; the limits are {limits.vertices:,} and {limits.faces:,}."
    )
  if not np.isfinite(mesh.vertices).all():
    bad = np.count_nonzero(~np.isfinite(mesh.vertices).all(1))
    raise AssetError(
      f"{name!r}: {bad:,} of {mesh.num_vertices:,} vertices are not finite."
    )
  return mesh


def _join(
  files: Sequence[tuple[str, bytes]], limits: asset_files.AssetLimits
) -> deforming_mesh.DeformingMesh:
  if not files:
    raise AssetError(f"there are no {', '.join(SUFFIXES)} files.")
  budget = asset_files.Budget(limits.decoded_bytes)
  first, vertices = None, []
  for name, content in files:
    mesh = parse_mesh(name, content, limits)
    budget.take(mesh.vertices.nbytes, name)
    first = first or mesh
    if mesh.num_vertices != first.num_vertices or not np.array_equal(
      mesh.faces, first.faces
    ):
      raise AssetError(
        f"{name!r} has {mesh.num_vertices:,} vertices and"
        f" {mesh.num_faces:,} faces other than those of {files[0][0]!r};"
        " frames must share their faces, or no point can be followed."
      )
    vertices.append(mesh.vertices)
  if first.is_empty:
    raise AssetError("the meshes have no faces.")
  return deforming_mesh.DeformingMesh(np.stack(vertices), first.faces)


def _check_ply_counts(name: str, content: bytes) -> None:
  """Rejects counts that exceed the file's size, before memory is allocated."""
  header = content[:_PLY_HEADER_BYTES].partition(b"end_header")[0]
  for kind, count in _PLY_ELEMENT.findall(header):
    # An element has at least two bytes, in text and in binary files.
    if not 0 <= int(count[:20]) * 2 <= len(content):
      raise AssetError(
        f"{name!r} claims {int(count[:20]):,} elements {kind.decode()!r} in"
        f" {len(content):,} bytes."
      )


def natural_order(name: str) -> list[tuple[int, int, str]]:
  """A key that sorts frame_2 before frame_10."""
  return [
    (0, int(part), "") if part.isdigit() else (1, 0, part)
    for part in re.split(r"(\d{1,18})", name)
  ]
