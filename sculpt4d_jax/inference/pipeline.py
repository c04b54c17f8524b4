"""From a clip to one mesh per frame.

  read -> cut out the object -> crop the clip -> denoise -> field -> mesh

Nothing here writes files; `inference/outputs.py` does.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import dataclasses
import os

from absl import logging
import jax
import numpy as np

from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.inference import long_clips
from sculpt4d_jax.inference import mirror
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import outlines
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io.matting import crop
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.video import reader

# Frames that the camera of a clip is read off.
_PLACING_FRAMES = 16
# A frame takes about a gigabyte of the host's memory at the released grid.
_FRAMES_AT_A_TIME = 4


@dataclasses.dataclass(frozen=True)
class SurfaceConfig:
  """Settings of mesh extraction from latents; see `configs/base.py`.

  Attributes:
    resolution: Cells of the field's grid along each axis.
    min_resolution: The coarsest grid has at least this many.
    band: Values closer to the level than this are near the surface, where the
      next finer grid is evaluated. It must be at least as large as the field's
      change within a cell of the coarsest grid.
    bounds: The grid spans +- this.
    level: Value of the field on the surface.
    chunk_size: Points evaluated at a time.
    min_component_area: Smaller components, as a share of the largest one's
      area, are dropped.
    max_components: The largest ones kept; 0 keeps all that are large enough.
    max_faces: Largest number of faces of a mesh; 0 does not simplify.
    grid: "exact"; "lean", the same surface from fewer points; or a method of
      Hunyuan3D 2.1: "dense", "flashvdm" or "hunyuan3d"; see
      `geometry/isosurface.py`.
    vertex_scale: "exact", or "hunyuan3d" for the released code's.
    frames_at_a_time: Frames whose surfaces are extracted together; 0 takes
      several on an accelerator, and one on a CPU. The result is the same.
  """

  resolution: int
  min_resolution: int
  band: float
  bounds: float
  level: float
  chunk_size: int
  min_component_area: float
  max_components: int
  max_faces: int
  grid: str = "exact"
  vertex_scale: str = "exact"
  frames_at_a_time: int = 0

  def __post_init__(self):
    if self.resolution < 8:
      raise UserError(f"resolution={self.resolution} must be at least 8.")
    for name in ("max_components", "max_faces", "frames_at_a_time"):
      if getattr(self, name) < 0:
        raise UserError(f"{name}={getattr(self, name)} must not be negative.")
    for name, choices in (
      ("grid", ("dense", *isosurface.MODES)),
      ("vertex_scale", isosurface.VERTEX_SCALES),
    ):
      if getattr(self, name) not in choices:
        raise UserError(
          f"{name}={getattr(self, name)!r}: choose one of {choices}."
        )
    if 0 < self.max_faces < 4:
      raise UserError(f"max_faces={self.max_faces} must be at least 4, or 0.")

  @property
  def num_workers(self) -> int:
    """Number of frames whose surfaces are extracted together."""
    if self.frames_at_a_time:
      return self.frames_at_a_time
    if jax.default_backend() == "cpu":  # Points take all of its cores.
      return 1
    return min(_FRAMES_AT_A_TIME, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip as the model receives it.

  Attributes:
    images: uint8 [F, S, S, 3], the object on white.
    masks: uint8 [F, S, S], 255 on the object.
    source: Frames that were read, with their times.
    foreground: The object cut out of them, and the method.
    box: The square that was cut out of every frame.
    stages: Seconds and peak memory of reading, for run.json.
  """

  images: np.ndarray
  masks: np.ndarray
  source: reader.VideoFrames
  foreground: foreground.Foreground
  box: crop.CropBox
  stages: tuple[run_log.Stage, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
  """A clip and the results for it.

  Attributes:
    clip: The input.
    latents: float32 [F, N, C], or [F, 2, N, C] with `sampling.mirror`.
    meshes: Meshes, one a frame; a frame without a surface has no faces.
    num_evaluations: Points of the field evaluated, all frames together.
    scale_factor: Factor of the autoencoder's latents in `latents`.
  """

  clip: Clip
  latents: np.ndarray
  meshes: list[mesh_lib.TriangleMesh]
  num_evaluations: int
  scale_factor: float = 1.0


def read_clip(
  source: str | os.PathLike | np.ndarray,
  log: run_log.RunLog,
  *,
  num_frames: int | None,
  image_size: int,
  matte: str = "auto",
  start: float | None = None,
  end: float | None = None,
  border_ratio: float = 0.15,
) -> Clip:
  """Reads a clip, cuts the object out, crops and scales all frames alike.

  Args:
    source: See `video.read_frames`.
    log: Times the stages.
    num_frames: Frames at most, to which a longer clip is resampled; None takes
      all of the video's own.
    image_size: Pixels a side for the image encoder.
    matte: Method that finds the background, see `foreground.extract`.
    start: Seconds; None is the first frame.
    end: Seconds; None is the last frame.
    border_ratio: Margin around the object, as a fraction of the image side.

  Raises:
    InputError: The input cannot be used.
  """
  with log.stage("read frames"):
    frames = reader.read_frames(
      source, num_frames=num_frames, start=start, end=end
    )
  with log.stage("find the object"):
    cut_out = foreground.extract(frames, matte)
  with log.stage("crop"):
    cropped = crop.crop_clip(cut_out.frames, image_size, border_ratio)
  return Clip(cropped.images, cropped.masks, frames, cut_out, cropped.box)


def generate(
  model: model_lib.Sculpt4D,
  clip: Clip,
  sampling: model_lib.SamplingConfig,
  surface: SurfaceConfig,
  log: run_log.RunLog,
  known_frames: Mapping[int, np.ndarray] | None = None,
  windows: windows_lib.Windows | None = None,
  window_folder: long_clips.WindowFolder | None = None,
  placed: placement_lib.Placement | None = None,
) -> Result:
  """Samples a clip's latents and extracts a mesh for every frame.

  Args:
    model: The networks.
    clip: Clip from `read_clip`.
    sampling: Settings of the sampler.
    surface: Settings of the surfaces.
    log: Times the stages.
    known_frames: Latents of frames that are given; see `Sculpt4D.sample`.
    windows: Cuts a long clip; None samples all frames at once.
    window_folder: Keeps finished windows, for a run that is interrupted.
    placed: Result of `placement`; the meshes are set upright.

  Raises:
    ValueError: No frame has a surface.
  """
  if sampling.outline_steps and model.view_head is None:
    logging.warning(
      "These weights have no view head, so shapes are not fitted to outlines."
    )
  if sampling.seed and not sampling.temperature:
    logging.warning(
      "At sampling.temperature=0 all seeds give the same result, so seed=%d"
      " changes nothing: set sampling.temperature, for instance to 0.25, for"
      " variants.",
      sampling.seed,
    )
  if windows is not None and windows.kind == "sequential":
    latents = _sample_windows(
      model, clip, sampling, log, known_frames, windows, window_folder
    )
  else:
    num_calls = sampling.num_clips * len(sampling.calls)
    with log.stage("denoise", num_calls) as bar:
      on_step = lambda done: bar.update(max(0, done - bar.n))
      latents = model.sample(
        clip.images, sampling, on_step, known_frames, windows, clip.masks
      )
  with log.stage("extract meshes", len(latents)) as bar:
    meshes, counts = extract_meshes(model, latents, surface, bar.update, placed)
  empty = [i for i, mesh in enumerate(meshes) if mesh.is_empty]
  if len(empty) == len(meshes):
    raise UserError(
      "No frame has a surface: the model saw no object it can shape. Check"
      " the cut-out (matte), the weights, or try another seed."
    )
  if empty:
    logging.warning("Frames without a surface: %s.", empty)
  scale = model.vae_config.scale_factor
  return Result(clip, latents, meshes, sum(counts), scale)


def placement(
  model: model_lib.Sculpt4D, images: np.ndarray
) -> placement_lib.Placement | None:
  """How the upright object stands in the frame of a clip's latents.

  None if it is upright there, as in all models but those with
  `DiTConfig.picture_frame`; also if there is no view head to tell: shapes then
  stay as pictures show them.

  Args:
    model: The networks.
    images: The clip, see `Sculpt4D.sample`; at most 16 frames are looked at.
  """
  if not model.dit_config.picture_frame:
    return None
  if model.view_head is None:
    logging.log_first_n(
      logging.WARNING,
      "These weights have no view head, so shapes stay as pictures show them"
      " instead of upright; launch/train_view.py trains one.",
      1,
    )
    return None
  step = -(-len(images) // _PLACING_FRAMES)
  numbers = model.view_head(model.encode(images[::step])[None])[0]
  return outlines.placement(numbers)


def _sample_windows(
  model: model_lib.Sculpt4D,
  clip: Clip,
  sampling: model_lib.SamplingConfig,
  log: run_log.RunLog,
  known_frames: Mapping[int, np.ndarray] | None,
  windows: windows_lib.Windows,
  window_folder: long_clips.WindowFolder | None,
) -> np.ndarray:
  """Latents of a long clip, one window after the other."""
  num_windows = len(windows.starts(len(clip.images)))
  with log.stage("denoise windows", sampling.num_clips * num_windows) as bar:

    def sample(
      images: np.ndarray,
      masks: np.ndarray | None,
      known_frames: Mapping[int, np.ndarray] | None,
      number: int = 0,
    ) -> np.ndarray:
      folder = window_folder
      if folder is not None and number:
        folder = folder.of_mirror()
      return long_clips.sample(
        model,
        images,
        sampling,
        windows,
        folder=folder,
        known_frames=known_frames,
        masks=masks,
        on_window=lambda done: bar.update(number * num_windows + done - bar.n),
      )

    if sampling.mirror:
      return mirror.both(sample, clip.images, clip.masks, known_frames)
    return sample(clip.images, clip.masks, known_frames)


def extract_meshes(
  model: model_lib.Sculpt4D,
  latents: np.ndarray,
  config: SurfaceConfig,
  on_frame: Callable[[], object] = lambda: None,
  placed: placement_lib.Placement | None = None,
) -> tuple[list[mesh_lib.TriangleMesh], list[int]]:
  """The meshes of several frames' latents [F, N, C], and their points.

  The device evaluates points of one frame while the host marks points and
  extracts surfaces of others.

  Args:
    model: The networks.
    latents: Latents of the frames.
    config: Settings of the surfaces.
    on_frame: Called when a frame is finished, in order.
    placed: Result of `placement`; the meshes are set upright.
  """
  pool = concurrent.futures.ThreadPoolExecutor(config.num_workers)
  try:
    results = []
    for result in pool.map(
      lambda frame: extract_mesh(model, frame, config), latents
    ):
      results.append(result)
      on_frame()
  finally:
    # After an error, or a signal, frames that have not started must not run.
    pool.shutdown(wait=False, cancel_futures=True)
  meshes, counts = zip(*results)
  if placed is not None:
    meshes = map(placed.inverse().mesh, meshes)
  return list(meshes), list(counts)


def sample_meshes(
  model: model_lib.Sculpt4D,
  images: np.ndarray,
  masks: np.ndarray,
  sampling: model_lib.SamplingConfig,
  surface: SurfaceConfig,
) -> list[mesh_lib.TriangleMesh]:
  """The upright meshes of a clip's pictures; see `Sculpt4D.sample`."""
  latents = model.sample(images, sampling, masks=masks)
  meshes, _ = extract_meshes(
    model, latents, surface, placed=placement(model, images)
  )
  return meshes


def extract_mesh(
  model: model_lib.Sculpt4D, latents: np.ndarray, config: SurfaceConfig
) -> tuple[mesh_lib.TriangleMesh, int]:
  """The mesh of one frame's latents [N, C], and the points evaluated."""
  grid = evaluate_grid(model.field(latents), config)
  mesh = isosurface.extract_surface(
    grid.values,
    bounds=config.bounds,
    level=config.level,
    vertex_scale=config.vertex_scale,
    resolution=config.resolution,
  )
  if mesh is None:
    return ply_obj.empty_mesh(), grid.num_evaluations
  mesh = cleanup.keep_largest_components(
    mesh,
    max_components=config.max_components or None,
    min_area_fraction=config.min_component_area,
  )
  if config.max_faces:
    mesh = cleanup.simplify(mesh, config.max_faces)
  return mesh, grid.num_evaluations


def evaluate_grid(
  field: isosurface.Evaluate, config: SurfaceConfig
) -> isosurface.GridField:
  """Evaluates a field on the configured grid."""
  sizes = dict(bounds=config.bounds, chunk_size=config.chunk_size)
  if config.grid == "dense":
    return isosurface.dense_field(field, config.resolution, **sizes)
  return isosurface.coarse_to_fine_field(
    field,
    config.resolution,
    level=config.level,
    band=config.band,
    min_resolution=config.min_resolution,
    mode=config.grid,
    **sizes,
  )
