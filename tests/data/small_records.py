"""A data set of moving spheres, written in a moment.

Every number of it is known: the sphere of clip i has the centre and radius of
`sphere(i)`, seen by cameras at known places.
"""

import io
import json

import numpy as np
from PIL import Image

from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards as record_files
from sculpt4d_jax.rendering import cameras

NUM_FRAMES = 4
AZIMUTHS = (0.0, 90.0, 200.0)
ELEVATIONS = (0.0, 10.0, 80.0)
_SETTINGS = {"num_frames": NUM_FRAMES, "num_uniform": 48, "num_sharp": 16}
_PARTS = 2


def sphere(number):
  """Centres [F, 3] and the radius of a clip's sphere."""
  way = np.linspace(0.0, 0.3, NUM_FRAMES)
  centres = np.stack([0.5 + way, 0.1 * way, 0 * way], axis=1)
  return centres, 0.1 + 0.01 * number


def make(folder, num_clips=4, num_test=2, shards=2):
  """Writes a data set; each shard has clips of both splits."""
  (folder / "shards").mkdir(parents=True)
  splits = {"train": [], "test": []}
  for shard in range(shards):
    name = f"shard{shard}{record_files.SUFFIX}"
    numbers = range(shard, num_clips + num_test, shards)
    record_files.write_shard(
      folder / "shards" / name,
      (entry for number in numbers for entry in _entries(number)),
      {},
    )
    reader = record_files.ShardReader(folder / "shards")
    for number in numbers:
      clip = dict(
        clip=f"clip{number}",
        asset=f"asset{number}",
        shard=name,
        entries=reader.contents(name)[f"clip{number}"]["entries"],
        details={"asset_name": f"sphere {number}", "clip_name": "slide"},
      )
      splits["train" if number < num_clips else "test"].append(clip)
    reader.close()
  for clips in splits.values():
    clips.sort(key=lambda clip: clip["clip"])
  document = {
    "version": schema.VERSION,
    "test_fraction": 0.1,
    "settings": _SETTINGS,
    "splits": splits,
  }
  (folder / dataset_index.FILE_NAME).write_text(json.dumps(document))
  return folder


def _entries(number):
  rng = np.random.default_rng(number)
  clip = f"clip{number}"
  centres, radius = sphere(number)
  for part in range(_PARTS):
    surface = _surface(rng, 32, centres, radius)
    samples = rng.uniform(-1, 1, (NUM_FRAMES, 24, 3)).astype(np.float16)
    distances = radius - np.linalg.norm(
      samples - centres[:, None].astype(np.float32), axis=-1
    )
    arrays = dict(
      surface=surface,
      is_sharp=np.repeat([0, 1], [24, 8]).astype(np.uint8),
      samples=np.concatenate([samples, distances[..., None]], -1).astype(
        np.float16
      ),
      is_near=np.repeat([1, 0], [8, 16]).astype(np.uint8),
    )
    yield (
      clip,
      "geometry",
      part,
      schema.encode("geometry", clip, arrays, part),
    )
  arrays = dict(
    surface=_surface(rng, 32, centres, radius),
    is_sharp=np.zeros(32, np.uint8),
  )
  yield clip, "queries", 0, schema.encode("queries", clip, arrays)
  for view, angles in enumerate(zip(AZIMUTHS, ELEVATIONS)):
    pixels, ends = schema.pack(
      [_picture(number, view, frame) for frame in range(NUM_FRAMES)]
    )
    arrays = dict(
      pictures=pixels,
      ends=ends,
      camera_to_world=_camera(*angles),
      fov_degrees=np.array([40.0]),
    )
    yield clip, "view", view, schema.encode("view", clip, arrays, view)


def _surface(rng, count, centres, radius):
  normals = rng.normal(size=(count, 3))
  normals /= np.linalg.norm(normals, axis=1, keepdims=True)
  points = centres[:, None] + radius * normals
  normals = np.broadcast_to(normals, points.shape)
  return np.concatenate([points, normals], -1).astype(np.float16)


def _camera(azimuth, elevation):
  a, e = np.radians([azimuth, elevation])
  eye = 4 * np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
  return cameras.look_at(eye)


def _picture(number, view, frame):
  pixels = np.zeros((16, 16, 4), np.uint8)
  pixels[4:12, 3 + frame : 9 + frame] = (20 * number, 60 * view, 90, 255)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG")
  return stream.getvalue()
