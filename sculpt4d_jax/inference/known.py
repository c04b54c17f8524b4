"""Known frames read from files: meshes to encode, or latents of earlier runs.

  0:mesh.glb          the mesh is frame 0
  15:latents.npz      frame 15 of an earlier run's latents is frame 15
  0:latents.npz@15    frame 15 of an earlier run's latents is frame 0

A mesh is sampled as in training: points by area and on sharp edges, their
farthest points as queries, and ONE noise for all meshes of a clip.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import io
import pathlib
import re

import jax
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.geometry import sampling as surface_sampling
from sculpt4d_jax.inference import mirror
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj

TriangleMesh = mesh_lib.TriangleMesh

# The clip's cube is [-1, 1]^3. The grid that meshes are extracted from is a
# little larger, so a mesh of an earlier run may be too.
_MAX_COORDINATE = 1.02
_LATENTS = ".npz"
_MESHES = (".glb", ".gltf", ".ply", ".obj")


@dataclasses.dataclass(frozen=True)
class KnownFile:
  """A frame of a file that is a frame of the clip.

  Attributes:
    index: Frame of the clip.
    path: Mesh or latents.
    frame: Frame of the file; None takes the frame with the clip's index, or
      the only one.
  """

  index: int
  path: pathlib.Path
  frame: int | None = None

  def describe(self) -> str:
    """Returns the text that `parse` reads."""
    digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
    frame = "" if self.frame is None else f"@{self.frame}"
    return f"{self.index}:{self.path.name}{frame} ({digest[:16]})"


# Files, or latents [N, C] by the frame's index.
Known = Sequence[KnownFile] | Mapping[int, np.ndarray]


def parse(texts: Iterable[str], num_frames: int | None) -> list[KnownFile]:
  """Reads "0:mesh.glb" and the like.

  Args:
    texts: One for each known frame.
    num_frames: Frames of the clip; None where that is not known yet.

  Raises:
    ValueError: A text has another form, a file is missing, or an index is not
      of the clip or given twice.
  """
  files = []
  for text in texts:
    match = re.fullmatch(r"(\d+):(.+?)(?:@(\d+))?", text)
    if match is None:
      raise UserError(
        f"--known={text}: expected INDEX:FILE or INDEX:FILE@FRAME, such as"
        " 0:mesh.glb or 15:latents.npz."
      )
    index, path, frame = match.groups()
    file = KnownFile(
      int(index),
      local_copies.fetch(path),
      None if frame is None else int(frame),
    )
    if num_frames is not None and file.index >= num_frames:
      raise UserError(
        f"--known={text}: the clip's frames are 0 to {num_frames - 1}."
      )
    if file.index in {other.index for other in files}:
      raise UserError(f"--known={text}: frame {index} is given twice.")
    if file.path.suffix.lower() not in (_LATENTS, *_MESHES):
      raise UserError(
        f"--known={text}: expected a file of {', '.join(_MESHES)} or"
        f" {_LATENTS}."
      )
    if not file.path.is_file():
      raise UserError(f"--known={text}: there is no file {path}.")
    files.append(file)
  return files


def describe(known: Known) -> list[str]:
  """Known frames as they are written to run.json."""
  if isinstance(known, Mapping):
    digest = lambda x: hashlib.sha256(np.ascontiguousarray(x)).hexdigest()
    return [f"{i}: latents ({digest(x)[:16]})" for i, x in known.items()]
  return [file.describe() for file in known]


def check(files: Iterable[KnownFile]) -> None:
  """Reads the meshes among the files, so that mistakes are found at once.

  Raises:
    ValueError: See `read_mesh`.
  """
  for file in files:
    if file.path.suffix.lower() != _LATENTS:
      read_mesh(file)


def load(
  files: Known,
  model: model_lib.Sculpt4D,
  *,
  num_uniform: int,
  num_sharp: int,
  seed: int = 0,
  placement: placement_lib.Placement | None = None,
  mirrored: bool = False,
) -> dict[int, np.ndarray]:
  """Latents [N, C] of all known frames, by their index in the clip.

  Args:
    files: Result of `parse`; latents by index are returned unchanged.
    model: The model that encodes meshes.
    num_uniform: Points by area of a surface, as in the model's training.
    num_sharp: Points on sharp edges.
    seed: Seed of the points and of the one noise.
    placement: Place of upright meshes in the frame of the clip's latents.
    mirrored: Whether the mirrored clip is sampled too; the latents are then [2,
      N, C], those of a mesh and of its mirror image.

  Raises:
    ValueError: A file is damaged or does not match the model, or a mesh is
      outside of the clip's cube.
  """
  if isinstance(files, Mapping):
    return dict(files)
  known = {}
  for file in files:
    if file.path.suffix.lower() == _LATENTS:
      latents = read_latents(file, model)
      is_pair = latents.ndim == 3
      known[file.index] = latents[0] if is_pair and not mirrored else latents
    else:
      mesh = read_mesh(file)
      if placement is not None:
        mesh = placement.mesh(mesh)
      encode = functools.partial(
        encode_mesh,
        model=model,
        num_uniform=num_uniform,
        num_sharp=num_sharp,
        seed=seed,
      )
      known[file.index] = encode(mesh)
      if mirrored:
        both = known[file.index], encode(mirror.mesh(mesh))
        known[file.index] = np.stack(both)
  return known


def write_latents(
  path: str | pathlib.Path, latents: np.ndarray, scale_factor: float
) -> None:
  """Writes a clip's latents, with the factor they are scaled by.

  Args:
    path: An .npz file.
    latents: [F, N, C], or [F, 2, N, C] with those of its mirror image.
    scale_factor: Factor of the autoencoder's latents in them.
  """
  content = io.BytesIO()
  np.savez(content, latents=latents, scale_factor=np.float64(scale_factor))
  atomic.write_bytes(path, content.getvalue())


def read_latents(file: KnownFile, model: model_lib.Sculpt4D) -> np.ndarray:
  """One frame of a file written by `write_latents`, [N, C] or [2, N, C].

  Raises:
    ValueError: The file is damaged, of another model, or lacks the frame.
  """
  try:
    with np.load(file.path, allow_pickle=False) as content:
      latents = np.asarray(content["latents"], np.float32)
      scale_factor = float(content["scale_factor"])
  except Exception as error:  # NumPy and zipfile raise many types.
    raise UserError(
      f"{file.path} is no file of latents that sampling with --save_latents"
      f" wrote ({type(error).__name__}: {error})."
    ) from error
  vae = model.vae_config
  expected = vae.num_latents, vae.latent_channels
  if latents.shape[1:] not in (expected, (2, *expected)):
    raise UserError(
      f"{file.path} holds latents {latents.shape}, but this model's are"
      f" [frames, {expected[0]}, {expected[1]}], or [frames, 2, ...] with"
      " sampling.mirror."
    )
  if not np.isfinite(latents).all():
    raise UserError(f"{file.path} holds latents that are not finite.")
  if not np.isclose(scale_factor, vae.scale_factor, rtol=1e-6):
    raise UserError(
      f"{file.path} comes from an autoencoder whose latents are scaled by"
      f" {scale_factor:.6g}, this model's by {vae.scale_factor:.6g}: they are"
      " of another training."
    )
  return latents[_frame(file, len(latents))]


def read_mesh(file: KnownFile) -> TriangleMesh:
  """A mesh in the clip's cube.

  Raises:
    ValueError: The file is damaged, or the mesh is empty, not finite or not in
      the cube [-1, 1]^3.
  """
  mesh = _any_mesh(file)
  if mesh.is_empty:
    raise UserError(f"{file.path} has no faces; a known frame needs a surface.")
  used = mesh.vertices[np.unique(mesh.faces)]
  if not np.isfinite(used).all():
    raise UserError(f"{file.path} has vertices that are not finite.")
  low, high = used.min(0), used.max(0)
  if max(-low.min(), high.max()) > _MAX_COORDINATE:
    raise UserError(
      f"{file.path} reaches from {_vector(low)} to {_vector(high)}, beyond the"
      " clip's cube [-1, 1]^3. One box holds the object in all frames, with y"
      " up and the camera looking along -z: scale and move the mesh into it."
    )
  return mesh


def encode_mesh(
  mesh: TriangleMesh,
  model: model_lib.Sculpt4D,
  *,
  num_uniform: int,
  num_sharp: int,
  seed: int = 0,
) -> np.ndarray:
  """Latents [N, C] of a mesh; see the module's docstring."""
  rng = np.random.default_rng(seed)
  points = [surface_sampling.sample_surface(mesh, num_uniform, rng)]
  labels = [0.0] * num_uniform
  if num_sharp:
    sharp = surface_sampling.sample_sharp_edges(mesh, num_sharp, rng)
    has_edges = len(sharp.positions) == num_sharp
    if not has_edges:  # A smooth shape.
      sharp = surface_sampling.sample_surface(mesh, num_sharp, rng)
    points.append(sharp)
    labels += [float(has_edges)] * num_sharp
  surface = np.concatenate(
    [
      np.concatenate([p.positions for p in points]),
      np.concatenate([p.normals for p in points]),
      np.array(labels, np.float32)[:, None],
    ],
    axis=1,
    dtype=np.float32,
  )
  vae = model.vae_config
  rows_key, noise_key = jax.random.split(jax.random.key(seed))
  inputs, queries = farthest_points.select_rows(
    rows_key,
    surface,
    num_latents=vae.num_latents,
    num_uniform=num_uniform,
    num_sharp=num_sharp,
    downsample_ratio=vae.downsample_ratio,
  )
  noise = jax.random.normal(noise_key, (vae.num_latents, vae.latent_channels))
  return model.encode_surface(
    surface[np.asarray(inputs)], surface[np.asarray(queries)], noise
  )


def _any_mesh(file: KnownFile) -> TriangleMesh:
  suffix = file.path.suffix.lower()
  if suffix in (".ply", ".obj"):
    return ply_obj.read_mesh(file.path)
  try:
    meshes, _ = glb.read_animated_glb(file.path)
  except ValueError:
    # Late: a sample without known frames need not wait for it.
    from sculpt4d_jax.io.meshes import played_glb

    meshes = played_glb.read_meshes(file.path)
    if meshes is None:  # Not one that this project wrote.
      return _first_pose(file.path)
  return meshes[_frame(file, len(meshes))]


def _first_pose(path: pathlib.Path) -> TriangleMesh:
  """All meshes of a glTF scene as one, at rest."""
  # Late, as above: these readers import SciPy's geometry and linear algebra.
  from sculpt4d_jax.io.assets import asset_files
  from sculpt4d_jax.io.assets import gltf_animation
  from sculpt4d_jax.io.assets import gltf_container

  try:
    return gltf_animation.rest_mesh(gltf_container.GltfFile(path))
  except asset_files.AssetError as error:
    raise UserError(f"{path} is no readable glTF mesh: {error}") from error


def _frame(file: KnownFile, num_frames: int) -> int:
  """The frame to read from a file."""
  frame = file.frame
  if frame is None:
    frame = file.index if num_frames > 1 else 0
  if frame >= num_frames:
    raise UserError(
      f"{file.path} has {num_frames} frames; name one of 0 to"
      f" {num_frames - 1} with {file.index}:{file.path}@FRAME."
    )
  return frame


def _vector(x: np.ndarray) -> str:
  return "(" + ", ".join(f"{v:.3g}" for v in x) + ")"
