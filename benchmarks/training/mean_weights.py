r"""Writes the mean of the weights of several trainings, half and half or more.

  python -m benchmarks.training.mean_weights --config=configs/small.py \
      --folders=runs/before/weights,runs/after/weights --output=runs/mean

The folders must be of trainings that started from one another: their weights
are then close enough for the mean to be a model, which is often better than
each. Only the image encoder and the transformer are averaged; the autoencoder,
which must be the same, is the first folder's.

Source: Wortsman et al., Model Soups, 2022.
"""

from collections.abc import Sequence

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py."
)
_FOLDERS = flags.DEFINE_list(
  "folders", None, "Folders of weights.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for the mean.", required=True
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  if len(_FOLDERS.value) < 2:
    raise UserError("--folders names one folder; a mean needs two or more.")
  model = preset_lib.from_config(_CONFIG.value).model
  output = paths.of(_OUTPUT.value)
  for name, (kind, config) in model.parts().items():
    _, shapes = networks.abstract(kind, config)
    found = [
      model_folders.load(folder, name, shapes, config, "float32")
      for folder in _FOLDERS.value
    ]
    details = dict(found[0][1])
    trees = [params for params, _ in found]
    if name == "vae":
      mean = trees[0]
      leaves = [jax.tree.leaves(tree) for tree in trees]
      if not all(
        np.array_equal(first, other)
        for first, *others in zip(*leaves)
        for other in others
      ):
        raise UserError(
          "The autoencoders differ, so latents of one are none of the other."
        )
    else:
      mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *trees)
      # Metrics of one of the folders are not those of the mean.
      details = {"mean_of": len(trees)}
    model_files.save(output / f"{name}.safetensors", mean, config, details)
    print(f"Wrote {output / name}.safetensors.")


if __name__ == "__main__":
  program.run(main)
