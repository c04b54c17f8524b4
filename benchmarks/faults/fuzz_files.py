r"""Reads damaged clips, assets and checkpoints; counts what happens.

  python -m benchmarks.faults.fuzz_files --what=clips --count=3000
  python -m benchmarks.faults.fuzz_files --what=gltf --count=2000
  python -m benchmarks.faults.fuzz_files --what=weights --count=1000
  python -m benchmarks.faults.fuzz_files --what=usd --count=500
  python -m benchmarks.faults.fuzz_files --what=meshes --count=500

Each case is a small whole file (one of the tests' or one written here) of which
bytes are changed, cut off, repeated or zeroed, or whose JSON has lost or
exchanged values, as its seed says. It is read by the calls of the programs, in
a process with limits of memory and time, as the programs read assets. What is
allowed: a result, or an error that the user can mend. A traceback, a crash of
the process, more than `--seconds` or more memory than `--gigabytes` is a fault;
the file is kept in `--keep`.
"""

import io
import pathlib
import tempfile
import zipfile

from absl import app
from absl import flags
import numpy as np
from PIL import Image
import safetensors.numpy
import trimesh

from benchmarks.faults import fuzzing
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import mesh_sequences
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.weights import conversion
from tests.weights import hunyuan_checkpoints as checkpoints

_WHAT = flags.DEFINE_enum(
  "what", "clips", ["clips", "gltf", "usd", "meshes", "weights"], "Files."
)
_COUNT = flags.DEFINE_integer("count", 1000, "Cases.")
_FIRST = flags.DEFINE_integer("first", 0, "First seed.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Limit of a case.")
_GIGABYTES = flags.DEFINE_float("gigabytes", 4.0, "Address space of a process.")
_KEEP = flags.DEFINE_string("keep", None, "Folder for files that show faults.")

_TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
_ASSETS = _TESTS / "io/assets/cases"
_LARGEST = 60_000  # Bytes of a whole file; larger ones take too long.
_LIMITS = asset_files.AssetLimits(decoded_bytes=1 << 28)
_SIZES = checkpoints.DiTSizes(
  depth=3, width=16, heads=2, channels=4, context=12, num_moe=1, experts=3
)


def read_clip(path: str) -> str:
  """Reads a clip or a picture and cuts its object out."""
  try:
    foreground.extract(reader.read_frames(path, num_frames=4, max_side=96))
  except reader.InputError:
    return "message"
  return "read"


def read_asset(path: str) -> str:
  """Plays the first clip of an asset."""
  try:
    asset = animated_assets.AnimatedAsset(path, _LIMITS)
    clip = asset.clips[0]
    asset.play(clip, np.linspace(clip.start, clip.end, 3))
  except asset_files.AssetError:
    return "message"
  return "read"


def read_mesh(path: str) -> str:
  """Reads a mesh, or a zip of meshes."""
  try:
    if path.endswith(".zip"):
      mesh_sequences.read_zip(path, None, _LIMITS)
    else:
      content = pathlib.Path(path).read_bytes()
      mesh_sequences.parse_mesh(path, content, _LIMITS)
  except asset_files.AssetError:
    return "message"
  return "read"


def read_weights(path: str) -> str:
  """Compares a checkpoint with a network, and converts it if it fits."""
  config = dit_config.DiTConfig(
    depth=_SIZES.depth,
    width=_SIZES.width,
    num_heads=_SIZES.heads,
    latent_channels=_SIZES.channels,
    context_width=_SIZES.context,
    mlp_ratio=_SIZES.mlp_ratio,
    num_moe_blocks=_SIZES.num_moe,
    num_experts=_SIZES.experts,
    num_experts_per_token=_SIZES.top_k,
    temporal_block_size=2,
  )
  try:
    made = conversion.plan(
      [path], {"dit": config}, parts=["dit"], adapter_alpha=8
    )
    for part in made.parts:
      for _ in part.plan.run(part.part.read):
        pass
  except UserError:
    return "message"
  return "read"


def _clips(folder: pathlib.Path) -> list[pathlib.Path]:
  """Small whole files of every kind of clip."""
  rows, columns = np.mgrid[:48, :64]
  frames = np.zeros((6, 48, 64, 4), np.uint8)
  for index in range(6):
    inside = np.hypot(rows - 24, columns - 22 - 4 * index) < 14
    frames[index] = np.where(inside[..., None], (200, 60, 40, 255), 0)
  for name in ("a.mp4", "a.webm", "a.mov", "a.gif"):
    writer.write_video(folder / name, frames, fps=8)
  pictures = [Image.fromarray(frame) for frame in frames]
  for name in ("a.png", "a.webp", "a.avif", "a.tif"):
    pictures[0].save(folder / name, save_all=True, append_images=pictures[1:])
  for name in ("b.jpg", "b.bmp", "b.ppm"):
    pictures[0].convert("RGB").save(folder / name)
  made = [path for path in folder.iterdir() if path.is_file()]
  shipped = [
    path
    for path in (_TESTS / "data/clips").iterdir()
    if path.suffix != ".md" and path.stat().st_size < _LARGEST
  ]
  return sorted(made) + sorted(shipped)


def _gltf(folder: pathlib.Path) -> list[pathlib.Path]:
  """The tests' assets, and a skinned and morphed one."""
  from tests.io.assets import animated_assets_test

  made = animated_assets_test.Glb().write(folder)
  # Drawn more often than the others: it has a part of everything.
  return 4 * [made] + sorted(_ASSETS.glob("*.glb"))


def _usd(folder: pathlib.Path) -> list[pathlib.Path]:
  from pxr import Usd

  found = sorted(_ASSETS.glob("*.usda"))
  for path in found:
    stage = Usd.Stage.Open(str(path))
    stage.Export(str(folder / f"{path.stem}.usdc"))
  return found + sorted(folder.glob("*.usdc"))


def _meshes(folder: pathlib.Path) -> list[pathlib.Path]:
  ball = trimesh.creation.icosphere(1)
  for name in ("a.ply", "a.obj", "a.stl"):
    ball.export(folder / name)
  (folder / "b.ply").write_bytes(
    trimesh.exchange.ply.export_ply(ball, encoding="ascii")
  )
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
    for number in range(3):
      archive.write(folder / "a.ply", f"seq/{number}.ply")
  (folder / "c.zip").write_bytes(content.getvalue())
  return sorted(folder.iterdir())


def _weights(folder: pathlib.Path) -> list[pathlib.Path]:
  shapes = checkpoints.dit_shapes(_SIZES)
  tensors = checkpoints.state(shapes, 0, "float16")
  safetensors.numpy.save_file(tensors, folder / "a.safetensors")
  checkpoints.write_torch(folder / "a.ckpt", shapes, tensors.items())
  down = {"blocks.0.attn1.to_q.lora_A.default.weight": np.ones((4, 16))}
  up = {"blocks.0.attn1.to_q.lora_B.default.weight": np.ones((16, 4))}
  base = {
    name.replace("0.attn1.to_q.", "0.attn1.to_q.base_layer."): tensor
    for name, tensor in tensors.items()
  }
  both = base | down | up
  safetensors.numpy.save_file(both, folder / "b.safetensors")
  state = {f"optimizer.state.{i}.exp_avg": np.ones(3) for i in range(20)}
  whole = {f"module.{name}": tensor for name, tensor in tensors.items()}
  safetensors.numpy.save_file(whole | state, folder / "c.safetensors")
  return sorted(folder.iterdir())


_KINDS = {
  "clips": (read_clip, _clips),
  "gltf": (read_asset, _gltf),
  "usd": (read_asset, _usd),
  "meshes": (read_mesh, _meshes),
  "weights": (read_weights, _weights),
}


def main(argv: list[str]) -> None:
  """Damages files and counts what their reader answers."""
  del argv
  read, make = _KINDS[_WHAT.value]
  with tempfile.TemporaryDirectory() as name:
    counts, slowest = fuzzing.run(
      read,
      make(pathlib.Path(name)),
      first=_FIRST.value,
      count=_COUNT.value,
      seconds=_SECONDS.value,
      gigabytes=_GIGABYTES.value,
      keep=_KEEP.value,
    )
  print(f"{_COUNT.value} files: {counts}; slowest {slowest:.1f} s")


if __name__ == "__main__":
  app.run(main)
