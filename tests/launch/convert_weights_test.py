"""Bad checkpoints: one clear message, exit code 2, nothing half-written."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import safetensors.numpy

from tests.weights import hunyuan_checkpoints as checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]

DIT = checkpoints.DiTSizes(
  depth=1, width=8, heads=2, channels=3, context=4, num_moe=0
)
SIZES = (
  "--config.model.dit.depth=1",
  "--config.model.dit.width=8",
  "--config.model.dit.num_heads=2",
  "--config.model.dit.latent_channels=3",
  "--config.model.dit.context_width=4",
  "--config.model.dit.num_moe_blocks=0",
)

# Starting a process costs seconds: one runs many requests. It gives for each
# the message that the program would end with, exit code 2, or None.
MANY = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from launch import convert_weights, program
requests = json.load(sys.stdin)
flags.FLAGS(["convert_weights", "--source=", *sys.argv[2:]])
messages = []
for request in requests:
  with flagsaver.flagsaver(**request):
    try:
      convert_weights.main([])
      messages.append(None)
    except Exception as error:
      messages.append(program.user_message(error) or f"TRACEBACK {error!r}")
json.dump(messages, open(sys.argv[1], "w"))
"""


def run(folder, requests):
  """The messages of many requests, and what they printed."""
  path = folder / "messages.json"
  result = subprocess.run(
    [sys.executable, "-c", MANY, str(path), *SIZES],
    input=json.dumps(requests),
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  messages = json.loads(path.read_text())
  path.unlink()
  return messages, result.stdout


def request(source, output, **changes):
  return dict(source=[str(source)], output=str(output), parts=["dit"]) | changes


def write(path, change=lambda tensors: tensors, dtype="float16"):
  tensors = change(checkpoints.state(checkpoints.dit_shapes(DIT), 0, dtype))
  shapes = {name: array.shape for name, array in tensors.items()}
  checkpoints.write_torch(path, shapes, tensors.items(), dtype=dtype)
  return path


def edit(name, function):
  return lambda tensors: tensors | {name: function(tensors[name])}


def test_converts_and_exports(tmp_path):
  source = write(tmp_path / "a.ckpt")
  out, back = tmp_path / "out", tmp_path / "back.safetensors"
  messages, printed = run(
    tmp_path,
    [
      request(source, "", dry_run=True),
      request(source, out),
      request(source, out),
      request(source, out, overwrite=True),
      request(out, back, export=True, dtype="float32"),
      request(tmp_path, back, export=True),
    ],
  )
  assert "x_embedder.weight float16 [8, 3] -> latent_embedding" in printed
  assert f"--checkpoint={out}" in printed
  assert "not empty" in messages[2]
  assert "holds no weights" in messages[5]
  assert [m is None for m in messages] == [True, True, False, True, True, False]
  assert sorted(p.name for p in out.iterdir()) == ["dit", "sculpt4d.json"]
  exported = safetensors.numpy.load_file(back)
  expected = checkpoints.state(checkpoints.dit_shapes(DIT))
  name = "blocks.0.attn1.to_k.weight"
  np.testing.assert_allclose(
    exported[f"model.{name}"], expected[name], rtol=2**-8
  )


class _Evil:
  def __reduce__(self):
    return os.system, ("touch was_here_through_a_pickle",)


def _truncated(folder):
  source = write(folder / "a.ckpt")
  source.write_bytes(source.read_bytes()[:-500])
  return source


def _code(folder):
  source = folder / "a.ckpt"
  with zipfile.ZipFile(source, "w") as archive:
    archive.writestr("a/data.pkl", pickle.dumps({"x": _Evil()}, 2))
  return source


def _renamed(folder):
  old, new = (f"blocks.0.attn1.{n}.weight" for n in ("to_q", "to_qq"))
  return write(
    folder / "a.ckpt",
    lambda t: {
      (new if name == old else name): array for name, array in t.items()
    },
  )


def _transposed(folder):
  change = edit("blocks.0.mlp.fc1.weight", lambda a: a.T)
  return write(folder / "a.ckpt", change)


def _integers(folder):
  tensors = checkpoints.state(checkpoints.dit_shapes(DIT))
  tensors["x_embedder.bias"] = np.zeros((8,), np.int64)
  source = folder / "a.safetensors"
  safetensors.numpy.save_file(tensors, source)
  return source


def _not_finite(folder):
  change = edit("blocks.0.mlp.fc1.weight", lambda a: a * np.float16(np.nan))
  return write(folder / "a.ckpt", change)


def _missing_shard(folder):
  source = folder / "model.safetensors.index.json"
  source.write_text('{"weight_map": {"x_embedder.bias": "1.safetensors"}}')
  return source


def _half_downloaded(folder):
  write(folder / "model.ckpt")
  (folder / "more.ckpt").symlink_to(folder / "blobs" / "missing")
  return folder


def _damaged(folder):
  source = write(folder / "a.ckpt")
  content = bytearray(source.read_bytes())
  number = checkpoints.state(checkpoints.dit_shapes(DIT))["x_embedder.weight"]
  content[content.find(number.tobytes())] ^= 1
  source.write_bytes(content)
  return source


BAD = {
  _truncated: ["truncated", "again"],
  _code: ["would run", "system", "refused"],
  _renamed: [
    "blocks.0.attn1.to_q.weight (nearest: blocks.0.attn1.to_qq.weight",
    "used by no rule",
  ],
  _transposed: ["expected (32, 8), got (8, 32), the transposed one"],
  _integers: ["x_embedder.bias", "got int64"],
  _not_finite: ["blocks.0.mlp.fc1.weight holds numbers that are not finite"],
  _missing_shard: ["missing: 1.safetensors"],
  _half_downloaded: ["not finished"],
  _damaged: ["check sum of 'x_embedder.weight'"],
}


def test_bad_checkpoints_are_refused_and_leave_nothing(tmp_path):
  requests = []
  for make in BAD:
    folder = tmp_path / make.__name__
    folder.mkdir()
    requests.append(request(make(folder), folder / "out"))
  good = write(tmp_path / "good.ckpt")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "thesis.txt").write_text("years of work")
  requests += [
    request(good, tmp_path / "x", parts=["dit", "vae"]),
    request(good, tmp_path / "x", parts=["face"]),
    request(good, tmp_path / "x", dtype="float16"),
    request(good, tmp_path / "taken", overwrite=True),
    request(good, tmp_path / "good.ckpt" / "x"),
    request(tmp_path / "none.ckpt", tmp_path / "x"),
    request(good, ""),
  ]
  before = sorted(tmp_path.rglob("*"))
  messages, _ = run(tmp_path, requests)
  assert sorted(tmp_path.rglob("*")) == before
  assert not (ROOT / "was_here_through_a_pickle").exists()
  expected = [
    *BAD.values(),
    ["no vae", "--parts"],
    ["Networks face"],
    ["float16"],
    ["no converted checkpoint"],
    ["cannot write"],
    ["no file or folder"],
    ["--output is missing"],
  ]
  for message, words in zip(messages, expected, strict=True):
    assert message and not message.startswith("TRACEBACK"), (message, words)
    for word in words:
      assert word in message


def test_exit_code_is_two_and_no_traceback(tmp_path):
  source = _code(tmp_path)
  result = subprocess.run(
    [
      sys.executable,
      "-m",
      "launch.convert_weights",
      f"--source={source}",
      f"--output={tmp_path / 'out'}",
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 2, result.stderr
  assert "was refused" in result.stderr
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "out").exists()
