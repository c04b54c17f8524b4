"""Makes the benchmark: clips, pictures, true meshes and tracked points.

  bench-v1/
    manifest.json            version, clips, how each was made, hashes
    frames/NAME/0000.png     RGBA pictures, the input of a system
    truth/NAME/frame_0000.ply
                             true meshes in [-1, 1]^3
    tracked/NAME/surfaces.npy
                             [F, P, 6] the same surface points in all frames and
                             their normals: ActionBench's layout

A procedural clip depends only on its seed; seeds 0 to 63 are held out from
training in all presets. Public characters are read from given files; the
manifest has their hashes.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib

import numpy as np
from PIL import Image
import tqdm

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import sampling
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

VERSION = "bench-v1"
NUM_CLIPS = 64
NUM_FRAMES = 16
NUM_POINTS = 10_000
PICTURE_SIZE = 256
_DRAFT_SIZE = 16  # Side of pictures that are not kept.


@dataclasses.dataclass(frozen=True)
class BenchClip:
  """A clip of the benchmark.

  Attributes:
    name: Its folder's name.
    pictures: RGBA, uint8 [F, S, S, 4].
    meshes: True meshes, one a frame.
    tracked: Points and normals, float32 [F, P, 6].
    origin: Provenance for the manifest.
  """

  name: str
  pictures: np.ndarray
  meshes: held_out.Meshes
  tracked: np.ndarray
  origin: dict[str, object]


def make(
  folder: pathlib.Path,
  *,
  num_clips: int = NUM_CLIPS,
  assets: Sequence[pathlib.Path] = (),
) -> dict[str, object]:
  """Writes missing parts of the benchmark; returns the manifest.

  Args:
    folder: Output folder; an unfinished benchmark in it is completed.
    num_clips: Number of procedural clips, with the first seeds.
    assets: Animated files of public characters, one clip each.

  Raises:
    ValueError: The folder holds another version, or an asset is damaged.
  """
  path = folder / "manifest.json"
  clips: dict[str, object] = {}
  if path.is_file():
    document = json.loads(path.read_text())
    if document.get("version") != VERSION:
      raise UserError(
        f"{folder} holds {document.get('version')!r}, this program makes"
        f" {VERSION}; give another folder."
      )
    clips = document["clips"]
  jobs = [(f"procedural-{seed:03d}", seed) for seed in range(num_clips)]
  jobs += [(f"character-{asset.stem.lower()}", asset) for asset in assets]
  for name, source in tqdm.tqdm(jobs, unit="clip"):
    if name in clips:
      continue
    make_one = procedural if isinstance(source, int) else character
    clips[name] = _write(folder, make_one(name, source))
    manifest = {
      "version": VERSION,
      "num_frames": NUM_FRAMES,
      "num_points": NUM_POINTS,
      "picture_size": PICTURE_SIZE,
      "clips": clips,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    atomic.write_bytes(path, text.encode())
  return clips


def procedural(name: str, seed: int) -> BenchClip:
  """The held-out clip of a seed."""
  clip = solids.make_clip(seed, NUM_FRAMES)
  sizes = clip_records.RecordSizes(
    num_uniform=NUM_POINTS, num_sharp=0, image_size=_DRAFT_SIZE
  )
  record = clip_records.make_record(clip, sizes)
  # The record's pictures are on white; these keep their alpha.
  rgba = clip_records.render_clip(clip, record.view, PICTURE_SIZE)
  pictures = np.round(255 * np.clip(rgba, 0, 1)).astype(np.uint8)
  return BenchClip(
    name,
    pictures,
    held_out.truth_meshes(clip),
    record.surface[..., :6],
    {"kind": "procedural", "family": clip.family, "seed": seed},
  )


def character(name: str, path: pathlib.Path) -> BenchClip:
  """The first animation of a file, at uniform times.

  Raises:
    ValueError: The file is damaged or has no animation.
  """
  asset = animated_assets.AnimatedAsset(path)
  clip = asset.clips[0]
  times = np.linspace(clip.start, clip.end, NUM_FRAMES)
  moving = deforming_mesh.normalise(asset.play(clip, times.tolist()))
  drawn = sampling.sample_surface(
    moving.frame(0), NUM_POINTS, np.random.default_rng(0)
  )
  tracked = [
    sampling.points_at(mesh, drawn.face_ids, drawn.barycentrics)
    for mesh in moving.frames()
  ]
  # Scaled so that all frames fit into the picture.
  radius = float(np.linalg.norm(moving.vertices, axis=-1).max())
  camera = cameras.perspective(radius=radius)
  colours = None if moving.colours is None else moving.colours / 255
  pictures = [
    rasterizer.render_mesh(
      mesh, camera, PICTURE_SIZE, supersampling=2, vertex_colors=colours
    ).rgba
    for mesh in moving.frames()
  ]
  return BenchClip(
    name,
    np.stack(pictures),
    list(moving.frames()),
    np.stack([np.concatenate([p.positions, p.normals], -1) for p in tracked]),
    {
      "kind": "character",
      "file": path.name,
      "animation": clip.name,
      "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    },
  )


def _write(folder: pathlib.Path, clip: BenchClip) -> dict[str, object]:
  frames = folder / "frames" / clip.name
  with staged.staged_folder(frames) as staging:
    for index, picture in enumerate(clip.pictures):
      Image.fromarray(picture).save(staging / f"{index:04d}.png")
  ply_obj.write_mesh_sequence(folder / "truth" / clip.name, clip.meshes)
  tracked = np.ascontiguousarray(clip.tracked, np.float32)
  with staged.staged_folder(folder / "tracked" / clip.name) as staging:
    np.save(staging / "surfaces.npy", tracked)
  return {
    **clip.origin,
    "tracked_sha256": hashlib.sha256(tracked.tobytes()).hexdigest(),
  }
