r"""One process of a run on several meshes, one after the other.

  python -m tests.integration.topologies WORKDIR PHASE PORT PROCESSES INDEX

PHASE is "train": every mesh of so many processes trains the same small DiT from
nothing, saves half way, and writes its losses; or "restore": every mesh reads
what all the others saved, whole and to the bit, and one of every number of
processes trains on from what another number saved.
Joining once for all meshes saves most of the time that processes take to start.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import traceback

import jax
from jax.experimental import multihost_utils
import numpy as np

from sculpt4d_jax import partitioning
from sculpt4d_jax.data.procedural import batches as store_batches
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.training import checkpoints as checkpoints_lib
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training.tasks import dit as dit_task

CLIPS, FRAMES, TOKENS, CHANNELS, SIDE = 4, 4, 8, 4, 16
SAVED, LAST = 2, 4
# Every axis by itself over two processes, mixtures over four.
MESHES = {
  1: [dict()],
  2: [
    dict(data=2),
    dict(fsdp=2),
    dict(expert=2),
    dict(context=2),
    dict(tensor=2),
  ],
  4: [
    dict(data=2, expert=2),
    dict(fsdp=2, context=2),
    dict(context=2, tensor=2),
  ],
}
OPTIMIZER = optimizer_lib.OptimizerConfig(
  learning_rate=1e-3, num_steps=LAST, warmup_steps=1
)


def name_of(mesh: dict[str, int]) -> str:
  """Names a mesh's folder."""
  return "-".join(f"{axis}{size}" for axis, size in mesh.items()) or "one"


def names() -> list[str]:
  """Of all meshes."""
  return [name_of(mesh) for meshes in MESHES.values() for mesh in meshes]


def continued() -> dict[str, str]:
  """Meshes that train on, one of every number of processes, and from where."""
  last = [name_of(meshes[-1]) for meshes in MESHES.values()]
  return dict(zip(last, last[1:] + last[:1]))


def make_task() -> dit_task.DiTTask:
  """A small DiT on clips of noise; its larger kernels are split by fsdp."""
  rng = np.random.default_rng(0)
  latents = (CLIPS, 2, 1, FRAMES, TOKENS, CHANNELS)
  store = record_store.RecordStore(
    surface=np.zeros((CLIPS, FRAMES, 1, 7), np.float16),
    samples=np.zeros((CLIPS, FRAMES, 1, 4), np.float16),
    images=rng.integers(0, 255, (CLIPS, FRAMES, SIDE, SIDE, 3), np.uint8),
    first_seed=0,
  )
  posteriors = store_batches.LatentStore(
    rng.normal(size=latents).astype(np.float16),
    np.full(latents, -4.0, np.float16),
    scale=1.0,
  )
  return dit_task.DiTTask(
    dit_task.DiTTaskConfig(
      batch_size=4,
      context_dropout=0.1,
      time_sampling="uniform",
      train_image_encoder=False,
      temporal_dropout=0.2,
      eval_clips=0,
    ),
    dit_lib.DiTConfig(
      depth=3,
      width=192,
      num_heads=4,
      latent_channels=CHANNELS,
      context_width=16,
      num_moe_blocks=1,
      num_experts=4,
      temporal_block_size=2,
    ),
    image_encoder_lib.ImageEncoderConfig(
      image_size=SIDE, patch_size=8, width=16, num_layers=1, num_heads=2
    ),
    store_batches.LatentBatches(
      (store, posteriors),
      (store, posteriors),
      batch_size=4,
      num_samples=0,
      seed=0,
    ),
    scale=1.0,
  )


def run(task, mesh: dict[str, int], folder: pathlib.Path) -> None:
  """Trains to the end, from what the folder has."""
  loop.train(
    task,
    OPTIMIZER,
    folder,
    mesh=partitioning.MeshConfig(**mesh),
    schedule=schedule_lib.Schedule(log_every=1, save_every=SAVED),
  )


def digests_of_saved(
  task, mesh: dict[str, int], folders: dict[str, pathlib.Path]
) -> dict[str, str]:
  """Of all numbers of the folders' checkpoints, read onto a mesh."""
  device_mesh = partitioning.make_mesh(partitioning.MeshConfig(**mesh))
  with partitioning.use_mesh(device_mesh):
    tx = optimizer_lib.make_optimizer(OPTIMIZER)
    abstract = loop.abstract_state(task, tx)
    shardings = loop.state_shardings(task, OPTIMIZER, device_mesh)
    everywhere = jax.NamedSharding(device_mesh, jax.P())
    gather = jax.jit(lambda state: state, out_shardings=everywhere)
    digests = {}
    for name, folder in folders.items():
      checkpoints = checkpoints_lib.Checkpoints(folder)
      state = checkpoints.restore_newest(abstract, shardings)
      checkpoints.close()
      total = hashlib.sha256()
      for whole in jax.tree.leaves(gather(state)):
        total.update(np.asarray(whole).tobytes())
      digests[name] = total.hexdigest()
  return digests


def train_all(workdir: pathlib.Path) -> None:
  """Phase "train"."""
  task = make_task()
  for mesh in MESHES[jax.process_count()]:
    folder = workdir / name_of(mesh)
    run(task, mesh, folder)
    half = workdir / f"{name_of(mesh)}_half"
    if jax.process_index() == 0:
      source = folder / "checkpoints" / str(SAVED)
      shutil.copytree(source, half / str(SAVED))
    multihost_utils.sync_global_devices(f"copied {half}")


def restore_all(workdir: pathlib.Path) -> None:
  """Phase "restore"."""
  task = make_task()
  for mesh in MESHES[jax.process_count()]:
    name = name_of(mesh)
    digests = digests_of_saved(
      task, mesh, {source: workdir / f"{source}_half" for source in names()}
    )
    if jax.process_index() == 0:
      (workdir / f"{name}_digests.json").write_text(json.dumps(digests))
    if name in continued():
      folder = workdir / f"{name}_resumed"
      if jax.process_index() == 0:
        source = workdir / f"{continued()[name]}_half"
        shutil.copytree(source, folder / "checkpoints")
      multihost_utils.sync_global_devices(f"copied {folder}")
      run(task, mesh, folder)


def main(workdir, phase, port, processes, index):
  if int(processes) > 1:
    jax.distributed.initialize(
      f"127.0.0.1:{port}",
      int(processes),
      int(index),
      heartbeat_timeout_seconds=600,  # The machine may have other work.
    )
    multihost_utils.sync_global_devices("joined")
  try:
    {"train": train_all, "restore": restore_all}[phase](pathlib.Path(workdir))
  except BaseException:  # Not to wait at jax's exit for those that wait for us.
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
  main(*sys.argv[1:])
