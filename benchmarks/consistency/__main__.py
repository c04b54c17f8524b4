r"""Measures the effect of consistent sampling and shared noise on latents.

  python -m benchmarks.consistency --data=data/mine --config=configs/tiny.py

The paper's two ablations: an autoencoder with fixed weights encodes every frame
of prepared clips. It prints the mean change of a latent between consecutive
frames for each variant, and differences between variants for the same clips and
draws of points and noise. A difference is a mean over clips, with its standard
error and the number of clips with a negative difference. See
`benchmarks/consistency/latent_changes.py`.
"""

from collections.abc import Iterator

from absl import flags
from flax import nnx
import jax
from ml_collections import config_flags
import numpy as np
import tqdm

from benchmarks.consistency import latent_changes
from launch import program
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset of the autoencoder."
)
_DATA = flags.DEFINE_string(
  "data", None, "Folder of the data set.", required=True
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Folder of weights; the preset's by default."
)
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 20, "Clips.", lower_bound=2)
_NUM_DRAWS = flags.DEFINE_integer(
  "num_draws", 4, "Draws of points and noise a clip.", lower_bound=1
)

# First and second variant: sampling and noise of each.
_COMPARED = (
  (("consistent", "mean"), ("independent", "mean")),
  (("consistent", "shared"), ("independent", "shared")),
  (("consistent", "shared"), ("consistent", "independent")),
  (("independent", "shared"), ("independent", "independent")),
)


def _load_vae(preset: preset_lib.Preset) -> shape_vae.ShapeVAE:
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  vae_config = preset.model.vae
  graph, params = networks.abstract(shape_vae.ShapeVAE, vae_config)
  params, _ = model_files.load(folder / "vae.safetensors", params, vae_config)
  return nnx.merge(graph, params)


def _read_surfaces(index: dataset_index.DatasetIndex) -> Iterator[np.ndarray]:
  """Complete surfaces [F, P, 7] of clips evenly spaced over the data."""
  clips = sum(index.splits.values(), [])
  chosen = np.linspace(0, len(clips) - 1, min(len(clips), _NUM_CLIPS.value))
  clips = [clips[int(row)] for row in chosen]
  whole = dataset_index.DatasetIndex(
    index.folder, index.settings, {"all": clips}
  )
  reader = record_examples.ExampleReader(
    whole,
    "all",
    record_examples.ExampleConfig(
      contents=("geometry",),
      num_frames=index.settings["num_frames"],
      num_parts=0,
      mirror=False,
      reverse_time=False,
    ),
  )
  for row in tqdm.tqdm(range(len(clips)), desc="encode"):
    yield reader.read(row, np.random.default_rng(row))["surface"]


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  vae = _load_vae(preset_lib.from_config(_CONFIG.value))
  index = dataset_index.read_index(_DATA.value)
  results = {}
  for number, surface in enumerate(_read_surfaces(index)):
    changes = latent_changes.latent_changes(
      vae,
      surface,
      jax.random.key(number),
      num_uniform=index.settings["num_uniform"],
      num_draws=_NUM_DRAWS.value,
    )
    for variant, values in changes.items():
      results.setdefault(variant, []).append(values)
  if not results:
    raise UserError(f"{_DATA.value} has no clips.")
  count = len(next(iter(results.values())))
  print(
    f"Change of a latent from frame to frame, {count} clips of"
    f" {_NUM_DRAWS.value} draws:"
  )
  for (sampling, noise), values in results.items():
    print(f"  {sampling:12} sampling, noise {noise:12} {np.mean(values):.4f}")
  print("Differences, clip by clip:")
  for first, second in _COMPARED:
    found = latent_changes.paired_difference(results[first], results[second])
    print(
      f"  {_name(first):26} - {_name(second):26} {found.mean:+.4f} +-"
      f" {found.standard_error:.4f}, below 0 in {found.num_smaller} of"
      f" {found.num_clips} clips"
    )


def _name(variant: tuple[str, str]) -> str:
  sampling, noise = variant
  return f"{sampling}, noise {noise}"


if __name__ == "__main__":
  program.run(main)
