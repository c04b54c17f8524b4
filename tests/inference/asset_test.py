import dataclasses
import json
import os
import sys

import av
import numpy as np
import pytest
from scipy import ndimage

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.inference import asset
from sculpt4d_jax.inference import asset_pictures
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer
from tests.io.meshes import textured_assets

FPS = 12.0
CAMERA = cameras.perspective(20, 15, fov_degrees=40, distance=4)


def _registered(num_frames=3, split=None):
  """A bar that bends; with `split`, another run starts there."""
  vertices, faces, _ = textured_assets.bending_bar(num_frames)
  mesh = deforming_mesh.DeformingMesh(vertices, faces)
  reports = [
    result.FrameReport(i, 0, result.Verdict.REGISTERED, 0.0, 0.0, 0.0, 0.0)
    for i in range(num_frames)
  ]
  segments = result.one_segment(mesh)
  if split:
    segments = (
      result.Segment(
        0, split - 1, deforming_mesh.DeformingMesh(vertices[:split], faces)
      ),
      result.Segment(
        split,
        num_frames - 1,
        deforming_mesh.DeformingMesh(vertices[split:], faces[::-1]),
      ),
    )
  trajectory = result.fit_trajectory(vertices, vertices[0])
  return result.Registered(mesh, 0, reports, trajectory, segments)


def _film(registered, size=96):
  """Orange on the left, green on the right, unlit."""
  rest = registered.mesh.rest
  colours = np.where(rest[:, :1] < 0, [0.9, 0.5, 0.1], [0.1, 0.7, 0.3])
  views = [
    rasterizer.render_mesh(
      mesh, CAMERA, size, vertex_colors=colours, shaded=False
    )
    for mesh in registered.mesh.frames()
  ]
  frames = np.stack([rasterizer.composite(view.rgba) for view in views])
  return frames, np.stack([255 * view.mask.astype(np.uint8) for view in views])


def _options(**options):
  return asset.AssetOptions(**{"texture_size": 128, "videos": False, **options})


def test_all_files_are_made_and_agree(tmp_path):
  registered = _registered()
  frames, masks = _film(registered)
  options = _options(bones=2, videos=True)
  made = asset.make_asset(registered, frames, masks, options, tmp_path, fps=FPS)
  wanted = [
    asset.GLB,
    asset.SKIN_GLB,
    asset.BVH,
    asset.VERTICES,
    asset.REPORT,
    asset.OVERLAY,
    asset.TURNTABLE,
    asset.FIGURE,
    asset.VIEWER,
  ]
  assert {path.name for path in made.files} >= set(wanted)
  assert sorted(os.listdir(tmp_path)) == sorted(p.name for p in made.files)
  file = animated_assets.AnimatedAsset(tmp_path / asset.GLB)
  read = file.play(file.clips[0], np.float32(np.arange(3) / FPS))
  vertices = registered.mesh.vertices[:, made.parts[0].vertex_map]
  np.testing.assert_allclose(read.vertices, vertices, atol=1e-6)
  report = json.loads((tmp_path / asset.REPORT).read_text())
  assert report["camera"]["iou"] > 0.9
  assert report["skeleton"]["bones"] == 2
  assert [f["verdict"] for f in report["frames"]] == ["registered"] * 3
  with np.load(tmp_path / asset.VERTICES) as arrays:
    np.testing.assert_array_equal(arrays["vertices"], registered.mesh.vertices)
  with av.open(str(tmp_path / asset.OVERLAY)) as container:
    assert len(list(container.decode(video=0))) == 3


def test_the_texture_shows_what_was_filmed(tmp_path):
  pytest.importorskip("xatlas")
  registered = _registered()
  frames, masks = _film(registered, 160)
  options = _options(usd=False, texture_size=256)
  made = asset.make_asset(registered, frames, masks, options, tmp_path, fps=FPS)
  ratios = []
  for index in range(3):
    rgba = asset_pictures.render(made.parts, index, made.camera.camera, 160)
    both = (rgba[..., 3] == 255) & (masks[index] == 255)
    error = rgba[..., :3].astype(float) - frames[index]
    ratios.append(10 * np.log10(255**2 / (error[both] ** 2).mean()))
  assert ratios[0] > 25 and np.mean(ratios) > 23


def test_without_xatlas_colours_go_to_the_vertices(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "xatlas", None)
  registered = _registered()
  frames, masks = _film(registered)
  made = asset.make_asset(
    registered, frames, masks, _options(usd=False), tmp_path, fps=FPS
  )
  assert made.parts[0].atlas is None
  colours = made.parts[0].mesh.colours.astype(int)
  # The side that the camera sees; the other one mirrors the right half.
  normals = registered.mesh.frame(0).vertex_normals()
  inner = np.abs(normals).max(1) > 0.99  # Not at an outline.
  seen = inner & (normals @ -CAMERA.forward > 0.6)
  left = seen & (registered.mesh.rest[:, 0] < -0.3)
  assert np.abs(colours[left].mean(0) - [230, 128, 26]).max() < 30


def test_without_a_video_the_mesh_is_plain(tmp_path):
  made = asset.make_asset(
    _registered(), None, None, _options(usd=False), tmp_path, fps=FPS
  )
  assert made.camera is None and made.parts[0].image is None
  assert asset.OVERLAY not in os.listdir(tmp_path)


def test_runs_of_other_topology_share_a_file(tmp_path):
  registered = _registered(4, split=2)
  frames, masks = _film(registered)
  options = _options(bones="auto", usd=False)
  made = asset.make_asset(registered, frames, masks, options, tmp_path, fps=FPS)
  assert [part.first_frame for part in made.parts] == [0, 2]
  assert made.rig is None  # Bones need one topology.
  assert asset.SKIN_GLB not in os.listdir(tmp_path)


def test_runs_of_one_topology_share_their_texture(tmp_path):
  pytest.importorskip("xatlas")
  registered = _registered(4)
  mesh = registered.mesh

  def run(first, last, faces):
    part = deforming_mesh.DeformingMesh(mesh.vertices[first : last + 1], faces)
    return result.Segment(first, last, part)

  segments = (
    run(0, 1, mesh.faces),
    run(2, 2, mesh.faces[::-1]),
    run(3, 3, mesh.faces),
  )
  registered = dataclasses.replace(registered, segments=segments)
  frames, masks = _film(registered)
  options = _options(usd=False, texture_size=64)
  made = asset.make_asset(registered, frames, masks, options, tmp_path, fps=FPS)
  one, other, again = made.parts
  assert again.image is one.image and again.atlas is one.atlas
  assert other.image is not one.image
  glb = (tmp_path / asset.GLB).read_bytes()
  length = int.from_bytes(glb[12:16], "little")
  document = json.loads(glb[20 : 20 + length])
  assert len(document["images"]) == len(document["textures"]) == 2
  assert len(document["meshes"]) == 3
  page = (tmp_path / asset.VIEWER).read_text()
  assert '"texture"' in page  # The page shows the colours of all runs.


@pytest.mark.parametrize(
  "options, message",
  [
    ({"texture": "best"}, "texture='best': choose one of"),
    ({"shading": "toon"}, "shading='toon'"),
    ({"fill": "smear"}, "fill='smear'"),
    ({"bones": -1}, "bones=-1"),
    ({"texture_size": 4}, "texture_size=4"),
  ],
)
def test_bad_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    asset.AssetOptions(**options)


def test_a_video_of_another_length_is_refused(tmp_path):
  registered = _registered()
  frames, masks = _film(registered)
  with pytest.raises(ValueError, match="expected 3 frames"):
    asset.make_asset(
      registered, frames[:2], masks[:2], _options(), tmp_path, fps=FPS
    )
  assert not os.listdir(tmp_path)


def test_a_figure_has_times_by_views():
  part = textured_assets.asset("textured")
  sheet = asset_pictures.figure(
    [part], 5, np.zeros((5, 20, 30, 3), np.uint8), columns=3, size=50
  )
  gap = 2
  assert sheet.shape == (3 * 52 + gap, 3 * 52 + gap, 3)
  # The input's tile is black in its middle, and white next to its picture.
  assert (sheet[gap + 25, gap + 25] == 0).all()
  assert (sheet[gap + 2, gap + 25] == 255).all()


def test_no_texel_of_a_seen_face_has_the_colour_of_the_background(tmp_path):
  """Before a white ground, one bar stands in front of another.

  Where the front bar ends, the picture shows ground in place of the bar behind,
  as layered pictures and halos do; the cut-out counts it as object.
  """
  pytest.importorskip("xatlas")
  bar, faces, _ = textured_assets.bending_bar(1)
  behind = 0.9 * bar[0][:, [1, 0, 2]] - [0, 0, 0.8]
  vertices = np.concatenate([bar[0], behind])
  faces = np.concatenate([faces, faces[:, ::-1] + len(bar[0])])
  mesh = deforming_mesh.DeformingMesh(vertices[None], faces)
  report = result.FrameReport(0, 0, result.Verdict.REGISTERED, 0, 0, 0, 0)
  registered = result.Registered(
    mesh, 0, (report,), np.eye(4)[None], result.one_segment(mesh)
  )
  is_front = np.arange(len(vertices)) < len(bar[0])
  colours = np.where(is_front[:, None], [0.8, 0.3, 0.1], [0.1, 0.2, 0.6])
  both = rasterizer.render_mesh(
    mesh.frame(0), CAMERA, 192, vertex_colors=colours, shaded=False
  )
  picture = rasterizer.composite(both.rgba)
  front = np.abs(picture.astype(int) - [204, 76, 26]).sum(-1) < 60
  rim = ndimage.binary_dilation(front, iterations=2) & ~front & both.mask
  picture[rim] = 0.25 * picture[rim] + 0.75 * 255
  frames, masks = picture[None], 255 * both.mask[None].astype(np.uint8)

  def nearest_to_white(ground):
    made = asset.make_asset(
      registered, frames, masks, _options(), tmp_path, fps=FPS, ground=ground
    )
    image = made.parts[0].image.astype(float)
    own = np.abs(image[..., None, :] - 255 * colours[[0, -1]]).max(-1).min(-1)
    return (np.abs(image - 255).max(-1) < own).sum()

  assert nearest_to_white(None) > 50
  assert nearest_to_white(np.full((1, 3), 255.0)) == 0
