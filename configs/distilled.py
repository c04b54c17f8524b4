r"""Few-step models distilled from others: four calls instead of ninety-eight.

  python -m launch.train --config=configs/distilled.py:tiny --stages=distill \
      --workdir=runs/tiny_distilled --config.distillation.init_from=weights/tiny
  python -m launch.sample --config=configs/distilled.py:tiny --input=my.mp4 \
      --output=out --checkpoint=runs/tiny_distilled/weights

Three quarters of a batch train the student on its teacher's guided velocity, a
quarter on long steps. A step costs 1.7 times a step of the DiT's training.

  tiny            the model `tiny`
  small           the model `small`, whose teacher is best without guidance: long
                  steps alone are learned
  sculpt4d        the released size, all parameters; a copy is the teacher
  sculpt4d-lora   adapters of rank 64 on all linear maps but the experts'; the
                  teacher is the model without them
  SLICE           the released size on a slice of TPUs, by its name in
  SLICE-lora      configs/pods.py, as v5p-64

`small` was trained for a while: docs/sampling.md has its scores. Of the released
size only the shapes and, at a smaller size, the code were tested.
"""

import ml_collections

from sculpt4d_jax.configs import base
from sculpt4d_jax.configs import pods
from sculpt4d_jax.configs import small
from sculpt4d_jax.configs import tiny

_LORA = "-lora"


def get_config(name: str = "tiny") -> ml_collections.ConfigDict:
  """Returns a student by name."""
  size = name.removesuffix(_LORA)
  if size == "tiny":
    config = tiny.get_config()
    _on_a_cpu(config.distillation)
  elif size == "small":
    config = small.get_config()
    _on_a_cpu(config.distillation)
    config.distillation.update(
      dict(guidance_scale=1.0, min_temperature=0.25, save_every=100)
    )
    config.distillation.optimizer.num_steps = 700
  elif size == "sculpt4d":
    config = base.get_config()
  else:
    config = pods.get_config(size)
    # Clips of both kinds are partitioned over the shards.
    config.distillation.batch_size = max(32, 4 * config.mesh.fsdp)
  config.name = f"distilled_{name}"
  config.weights = ""
  config.model.dit.step_embedding = True
  config.sampling.update(
    dict(solver="euler", num_steps=5, guidance_scale=1.0, timestep_shift=1.0)
  )
  if name != size:
    config.distillation.lora.update(
      dict(
        rank=64,
        alpha=64.0,
        modules=(
          "spatial_attention",
          "cross_attention",
          "temporal_attention",
          "mlp",
          "shared_expert",
          "skip_linear",
        ),
      )
    )
    config.distillation.optimizer.learning_rate = 1e-4
  return config


def _on_a_cpu(training: ml_collections.ConfigDict) -> None:
  """The training of a small model, one or two hours on one CPU core."""
  training.update(dict(batch_size=8, guidance_scale=2.0, save_every=250))
  training.optimizer.update(
    dict(
      learning_rate=3e-4,
      num_steps=5_000,
      warmup_steps=100,
      epsilon=1e-8,
      decay_fraction=0.4,
    )
  )
