"""Small shapes that move in known ways."""

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


def box(size=(1.0, 1.0, 1.0), cells=(6, 6, 6), shift=0.0):
  """A closed box around the origin, its sides cut into cells.

  `shift` in 0..1 moves inner grid lines, so that another tessellation of the
  same surface is obtained.
  """
  size, cells = np.asarray(size, float), np.asarray(cells)
  lines = []
  for axis in range(3):
    line = np.linspace(-0.5, 0.5, cells[axis] + 1)
    line[1:-1] += shift * 0.45 / cells[axis]
    lines.append(line * size[axis])
  vertices, faces, count = [], [], 0
  for axis in range(3):
    one, two = (axis + 1) % 3, (axis + 2) % 3
    for side in (0, -1):
      first, second = np.meshgrid(lines[one], lines[two], indexing="ij")
      grid = np.empty((*first.shape, 3))
      grid[..., axis] = lines[axis][side]
      grid[..., one], grid[..., two] = first, second
      ids = count + np.arange(first.size).reshape(first.shape)
      a, b, c, d = ids[:-1, :-1], ids[1:, :-1], ids[1:, 1:], ids[:-1, 1:]
      quads = np.stack([a, b, c, d], -1).reshape(-1, 4)
      if side == 0:
        quads = quads[:, ::-1]
      faces += [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
      vertices.append(grid.reshape(-1, 3))
      count += first.size
  return weld(np.concatenate(vertices), np.concatenate(faces))


def ball(radius=1.0, centre=(0, 0, 0), rings=12):
  """A closed ball."""
  mesh = box((2, 2, 2), (rings // 2,) * 3)
  unit = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
  return TriangleMesh(unit * radius + np.asarray(centre), mesh.faces)


def joined(*meshes):
  """Several meshes as one."""
  starts = np.cumsum([0, *(m.num_vertices for m in meshes)])
  return TriangleMesh(
    np.concatenate([m.vertices for m in meshes]),
    np.concatenate([m.faces + s for m, s in zip(meshes, starts)]),
  )


def weld(vertices, faces):
  places, rows = np.unique(
    np.round(vertices, 9) + 0.0, axis=0, return_inverse=True
  )
  return TriangleMesh(places, rows.reshape(-1)[faces])


def turn(angle):
  """Rotation about z."""
  cosine, sine = np.cos(angle), np.sin(angle)
  return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


def bend(points, angle):
  """Bends a bar along x about z by `angle` over its unit length."""
  x, y, z = np.asarray(points, float).T
  if abs(angle) < 1e-9:
    return np.stack([x, y, z], 1)
  radius = 1 / angle
  return np.stack(
    [
      (radius - y) * np.sin(x * angle),
      radius - (radius - y) * np.cos(x * angle),
      z,
    ],
    1,
  )
