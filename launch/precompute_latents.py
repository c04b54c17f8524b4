r"""Computes latents and image features of records, into shards next to them.

  python -m launch.precompute_latents --config=configs/tiny_records.py \
    --data=data/mine --checkpoint=weights/tiny

A training on records does this automatically between its two stages. Doing it
in advance saves time on a pod: use the settings of the training and the weights
of its autoencoder. Several jobs share the work with --num_shares=N --share=0
... N-1, each on a separate machine.

Mean and log-variance of every frame are stored, so that each training step
draws a new sample, with one noise for all frames of a clip. --features also
computes the image encoder's tokens, which --config.records.use_features reads;
it is for a frozen encoder.

You can stop it at any time: the same command resumes with the missing shards.
One clip is in memory at a time.
"""

from collections.abc import Sequence

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import record_latents
from sculpt4d_jax.training import sources

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny_records.py", "Preset of the training."
)
_DATA = flags.DEFINE_list(
  "data", [], "Data sets; by default those of config.records.folders."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Folder of weights; by default the preset's.",
)
_FEATURES = flags.DEFINE_bool(
  "features", False, "Also compute the image encoder's tokens."
)
_SHARE = flags.DEFINE_integer(
  "share", 0, "Index of this job's share of the shards, from 0.", lower_bound=0
)
_NUM_SHARES = flags.DEFINE_integer(
  "num_shares", 1, "Number of jobs that share the work.", lower_bound=1
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  preset = preset_lib.from_config(_CONFIG.value)
  folders = _DATA.value or list(preset.records.folders)
  if not folders:
    raise UserError(
      "There are no records: name a data set of launch.prepare_data with"
      " --data=FOLDER."
    )
  if _SHARE.value >= _NUM_SHARES.value:
    raise UserError(
      f"--share={_SHARE.value} must be below --num_shares={_NUM_SHARES.value}."
    )
  program.log_platform()
  weights = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  jobs = [
    sources.posterior_job(
      preset, sources.load_module(preset.model, weights, "vae")
    )
  ]
  if _FEATURES.value:
    jobs.append(
      sources.feature_job(
        preset, sources.load_module(preset.model, weights, "image_encoder")
      )
    )
  for job in jobs:
    count = record_latents.precompute(
      folders, job, share=_SHARE.value, num_shares=_NUM_SHARES.value
    )
    logging.info(
      "%d clips computed; the shards are in %s/%s of each data set.",
      count,
      job.folder,
      job.name,
    )


if __name__ == "__main__":
  program.run(main)
