"""A run that lives in a bucket: killed, resumed, exported, sampled, evaluated.

The store is an emulator on loopback of which one request in ten goes wrong.
"""

import contextlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.training import preset as preset_lib
from tests import conftest
from tests.integration import micro
from tests.integration import train_processes
from tests.io import emulated
from tests.io import stores

pytestmark = [pytest.mark.slow, pytest.mark.long]


# Programs that run a few steps take longer to compile than to run.
_QUICK_COMPILES = "--xla_backend_optimization_level=0"
# Seconds: a guard against what hangs, on a machine with other work too.
_LONGEST = 3600


def _run(*args, **options):
  """A run from its start to its end."""
  return train_processes.finish(
    train_processes.start(*args, **options), timeout=_LONGEST
  )


def _program(name, *flags):
  result = subprocess.run(
    [sys.executable, "-m", f"launch.{name}", *map(str, flags)],
    cwd=conftest.ROOT,
    env=train_processes.environment(),
    capture_output=True,
    text=True,
    timeout=_LONGEST,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-3000:]
  return result


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", _QUICK_COMPILES)
    yield


def _commits(stage_folder):
  folder = stage_folder / "checkpoints" / "commits"
  return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module", params=["gs", "s3"])
def run(request):
  """A run of two processes that was killed, and finished on another mesh."""
  stores.skip_without(request.param)
  with emulated.store(request.param, one_in=10) as bucket:
    workdir = bucket / "micro"
    meshes = ["--config.mesh.data=2", "--config.mesh.fsdp=1"]
    processes = train_processes.start(
      workdir, 2, *meshes, stages="data,vae,dit"
    )
    train_processes.wait_for(
      lambda: _commits(workdir / "dit"), processes, _LONGEST
    )
    for process in processes:
      process.kill()
      process.communicate()
    _run(workdir, stages="data,vae,dit")
    yield workdir


def test_everything_of_a_run_is_in_the_bucket(run):
  for stage in ("vae", "dit"):
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
    assert list((run / stage / "tensorboard").iterdir())
    assert _commits(run / stage)
  assert list((run / "dit" / "profile").walk())
  assert json.loads((run / "dit" / "best.json").read_text())["metric"]
  names = {p.name for p in (run / "weights").iterdir()}
  assert names == {
    "vae.safetensors",
    "dit.safetensors",
    "image_encoder.safetensors",
  }


def _level(weights):
  """A level with a surface: the micro model learns nothing about shapes."""
  config = micro.get_config()
  model = model_lib.Sculpt4D.load(preset_lib.from_config(config).model, weights)
  sampling = model_lib.SamplingConfig(**config.sampling.to_dict())
  side = model.encoder_config.image_size
  images = np.full((sampling.num_frames, side, side, 3), 255, np.uint8)
  images[:, side // 4 : -side // 4, side // 4 : -side // 4] = 110
  points = np.random.default_rng(0).uniform(-1, 1, (512, 3))
  values = model.field(model.sample(images, sampling)[0])(
    points.astype(np.float32)
  )
  return float(np.median(values))


def test_weights_in_a_bucket_are_exported_sampled_and_evaluated(run, tmp_path):
  weights = run / "weights"
  level = f"--config.surface.level={_level(weights)}"
  _program(
    "sample",
    "--config=tests/integration/micro.py",
    level,
    f"--input={conftest.ROOT / 'demo' / 'clip.mp4'}",
    f"--checkpoint={weights}",
    f"--output={run / 'sampled'}",
  )
  record = json.loads((run / "sampled" / "run.json").read_text())
  assert record["weights"] == str(weights)
  assert (run / "sampled" / "frame_0000.ply").is_file()
  result = _program(
    "evaluate",
    "--config=tests/integration/micro.py",
    level,
    f"--checkpoint={weights}",
    "--num_sequences=1",
    f"--pictures={run / 'pictures'}",
    f"--output={run / 'scores.json'}",
  )
  assert "Chamfer" in result.stdout
  assert json.loads((run / "scores.json").read_text())
  assert (run / "pictures" / "index.html").is_file()
  _program(
    "evaluate",
    f"--predicted={run / 'sampled'}",
    f"--truth={run / 'sampled'}",
    f"--output={run / 'same.json'}",
  )
  methods = json.loads((run / "same.json").read_text())["methods"]
  (method,) = methods.values()
  assert set(method["sequences"][0]["iou"]) == {1.0}
  _program(
    "convert_weights",
    "--config=tests/integration/micro.py",
    "--export",
    f"--source={weights}",
    f"--output={run / 'exported.safetensors'}",
  )
  (run / "exported.safetensors").download(tmp_path / "x.safetensors")
  tensors = safetensors_numpy.load_file(tmp_path / "x.safetensors")
  assert tensors and all(np.isfinite(x).all() for x in tensors.values())


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_records_are_prepared_into_a_bucket_and_trained_from_it(
  scheme, tmp_path
):
  pytest.importorskip("array_record")
  pytest.importorskip("grain")
  with emulated.store(scheme, one_in=10) as bucket:
    data = bucket / "records"
    prepare = (
      f"--output={data}",
      "--preset=tiny",
      "--procedural=3",
      "--clips_per_unit=1",
      "--test_fraction=0.4",
      "--num_frames=3",
      "--workers=1",
    )
    _program("prepare_data", *prepare)
    index = json.loads((data / "dataset.json").read_text())
    again = _program("prepare_data", *prepare)
    assert "3 units, 3 of them done before" in again.stderr
    assert index["splits"]["train"] and index["splits"]["test"]
    assert (data / "summary.html").is_file() and (data / "README.md").is_file()
    losses = []
    for cache in ("", tmp_path / "cache"):
      workdir = tmp_path / f"run_{len(losses)}"
      _run(
        workdir,
        1,
        f"--config.records.folders={data}",
        "--config.records.num_parts=1",
        f"--config.records.cache={cache}",
        stages="vae",
      )
      losses.append(train_processes.losses(workdir))
    # The same from ranges and from copies.
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert list((tmp_path / "cache").rglob("*.arrayrecord"))


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_beam_prepares_the_same_records_into_a_bucket(scheme, tmp_path):
  pytest.importorskip("apache_beam", reason="needs the extra `beam`")
  pytest.importorskip("array_record")
  flags = (
    "--preset=tiny",
    "--procedural=2",
    "--clips_per_unit=1",
    "--num_frames=3",
    "--workers=1",
  )
  _program("prepare_data", *flags, f"--output={tmp_path}")
  with emulated.store(scheme, one_in=10) as bucket:
    data = bucket / "records"
    _program("prepare_data", *flags, f"--output={data}", "--beam")
    shards = sorted((tmp_path / "shards").iterdir())
    assert [p.name for p in shards] == sorted(
      p.name for p in (data / "shards").iterdir()
    )
    for path in shards:
      assert (data / "shards" / path.name).read_bytes() == path.read_bytes()
    index = json.loads((data / "dataset.json").read_text())
    assert index == json.loads((tmp_path / "dataset.json").read_text())


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_two_processes_resume_on_another_mesh_after_an_outage(scheme):
  """Five minutes without a store, twenty steps, then other processes."""
  with contextlib.ExitStack() as stack:
    url = stack.enter_context(stores.emulator(scheme))
    bad = stack.enter_context(stores.BadStore(url))
    workdir = stack.enter_context(emulated.at(scheme, bad.url)) / "long"
    processes = train_processes.start(
      workdir,
      2,
      "--config.vae_training.optimizer.num_steps=20",
      "--config.mesh.data=2",
      "--config.mesh.fsdp=1",
    )
    train_processes.wait_for(
      lambda: _commits(workdir / "vae"), processes, _LONGEST
    )
    bad.away = True
    time.sleep(300)
    assert [process.poll() for process in processes] == [None, None]
    bad.away = False
    train_processes.finish(processes, timeout=_LONGEST)
    assert any(n.startswith("20.") for n in _commits(workdir / "vae"))
    lines = (workdir / "vae" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["step"] for line in lines} == set(range(1, 21))
    _run(workdir, 1, "--config.vae_training.optimizer.num_steps=24", devices=2)
    assert any(n.startswith("24.") for n in _commits(workdir / "vae"))
