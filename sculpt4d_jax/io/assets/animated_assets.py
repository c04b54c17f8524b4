"""Animated assets of all formats: lists their clips and evaluates them.

An asset is a .glb or .gltf file, a USD file, an Alembic file, a folder of
per-frame meshes or a zip of them. Every defect of an asset is raised as an
`AssetError`.

A clip is identified by the hash of its asset's content and by its name, so that
copies of an asset are recognised, also by later runs.
"""

from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import os
import pathlib

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import alembic as alembic_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_animation
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import mesh_sequences
from sculpt4d_jax.io.assets import usd as usd_assets

AssetError = asset_files.AssetError
AssetLimits = asset_files.AssetLimits
Clip = gltf_animation.Clip
PathLike = str | os.PathLike

_GLTF = (".glb", ".gltf")
_FILES = (*_GLTF, *usd_assets.SUFFIXES, *alembic_assets.SUFFIXES, ".zip")
SEQUENCE_RATE = 24.0  # Frames per second of files without a rate.
_MIN_FRAMES = 2
_HASH_CHUNK = 1 << 20


def find_assets(folder: PathLike) -> list[pathlib.Path]:
  """All assets under a folder, sorted; a folder of meshes counts as one.

  Hidden files and links that lead out of the folder are left out.

  Raises:
    ValueError: There is no such folder.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UserError(f"there is no folder of assets at {folder}.")
  root, found = folder.resolve(), []
  for current, folders, files in os.walk(folder):
    folders[:] = sorted(name for name in folders if name[0] != ".")
    here = pathlib.Path(current)
    frames = 0
    for name in files:
      path = here / name
      suffix = path.suffix.lower()
      if name[0] == "." or not path.resolve().is_relative_to(root):
        continue
      if suffix in _FILES and path.is_file():
        found.append(path)
      frames += suffix in mesh_sequences.SUFFIXES
    if frames >= _MIN_FRAMES and here != folder:
      found.append(here)
  return sorted(found)


def content_hash(
  path: PathLike, limits: AssetLimits = asset_files.DEFAULT_LIMITS
) -> str:
  """SHA-256 of an asset, 64 hexadecimal digits.

  Of a folder: names and contents of its meshes. Of a glTF asset: its own bytes,
  then the names and contents of the buffers and images next to it, so that a
  change in one of them changes the hash. For a file that may not be read
  (outside of the folder, or missing) only the name is hashed.

  Args:
    path: See the module.
    limits: Largest size of a side file that is hashed; a larger one counts by
      name and size.

  Raises:
    OSError: The asset itself cannot be read.
  """
  path = pathlib.Path(path)
  digest = hashlib.sha256()
  if path.is_dir():
    for file in mesh_sequences.list_frames(path):
      digest.update(file.name.encode() + b"\0")
      _hash_file(digest, file)
    return digest.hexdigest()
  _hash_file(digest, path)
  if path.suffix.lower() in _GLTF:
    for uri in gltf_container.side_uris(path, limits):
      digest.update(b"\0" + uri.encode(errors="replace") + b"\0")
      try:
        file = asset_files.path_inside(path.parent, uri)
      except AssetError:
        continue
      if not file.is_file():
        continue
      size = file.stat().st_size
      digest.update(str(size).encode() + b"\0")
      if size <= limits.file_bytes:
        _hash_file(digest, file)
  return digest.hexdigest()


def _hash_file(digest: "hashlib._Hash", path: pathlib.Path) -> None:
  with open(path, "rb") as stream:
    while chunk := stream.read(_HASH_CHUNK):
      digest.update(chunk)


class AnimatedAsset:
  """An open asset.

  Attributes:
    path: Path of the asset.
    clips: Its animations.
    copyright: Copyright and licence text in the asset, or "".
    left_out: Meshes that were no part of the object in the clip played last.
    num_meshes: Meshes of the scene, those that were left out among them; 0
      before a clip is played.
  """

  def __init__(
    self,
    path: PathLike,
    limits: AssetLimits = asset_files.DEFAULT_LIMITS,
    attachments: gltf_animation.Attachments = "one",
  ):
    """Opens an asset.

    Args:
      path: See the module.
      limits: Limits on its size.
      attachments: See `gltf_animation.evaluate`.

    Raises:
      AssetError: It cannot be used.
      ImportError: It is a USD or an Alembic file, and the package that reads
        it is not installed.
    """
    self.path = pathlib.Path(path)
    self._limits = limits
    self._attachments = attachments
    self.copyright = ""
    self.left_out: tuple[asset_files.LeftOut, ...] = ()
    self.num_meshes = 0
    self._gltf, self._scene, self._num_files = None, None, 0
    with as_asset_errors():
      self.clips = self._open()
    if not self.clips:
      raise AssetError("the asset has no animation.")

  def _open(self) -> list[Clip]:
    suffix = self.path.suffix.lower()
    if self.path.is_dir():
      self._num_files = len(mesh_sequences.list_frames(self.path))
    elif suffix == ".zip":
      self._num_files = len(
        asset_files.unpack_zip(self.path, mesh_sequences.SUFFIXES, self._limits)
      )
    elif suffix in _GLTF:
      self._gltf = gltf_container.GltfFile(self.path, self._limits)
      header = gltf_container.table(self._gltf.document, "asset")
      self.copyright = str(header.get("copyright", ""))[:1000]
      return gltf_animation.list_clips(self._gltf)
    elif suffix in usd_assets.SUFFIXES:
      self._scene = usd_assets.UsdAsset(self.path, self._limits)
      seconds = (self._scene.end - self._scene.start) / self._scene.rate
      return [Clip(0, "animation", 0.0, seconds)]
    elif suffix in alembic_assets.SUFFIXES:
      self._scene = alembic_assets.AlembicAsset(self.path, self._limits)
      seconds = self._scene.end - self._scene.start
      return [Clip(0, "animation", 0.0, seconds)]
    else:
      raise AssetError(f"{suffix or 'no suffix'!r} is not a kind of asset.")
    if self._num_files < _MIN_FRAMES:
      raise AssetError(
        f"a sequence needs {_MIN_FRAMES} meshes at least, found"
        f" {self._num_files}."
      )
    return [Clip(0, "sequence", 0.0, (self._num_files - 1) / SEQUENCE_RATE)]

  def play(
    self, clip: Clip, times: Sequence[float]
  ) -> deforming_mesh.DeformingMesh:
    """The meshes of a clip at times in seconds.

    Sequences of files give their nearest frame.

    Raises:
      AssetError: The asset is malformed.
    """
    with as_asset_errors():
      if self._gltf is not None:
        played = gltf_animation.evaluate(
          self._gltf, clip, times, attachments=self._attachments
        )
        self.left_out = played.left_out
        self.num_meshes = played.num_meshes
        return played.mesh
      if self._scene is not None:
        mesh = self._scene.evaluate(times)
        self.left_out = self._scene.left_out
        self.num_meshes = self._scene.num_meshes
        return mesh
      frames = np.rint(np.asarray(times) * SEQUENCE_RATE).astype(int)
      frames = np.clip(frames, 0, self._num_files - 1).tolist()
      read = mesh_sequences.read_zip
      if self.path.is_dir():
        read = mesh_sequences.read_folder
      return read(self.path, frames, self._limits)


@contextlib.contextmanager
def as_asset_errors() -> Iterator[None]:
  """Turns exceptions caused by malformed files into `AssetError`."""
  try:
    yield
  except AssetError:
    raise
  except MemoryError as error:
    raise AssetError("the asset asks for more memory than there is.") from error
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    UnicodeError,
    ValueError,
  ) as error:
    raise AssetError(
      f"the asset is malformed ({type(error).__name__}: {str(error)[:200]})."
    ) from error
