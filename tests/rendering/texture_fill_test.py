import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import symmetry
from sculpt4d_jax.rendering import texture_baking
from sculpt4d_jax.rendering import texture_fill

RED, BLUE = np.array([0.9, 0.1, 0.1]), np.array([0.1, 0.1, 0.9])


def _rod():
  """A rod along x: its left half red, its right half blue, its top seen."""
  rod = trimesh.creation.box((4, 0.6, 0.6))
  for _ in range(4):
    rod = rod.subdivide()
  vertices, faces = np.asarray(rod.vertices), np.asarray(rod.faces)
  right = vertices[:, 0] > 0
  true = np.where(right[:, None], BLUE, RED)
  weights = np.where(vertices[:, 1] > 0.29, 1.0, 0.0)
  seen = texture_baking.Observed(true * (weights > 0)[:, None], weights)
  parts = np.stack([~right, right], 1).astype(float)
  return vertices, faces, true, seen, parts


@pytest.mark.parametrize("method", texture_fill.METHODS)
def test_parts_keep_their_colours(method):
  vertices, faces, true, seen, parts = _rod()
  filled = texture_fill.fill(vertices, faces, seen, method, parts)
  known = seen.weights > 0
  np.testing.assert_allclose(filled[known], true[known], atol=0.06)
  # The smooth fill mixes colours near the border of the parts.
  far = np.abs(vertices[:, 0]) > (1.5 if method == "harmonic" else 0.5)
  np.testing.assert_allclose(filled[far], true[far], atol=0.06)


def test_a_component_without_any_colour_gets_the_mean():
  vertices, faces, _, seen, _ = _rod()
  count = len(vertices)
  both = np.concatenate([vertices, vertices + [0, 5, 0]])
  seen = texture_baking.Observed(
    np.tile(seen.colours, (2, 1)),
    np.concatenate([seen.weights, np.zeros(count)]),
  )
  filled = texture_fill.fill(both, np.concatenate([faces, faces + count]), seen)
  mean = seen.colours[seen.weights > 0].mean(0)
  np.testing.assert_allclose(
    filled[count:], np.tile(mean, (count, 1)), atol=0.02
  )


def test_nothing_seen_is_grey():
  vertices, faces, _, seen, _ = _rod()
  blind = texture_baking.Observed(seen.colours, np.zeros(len(vertices)))
  assert (texture_fill.fill(vertices, faces, blind) == 0.5).all()


def test_the_unseen_side_mirrors_the_seen_one():
  ball = trimesh.creation.icosphere(3)
  vertices = np.asarray(ball.vertices) * [1.0, 0.7, 0.5]
  stripes = (np.sin(9 * vertices[:, :1]) > 0) * RED + 0.05
  weights = np.where(vertices[:, 2] > 0.02, 1.0, 0.0)
  seen = texture_baking.Observed(stripes * (weights > 0)[:, None], weights)
  mirrored = np.array(
    [
      np.linalg.norm(vertices * [1, 1, -1] - v, axis=1).argmin()
      for v in vertices
    ]
  )
  partners = symmetry.Symmetry(
    mirrored,
    np.linalg.norm(vertices[mirrored] * [1, 1, -1] - vertices, axis=1),
    error=0.0,
    size=2.0,
    plane=symmetry.Plane(np.array([0.0, 0.0, 1.0]), 0.0),
    frame=0,
  )
  result = texture_fill.mirror(seen, partners)
  hidden = vertices[:, 2] < -0.02
  np.testing.assert_array_equal(result.colours[hidden], stripes[hidden])
  assert (result.weights[hidden] == 0.5).all()
  np.testing.assert_array_equal(result.colours[~hidden], seen.colours[~hidden])


def _half_seen_rod():
  """A rod of which one side is seen, brighter by 0.2 than it would mirror."""
  rod = trimesh.creation.box((4, 0.6, 0.6))
  for _ in range(4):
    rod = rod.subdivide()
  vertices, faces = np.asarray(rod.vertices), np.asarray(rod.faces)
  partner = np.array(
    [
      np.linalg.norm(vertices * [1, 1, -1] - v, axis=1).argmin()
      for v in vertices
    ]
  )
  partners = symmetry.Symmetry(
    partner,
    np.zeros(len(vertices)),
    error=0.0,
    size=4.0,
    plane=symmetry.Plane(np.array([0.0, 0.0, 1.0]), 0.0),
    frame=0,
  )
  return vertices, faces, partners


def test_a_mirrored_patch_passes_smoothly_into_what_was_seen():
  vertices, faces, partners = _half_seen_rod()
  # Seen: the front, dark, and a strip of the back, bright.
  z, x = vertices[:, 2], vertices[:, 0]
  bright = (z < -0.29) & (x > 1.5)
  weights = np.where((z > 0.29) | bright, 1.0, 0.0)
  colours = np.where(bright[:, None], 0.8, 0.2) * np.ones(3)
  seen = texture_baking.Observed(colours, weights)
  filled = texture_fill.fill(vertices, faces, seen, symmetry=partners)
  back = (z < -0.29) & (np.abs(vertices[:, 1]) < 0.1)
  near = back & (x > 1.4) & (x < 1.6)  # The next row of vertices.
  far = back & (x < 0)
  np.testing.assert_allclose(filled[bright], 0.8)
  assert (filled[near] > 0.4).all()  # A copy would be 0.2.
  np.testing.assert_allclose(filled[far], 0.2, atol=0.01)


def test_a_mirrored_patch_keeps_its_pattern():
  vertices, faces, partners = _half_seen_rod()
  stripes = 0.5 + 0.2 * np.sin(5 * vertices[:, :1]) * np.ones(3)
  weights = np.where(vertices[:, 2] > 0.29, 1.0, 0.0)
  seen = texture_baking.Observed(stripes * (weights > 0)[:, None], weights)
  filled = texture_fill.fill(vertices, faces, seen, symmetry=partners)
  back = vertices[:, 2] < -0.29
  # Smoothest colours would be 0.5, off by up to 0.2.
  np.testing.assert_allclose(filled[back], stripes[back], atol=0.08)


def test_an_unknown_method_is_refused():
  vertices, faces, _, seen, _ = _rod()
  with pytest.raises(ValueError, match="choose one of"):
    texture_fill.fill(vertices, faces, seen, "smear")
