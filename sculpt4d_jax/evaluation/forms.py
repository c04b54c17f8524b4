"""Three forms of one 4D result, scored and shown next to each other.

- per frame: the meshes of a sample, each with a separate topology;
- one topology: one mesh whose vertices move, with a texture if there is a
  video (the form of V2M4);
- deformation graph: the same mesh, carried by the rigid motions of some hundred
  nodes alone (the form of DreamMesh4D).

The last two are made of the first, so their distance to it is what the form
costs. Against the truth, where there is one, all three are scored alike.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageDraw

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import tracking_metrics
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.inference import asset_pictures
from sculpt4d_jax.inference import register_run
from sculpt4d_jax.inference import registering
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.meshes import textured_glb

DeformingMesh = deforming_mesh.DeformingMesh
TexturedMesh = textured_mesh.TexturedMesh
TriangleMesh = mesh_lib.TriangleMesh

PER_FRAME, ONE_TOPOLOGY = "per frame", "one topology"
GRAPH = "deformation graph"
GRAPH_GLB, GRAPH_ARRAYS = "deformation_graph.glb", "deformation_graph.npz"
TABLE, SHEET = "forms.json", "forms.png"
_TITLE = 18  # Rows of pixels above a form.


@dataclasses.dataclass(frozen=True)
class Form:
  """One form of the result.

  Attributes:
    name: Name in tables.
    meshes: One mesh a frame, as shown.
    parts: The same with colours, for pictures.
    tracked: The mesh of one topology; None for meshes per frame.
    num_topologies: Number of meshes of different faces.
  """

  name: str
  meshes: Sequence[TriangleMesh]
  parts: Sequence[TexturedMesh]
  tracked: DeformingMesh | None
  num_topologies: int


def forms_of(made: register_run.Made) -> list[Form]:
  """The three forms of a registered sample.

  Raises:
    ValueError: The registration has no deformation graph.
  """
  registered, meshes = made.registered, made.source.meshes
  if registered.graph is None:
    raise UserError("the registration has no deformation graph.")
  single = [
    TexturedMesh(DeformingMesh(mesh.vertices[None], mesh.faces), first_frame=i)
    for i, mesh in enumerate(meshes)
  ]
  carried = dataclasses.replace(
    registered.mesh, vertices=registered.graph.positions()
  )
  # With several topologies the texture is that of other meshes.
  coloured = made.parts[0] if len(made.parts) == 1 else TexturedMesh(carried)
  return [
    Form(PER_FRAME, meshes, single, None, len(meshes)),
    Form(
      ONE_TOPOLOGY,
      registering.shown_frames(registered),
      made.parts,
      registered.mesh,
      registered.num_topologies,
    ),
    Form(
      GRAPH,
      list(carried.frames()),
      [dataclasses.replace(coloured, mesh=carried)],
      carried,
      1,
    ),
  ]


def score(
  form: Form,
  sample: Sequence[TriangleMesh],
  key: int,
  truth: Sequence[TriangleMesh] | None = None,
) -> dict[str, float]:
  """Scores of one form; lengths to the sample are shares of its box.

  Args:
    form: The form.
    sample: The meshes that it was made of.
    key: Frame whose topology was taken; left out of distances to the sample.
    truth: True meshes, one a frame, or None.

  Returns:
    "topologies"; for one topology "chamfer_to_sample", "hausdorff99_to_sample",
    "worst_hausdorff99_to_sample", "stretched" and "shaking" (mean length of the
    vertices' second differences); with a truth the four metrics of `evaluator`.
  """
  found: dict[str, float] = {"topologies": form.num_topologies}
  if form.tracked is not None and len(sample) > 1:
    surface = tracking_metrics.surface(form.tracked, sample, key)
    vertices = form.tracked.vertices.astype(np.float64)
    found |= {
      "chamfer_to_sample": surface.chamfer,
      "hausdorff99_to_sample": surface.hausdorff99,
      "worst_hausdorff99_to_sample": surface.worst_hausdorff99,
      "stretched": surface.stretched,
      "shaking": tracking_metrics.jitter(vertices)
      / tracking_metrics.box_side(vertices),
    }
  if truth is not None:
    conventions = geometry_metrics.Conventions()
    found |= evaluator.evaluate_sequence(
      form.meshes, truth, conventions, name=form.name
    ).means()
  return found


def write(
  made: register_run.Made,
  folder: paths.PathLike,
  truth: Sequence[TriangleMesh] | None = None,
) -> dict[str, dict[str, float]]:
  """Writes the graph's files, a sheet of all forms and their scores.

  Args:
    made: A registered sample, whose own files are written already.
    folder: Output folder; made if missing.
    truth: True meshes, one a frame, or None.

  Returns:
    Scores by form.

  Raises:
    OutputError: The folder cannot be written to.
    ValueError: The truth has another number of frames.
  """
  forms = forms_of(made)
  source, registered = made.source, made.registered
  scores = {
    form.name: score(form, source.meshes, registered.key, truth)
    for form in forms
  }
  patterns = ["forms.*", "deformation_graph.*"]
  with staged.staged_folder(folder, replaces=patterns) as staging:
    textured_glb.write_morph(
      staging / GRAPH_GLB,
      forms[-1].parts,
      source.fps,
      times=source.times,
      name=source.name,
    )
    with atomic.atomic_write(staging / GRAPH_ARRAYS) as file:
      np.savez_compressed(
        file, faces=registered.mesh.faces, **registered.graph.arrays()
      )
    asset_pictures.write_png(staging / SHEET, sheet(forms, made.pictures))
    content = {
      "name": source.name,
      "key": registered.key,
      "nodes": registered.graph.num_nodes,
      "forms": {
        name: {
          key: value if math.isfinite(value) else None
          for key, value in row.items()
        }
        for name, row in scores.items()
      },
    }
    text = json.dumps(content, indent=2) + "\n"
    atomic.write_bytes(staging / TABLE, text.encode())
  return scores


def sheet(
  forms: Sequence[Form], pictures: np.ndarray | None = None
) -> np.ndarray:
  """Six times of each form from two sides, uint8 [h, w, 3].

  Args:
    forms: The forms, from top to bottom.
    pictures: The video above them, uint8 [F, h, w, 3], or None.
  """
  blocks = []
  if pictures is not None:
    blocks.append(("video", forms[0], pictures, ()))
  blocks += [
    (form.name, form, None, asset_pictures.FIGURE_VIEWS) for form in forms
  ]
  rows = []
  for name, form, above, views in blocks:
    picture = asset_pictures.figure(
      form.parts, len(form.meshes), above, views=views
    )
    title = Image.new("RGB", (picture.shape[1], _TITLE), "white")
    ImageDraw.Draw(title).text((8, 2), name, fill="black")
    rows += [np.asarray(title), picture]
  return np.concatenate(rows)


def table(scores: dict[str, dict[str, Any]]) -> str:
  """The scores as text, a line a form; distances to the sample in per cent."""
  names = list(dict.fromkeys(name for row in scores.values() for name in row))
  lines = [["form", *(name.replace("_", " ") for name in names)]]
  for form, row in scores.items():
    cells = [form]
    for name in names:
      value = row.get(name)
      if value is None:
        cells.append("-")
      elif name == "topologies":
        cells.append(str(value))
      elif name in evaluator.METRICS:
        cells.append(evaluator.format_number(value, 4))
      else:
        cells.append(f"{100 * value:.2f} %")
    lines.append(cells)
  return evaluator.layout(lines, markdown=False)
