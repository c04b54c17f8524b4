"""All metrics by name. A new one is a file in `metrics/` and a line here."""

from sculpt4d_jax.evaluation.protocols.metrics import field_jitter
from sculpt4d_jax.evaluation.protocols.metrics import metric
from sculpt4d_jax.evaluation.protocols.metrics import picture_networks
from sculpt4d_jax.evaluation.protocols.metrics import point_to_surface
from sculpt4d_jax.evaluation.protocols.metrics import surface_distance
from sculpt4d_jax.evaluation.protocols.metrics import tracked_points
from sculpt4d_jax.evaluation.protocols.metrics import volume_overlap

METRICS: dict[str, metric.Metric] = {
  entry.name: entry
  for entry in (
    surface_distance.CD,
    surface_distance.CD_SUM,
    surface_distance.F_001,
    surface_distance.F_002,
    surface_distance.F_005,
    surface_distance.CD_3D,
    surface_distance.CD_4D,
    tracked_points.CD_M,
    tracked_points.VERTEX_JITTER,
    volume_overlap.IOU_64,
    volume_overlap.IOU_128,
    field_jitter.JITTER,
    point_to_surface.P2S,
    picture_networks.LPIPS,
    picture_networks.LPIPS_SPATIAL,
    picture_networks.LPIPS_NORMALS,
    picture_networks.CLIP_B32,
    picture_networks.CLIP_BIGG,
    picture_networks.DREAMSIM,
    picture_networks.I3D_DISTANCE,
    picture_networks.FVD,
  )
}
