r"""Compares methods of cutting out on clips whose masks are known.

  python -m benchmarks.cutouts --assets=assets --photographs=photographs
  python -m benchmarks.cutouts --clip=clip.mp4 --reference=onnx:networks/isnet.tgz

The first form puts held-out assets before photographs: 8 frames of 320 x 240,
with the camera still, moving with a hand, or the object crossing; motion blur,
shadow, noise and H.264. A network that is compared must not know the
photographs. The second form takes the matte of a large network as the reference.

It prints the IoU of each clip and method, means over clips (of one clip, over
frames) with 95 % bootstrap intervals of the differences from the first method,
and processor seconds a frame. OpenCV is in the extra "matting".
"""

from collections.abc import Iterable, Iterator, Sequence
import json
import pathlib
import tempfile
import time

from absl import flags
import cv2
import numpy as np
from PIL import Image

from launch import program
from sculpt4d_jax.data.preparation import units
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

_ASSETS = flags.DEFINE_string("assets", None, "Folder of animated assets.")
_HELD_OUT = flags.DEFINE_string(
  "held_out", "configs/held_out_characters.json", "Names of objects to show."
)
_PHOTOGRAPHS = flags.DEFINE_string(
  "photographs", None, "Folder of photographs, .jpg or .png."
)
_PER_ASSET = flags.DEFINE_integer("per_asset", 3, "Clips an asset.")
_CLIP = flags.DEFINE_string("clip", None, "A clip, in place of made ones.")
_REFERENCE = flags.DEFINE_string("reference", None, "Its method of reference.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 10, "Frames of the clip.")
_METHODS = flags.DEFINE_list("methods", "colour,auto", "Methods.")

_WIDTH, _HEIGHT, _FRAMES = 320, 240, 8
_PHOTOGRAPH_SIDE = 640
_SECONDS = 1.5  # Of an asset's animation.
_KINDS = ("still", "by hand", "crossing")


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  if _CLIP.value:
    if not _REFERENCE.value:
      raise UserError("--clip needs --reference, for instance onnx:FILE.")
    clip = reader.read_frames(_CLIP.value, num_frames=_NUM_FRAMES.value)
    truth = foreground.extract(clip, _REFERENCE.value).frames[..., 3] >= 128
    clips = iter([(pathlib.Path(_CLIP.value).name, clip.frames, truth)])
  elif _ASSETS.value and _PHOTOGRAPHS.value:
    clips = made_clips()
  else:
    raise UserError("give --assets and --photographs, or --clip.")
  for line in compare(clips, _METHODS.value):
    print(line, flush=True)


def compare(
  clips: Iterable[tuple[str, np.ndarray, np.ndarray]], methods: Sequence[str]
) -> Iterator[str]:
  """Lines of the comparison.

  Args:
    clips: Names, frames uint8 [F, H, W, 4] and masks bool [F, H, W].
    methods: Names of methods; gains are those over the first.
  """
  scores = []  # [clip][method, frame]
  seconds = []
  for name, frames, truth in clips:
    values, times = [], []
    for method in methods:
      start = time.process_time()
      values.append(overlaps(frames, truth, method))
      times.append((time.process_time() - start) / len(frames))
    scores.append(np.array(values))
    seconds.append(times)
    means = zip(methods, scores[-1].mean(axis=1))
    yield " ".join([name, *(f"{m} {value:.3f}" for m, value in means)])
  if len(scores) == 1:
    table = scores[0].T
  else:
    table = np.stack([score.mean(axis=1) for score in scores])
  for column, method in enumerate(methods):
    gain = evaluator.estimate_mean(table[:, column] - table[:, 0])
    yield (
      f"{method}: IoU {table[:, column].mean():.3f}, against {methods[0]}"
      f" {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}],"
      f" {np.mean(seconds, axis=0)[column]:.2f} s a frame, n = {len(table)}"
    )


def overlaps(frames: np.ndarray, truth: np.ndarray, method: str) -> np.ndarray:
  """IoU of every frame, 0 where the method finds nothing."""
  try:
    found = foreground.extract(reader.read_frames(frames), method)
  except InputError:
    return np.zeros(len(truth))
  mask = found.frames[..., 3] >= 128
  union = np.maximum((mask | truth).sum((1, 2)), 1)
  return (mask & truth).sum((1, 2)) / union


def made_clips() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """Names, compressed frames and masks of held-out assets before grounds."""
  names = json.loads(pathlib.Path(_HELD_OUT.value).read_text())["held_out"]
  folder = pathlib.Path(_ASSETS.value)
  credits = units.read_credits(folder)
  pictures = _photographs(pathlib.Path(_PHOTOGRAPHS.value))
  rng = np.random.default_rng(11)
  number = 0
  with tempfile.TemporaryDirectory() as temporary:
    for path in animated_assets.find_assets(folder):
      name = path.relative_to(folder).as_posix()
      if units.credit_of(name, credits).object not in names:
        continue
      for _ in range(_PER_ASSET.value):
        kind = _KINDS[number % len(_KINDS)]
        views = _views(path, rng)
        picture = pictures[number % len(pictures)]
        frames, masks = composed(views, picture, kind, rng)
        file = pathlib.Path(temporary) / f"{number}.mp4"
        writer.write_video(file, frames, fps=10)
        yield f"{name} {kind}", reader.read_frames(file).frames, masks
        number += 1


def _photographs(folder: pathlib.Path) -> list[np.ndarray]:
  """Pictures of a folder, uint8 [h, w, 3], the longer side 640 at most."""
  pictures = []
  for path in sorted(folder.rglob("*")):
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
      with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((_PHOTOGRAPH_SIDE,) * 2, Image.Resampling.BOX)
        pictures.append(np.asarray(picture))
  if not pictures:
    raise UserError(f"{folder} holds no .jpg or .png.")
  return pictures


def _views(path: pathlib.Path, rng: np.random.Generator) -> np.ndarray:
  """An asset from one camera at some times, uint8 [F, H, H, 4]."""
  asset = animated_assets.AnimatedAsset(path)
  clip = asset.clips[rng.integers(len(asset.clips))]
  length = min(clip.end - clip.start, _SECONDS)
  start = clip.start + rng.random() * (clip.end - clip.start - length)
  mesh = asset.play(clip, np.linspace(start, start + length, _FRAMES))
  points = mesh.vertices.reshape(-1, 3)
  vertices = mesh.vertices - (points.min(axis=0) + points.max(axis=0)) / 2
  vertices = vertices / np.linalg.norm(vertices, axis=-1).max()
  camera = cameras.perspective(
    rng.uniform(0, 360), rng.uniform(0, 30), fov_degrees=35.0, radius=1.02
  )
  colours = None if mesh.colours is None else mesh.colours / 255.0
  return np.stack(
    [
      rasterizer.render_mesh(
        mesh_lib.TriangleMesh(frame, mesh.faces),
        camera,
        _HEIGHT,
        supersampling=2,
        vertex_colors=colours,
      ).rgba
      for frame in vertices
    ]
  )


def composed(
  views: np.ndarray, picture: np.ndarray, kind: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Frames uint8 [F, H, W, 3] and masks bool [F, H, W]."""
  size = rng.uniform(0.5, 0.85)
  x, y = rng.uniform(0.4, 0.6) * _WIDTH, rng.uniform(0.45, 0.6) * _HEIGHT
  step = rng.uniform(6, 12) * rng.choice([-1, 1]) if kind == _KINDS[2] else 0
  part = rng.uniform(0.5, 1.0)
  corner = rng.random(2) * (1 - part) * picture.shape[1::-1]
  zoom = max(_WIDTH / picture.shape[1], _HEIGHT / picture.shape[0]) / part
  soft, streak = rng.random() < 0.4, int(rng.choice([1, 1, 3, 5]))
  shaded, noise = rng.random() < 0.6, rng.uniform(0, 5)
  tint = np.exp(rng.normal(0, 0.08, 3))
  frames, masks = [], []
  for index, view in enumerate(views):
    moved = np.zeros(2)
    if kind == _KINDS[1]:
      moved = np.array([4 * (index - 3.5), 0]) + rng.normal(0, 1, 2)
    shift = moved - zoom * corner
    matrix = np.float32([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    ground = cv2.warpAffine(
      picture, matrix, (_WIDTH, _HEIGHT), borderMode=cv2.BORDER_REFLECT
    ).astype(np.float32)
    if soft:
      ground = cv2.GaussianBlur(ground, (0, 0), 2.0)
    layer = view.astype(np.float32)
    layer[..., :3] *= layer[..., 3:] / 255
    left = x + step * (index - 3.5) - size * _HEIGHT / 2
    matrix = np.float32([[size, 0, left], [0, size, y - size * _HEIGHT / 2]])
    layer = cv2.GaussianBlur(layer, (0, 0), 0.6)
    layer = cv2.warpAffine(layer, matrix, (_WIDTH, _HEIGHT))
    layer = cv2.blur(layer, (streak, 1))
    share = layer[..., 3:] / 255
    if shaded:
      ground = _with_shadow(ground, share[..., 0] > 0.5)
    frame = layer[..., :3] * tint + ground * (1 - share)
    frame = frame + rng.normal(0, noise, frame.shape)
    frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    masks.append(share[..., 0] > 0.5)
  return np.stack(frames), np.stack(masks)


def _with_shadow(ground: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """A soft shadow below the object."""
  rows, columns = np.nonzero(mask)
  shadow = np.zeros(mask.shape, np.float32)
  if len(rows):
    centre = float(columns.mean()), float(rows.max() - 2)
    width = float(np.ptp(columns))
    sizes = 0.9 * width + 2, 0.25 * width + 2
    cv2.ellipse(shadow, (centre, sizes, 0), 1.0, -1)
  return ground * (1 - 0.45 * cv2.GaussianBlur(shadow, (0, 0), 4)[..., None])


if __name__ == "__main__":
  program.run(main)
