r"""Tests camera, texture and skin of a registered procedural clip.

  python -m launch.register --input=MESHES --output=OUT
  python -m benchmarks.texture --registered=OUT/vertices.npz --seed=1012

The clip of the seed is rendered again with its camera, at the given size, so
pictures, masks, camera and colours are known. It prints the rows of
docs/registration.md. `--fills` compares methods that colour unseen parts; their
error is measured only on unseen vertices, against the colours of the clip's
parts.
"""

from collections.abc import Sequence
import dataclasses
import math
import time

from absl import app
from absl import flags
import jax
import numpy as np

from sculpt4d_jax.data.procedural import body
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry import symmetry
from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.inference import asset_colours
from sculpt4d_jax.rendering import camera_fit
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import light_estimate
from sculpt4d_jax.rendering import rasterizer
from sculpt4d_jax.rendering import sphere_tracer
from sculpt4d_jax.rendering import texture_baking
from sculpt4d_jax.rendering import texture_fill

_REGISTERED = flags.DEFINE_string(
  "registered", None, "vertices.npz of launch.register.", required=True
)
_SEED = flags.DEFINE_integer("seed", 1012, "Seed of the procedural clip.")
_SIZE = flags.DEFINE_integer("size", 192, "Side of the pictures.")
_FILLS = flags.DEFINE_bool("fills", False, "Compare the fills.")
_SEEN = 0.05


@dataclasses.dataclass(frozen=True)
class Case:
  """A registered and rendered clip.

  Attributes:
    vertices: float64 [F, V, 3].
    faces: int [T, 3].
    rgba: The rendered frames, float32 in [0, 1], [F, S, S, 4].
    camera: The true camera.
    clip: The rendered clip.
  """

  vertices: np.ndarray
  faces: np.ndarray
  rgba: np.ndarray
  camera: cameras.Camera
  clip: solids.SyntheticClip


def load(path: str, seed: int, size: int) -> Case:
  """Reads a registration and renders its clip."""
  with np.load(path) as arrays:
    vertices = arrays["vertices"].astype(np.float64)
    faces = arrays["faces"].astype(np.int64)
  clip = solids.make_clip(seed, len(vertices))
  rng = np.random.default_rng([clip.seed, 0, 0x5D])
  sizes = clip_records.RecordSizes()
  view = clip_records.fit_view(
    clip, clip_records.draw_view(rng, sizes), sizes.border_ratio
  )
  rgba = np.asarray(clip_records.render_clip(clip, view, size))
  return Case(vertices, faces, rgba, true_camera(view), clip)


def true_camera(view: sphere_tracer.View) -> cameras.Camera:
  """The camera of a sphere tracer's view."""
  distance, extent = sphere_tracer.CAMERA_DISTANCE, float(view.extent)
  eye = cameras.orbit_eye(
    math.degrees(view.azimuth), math.degrees(view.elevation), distance
  )
  return cameras.Camera(
    cameras.look_at(eye),
    fov_degrees=2 * math.degrees(math.atan(extent / distance)),
    shift=(float(view.centre[0]) / extent, float(view.centre[1]) / extent),
  )


def measure_camera(case: Case) -> camera_fit.FittedCamera:
  """Prints the error of the fitted camera."""
  begin = time.process_time()
  found = camera_fit.fit(case.vertices, case.faces, case.rgba[..., 3])
  seconds = time.process_time() - begin
  points = case.vertices[:, ::20].reshape(-1, 3)
  first, _ = cameras.project(found.camera, points, 512, 512)
  second, _ = cameras.project(case.camera, points, 512, 512)
  gap = np.linalg.norm(first - second, axis=1)
  print(
    f"camera: IoU {found.iou:.3f}, reprojection mean {gap.mean():.2f} max"
    f" {gap.max():.2f} of 512 pixels, {seconds:.2f} CPU s"
  )
  return found


def measure_texture(case: Case, camera: cameras.Camera) -> None:
  """Prints the PSNR in the input view for every choice of colours."""
  atlas = uv_atlas.unwrap(mesh_lib.TriangleMesh(case.vertices[0], case.faces))
  covered, texels = uv_atlas.texels(atlas)
  plain = _footage(case, camera)
  points = uv_atlas.vertex_points(case.faces, case.vertices.shape[1])
  mirror = symmetry.find(case.vertices, case.faces)
  for frames in texture_baking.FRAMES:
    for is_lit in (False, True):
      begin = time.process_time()
      clip, light, filmed_light = plain, None, None
      if is_lit:
        light = light_estimate.estimate(plain, frames)
        clip = dataclasses.replace(plain, light=light)
      elif frames == "all":
        filmed_light = light_estimate.estimate(plain, frames)
      seen = texture_baking.bake(clip, points, frames, filmed_light)
      colours = texture_fill.fill(
        case.vertices[0], case.faces, seen, symmetry=mirror
      )
      baked = texture_baking.bake(clip, texels, frames, filmed_light)
      filled = texels.interpolate(colours, case.faces)
      image = asset_colours.paint(covered, baked, filled) / 255
      seconds = time.process_time() - begin
      ratios = [
        _psnr(case, camera, atlas, image, light, frame)
        for frame in range(len(case.vertices))
      ]
      shading = "light divided out" if is_lit else "as filmed"
      print(
        f"texture {frames}, {shading}: first frame {ratios[0]:.1f} dB, all"
        f" frames {np.mean(ratios):.1f} dB mean, {min(ratios):.1f} worst,"
        f" {seconds:.1f} CPU s"
      )


def _footage(case: Case, camera: cameras.Camera) -> texture_baking.Footage:
  return texture_baking.footage(
    case.vertices,
    case.faces,
    np.clip(case.rgba[..., :3], 0, 1),
    case.rgba[..., 3],
    camera,
  )


def _psnr(
  case: Case,
  camera: cameras.Camera,
  atlas: uv_atlas.UvAtlas,
  image: np.ndarray,
  light: light_estimate.Light | None,
  frame: int,
) -> float:
  """PSNR inside of the mask; with a light, the estimated light is reapplied."""

  def colours(face_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    points = uv_atlas.SurfacePoints(face_ids, weights)
    return uv_atlas.sample(image, points.interpolate(atlas.uv, atlas.faces))

  view = rasterizer.render_mesh(
    mesh_lib.TriangleMesh(case.vertices[frame], case.faces),
    camera,
    case.rgba.shape[1],
    surface_colors=colours,
    shaded=False,
  )
  shown = view.rgba[..., :3] / 255
  if light is not None:
    shown = shown * light(view.normal.reshape(-1, 3)).reshape(
      *view.mask.shape, 1
    )
  inside = view.mask & (case.rgba[frame, ..., 3] > 0.9)
  error = (shown - np.clip(case.rgba[frame, ..., :3], 0, 1))[inside]
  return float(-10 * np.log10((error**2).mean()))


def measure_skin(case: Case) -> np.ndarray:
  """Prints the error of the automatic skin; returns its weights."""
  rest = case.vertices[0]
  trajectory = result.fit_trajectory(case.vertices, rest)
  turn, shift = trajectory[:, :3, :3], trajectory[:, None, :3, 3]
  still = np.einsum("fyx,fvy->fvx", turn, case.vertices - shift)
  begin = time.process_time()
  skin = skinning.decompose(still, rest)
  seconds = time.process_time() - begin
  rig = bone_tree.build(skin)
  held = bone_tree.hold_together(rig, still)
  print(
    f"skin: {skin.num_bones} bones, rms {100 * skin.rms:.3f} %,"
    f" {100 * held.skin.rms:.2f} % with joints held together,"
    f" {seconds:.1f} CPU s"
  )
  return skin.weights


def compare_fills(
  case: Case, camera: cameras.Camera, weights: np.ndarray
) -> None:
  """Prints the error of every fill on vertices that no frame shows."""
  clip = _footage(case, camera)
  light = light_estimate.estimate(clip)
  clip = dataclasses.replace(clip, light=light)
  points = uv_atlas.vertex_points(case.faces, case.vertices.shape[1])
  seen = texture_baking.bake(clip, points)
  unseen = seen.weights <= _SEEN
  truth = _true_colours(case)
  mirror = symmetry.find(case.vertices, case.faces)
  for partners, name in ((None, "fill alone"), (mirror, "mirror, then fill")):
    for method in texture_fill.METHODS:
      colours = texture_fill.fill(
        case.vertices[0], case.faces, seen, method, weights, partners
      )
      # The product of light and albedo does not determine their scales.
      gain = (colours * truth)[~unseen].sum() / (colours**2)[~unseen].sum()
      error = ((gain * colours - truth)[unseen] ** 2).mean()
      print(f"{name}, {method}: {-10 * np.log10(error):.1f} dB")


def _true_colours(case: Case) -> np.ndarray:
  """Colours of the clip's parts at the vertices of frame 0, [V, 3]."""
  solid = clip_records.trim(case.clip.solid)
  cones, boxes = solid.cone_length.shape[1], solid.box_rounding.shape[1]
  colours = np.concatenate(
    [
      case.clip.colours[:cones],
      case.clip.colours[body.NUM_CONES :][:boxes],
    ]
  )
  first = jax.tree.map(lambda x: x[0], solid)
  vertices = case.vertices[0].astype(np.float32)
  return np.asarray(sphere_tracer.part_colours(first, colours, vertices))


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  del argv
  case = load(_REGISTERED.value, _SEED.value, _SIZE.value)
  print(
    f"{case.clip.family} {_SEED.value}: {len(case.vertices)} frames,"
    f" {len(case.faces):,} faces"
  )
  camera = measure_camera(case).camera
  measure_texture(case, camera)
  weights = measure_skin(case)
  if _FILLS.value:
    compare_fills(case, camera, weights)


if __name__ == "__main__":
  app.run(main)
