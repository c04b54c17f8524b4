r"""Converts released checkpoints into weights for the programs here, and back.

Hunyuan3D 2.1, whose file holds the DiT, the autoencoder and the image encoder:

  python -m launch.convert_weights --source=tencent/Hunyuan3D-2.1 \
      --output=weights/hunyuan3d

--source is a file (.safetensors, .ckpt, .pt, .pth, .bin, or the .index.json of
shards), a folder of such files, or a repository of Hugging Face, OWNER/NAME
(pip install huggingface_hub). Several are separated by commas: each network is
taken from the first that contains it. OUTPUT holds an Orbax checkpoint for each
network; use it as --checkpoint of launch.sample and launch.evaluate, and as
--config.dit_training.init_from of launch.train.

Check first:      --dry_run prints every name, its destination and its transform
Some networks:    --parts=dit,vae
Sculpt4D:         --source=TencentARC/Sculpt4D,tencent/Hunyuan3D-2.1; the names
                  of its temporal attention are matched with known ones; what
                  shapes do not tell is asked for (--temporal_heads), and
                  --rules explains names that are not known
Adapters:         --source=weights.safetensors,adapter_model.safetensors folds
                  LoRA adapters (PEFT, diffusers) into the weights
Other sizes:      --config.model.dit.depth=11
Back:             --export --source=weights/hunyuan3d --output=dit.safetensors

Pickles are read as lists of tensors; one with anything else is refused, and
nothing in it is run. Released weights have their owners' licences; those of
Hunyuan3D 2.1 and Sculpt4D are not valid in the European Union, the United
Kingdom and South Korea.
"""

from collections.abc import Sequence
import time

from absl import flags
from absl import logging
from ml_collections import config_flags
import tqdm

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import conversion as conversion_lib
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights import temporal as temporal_weights
from sculpt4d_jax.weights.tensor_files import open_file

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  "configs/sculpt4d.py",
  "Preset with the networks' sizes.",
)
_SOURCE = flags.DEFINE_list(
  "source",
  None,
  "Files, folders or repositories; with --export, a folder of weights.",
  required=True,
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "New folder; with --export, a .safetensors file."
)
_PARTS = flags.DEFINE_list(
  "parts", list(checkpoint_parts.PARTS), "Networks to convert."
)
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["bfloat16", "float16", "float32"],
  "Dtype of the result: bfloat16 (the default) or float32; with --export also"
  " float16, and by default the folder's own.",
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the plan and write nothing."
)
_RULES = flags.DEFINE_string(
  "rules", None, "JSON or TOML file with your own rules for names."
)
_HEADS = flags.DEFINE_enum(
  "temporal_heads",
  None,
  list(temporal_weights.HEADS),
  "Layout of the heads in the checkpoint's temporal attention.",
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of temporal layers that the checkpoint lacks.", lower_bound=0
)
_ADAPTER_ALPHA = flags.DEFINE_float(
  "adapter_alpha",
  None,
  "Alpha of LoRA adapters (their scale times their rank), where neither their"
  " file nor an adapter_config.json next to it says it.",
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Replace an earlier conversion in OUTPUT."
)
_REVISION = flags.DEFINE_string(
  "revision", None, "Branch, tag or commit of a repository."
)
_CACHE = flags.DEFINE_string(
  "cache", None, "Folder of downloads; by default huggingface_hub's own."
)
_OFFLINE = flags.DEFINE_bool(
  "offline", False, "Use only earlier downloads, without a connection."
)
_EXPORT = flags.DEFINE_bool(
  "export", False, "Write our weights under the published names."
)
_TEMPORAL = flags.DEFINE_bool(
  "temporal", True, "Whether temporal attention is exported."
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  if not _OUTPUT.value and (_EXPORT.value or not _DRY_RUN.value):
    raise UserError("--output is missing: where should the result go?")
  if _EXPORT.value:
    export()
  else:
    convert()


def convert() -> None:
  """Converts --source into a folder of weights."""
  dtype = _DTYPE.value or pretrained.DTYPES[0]
  if dtype not in pretrained.DTYPES:
    raise UserError(
      f"--dtype={dtype}: a conversion writes one of {pretrained.DTYPES}."
    )
  conversion = plan()
  if _DRY_RUN.value:
    print("\n".join(conversion.describe()))
    return
  output = paths.of(_OUTPUT.value)
  for line in conversion.summary():
    logging.info("%s", line)
  log, start = run_log.RunLog(), time.monotonic()
  with log.stage("convert", conversion.num_steps) as bar:
    conversion_lib.write(
      conversion,
      output,
      sources=_SOURCE.value,
      dtype=dtype,
      overwrite=_OVERWRITE.value,
      on_step=bar.update,
    )
  print(
    f"Wrote {output} in {time.monotonic() - start:.0f} s, with at most"
    f" {log.stages[-1].peak_memory_mb:.0f} MB of memory. Use it with"
    f" --checkpoint={output}."
  )


def plan() -> pretrained.Conversion:
  """Finds the checkpoints and compares them with the preset."""
  parts = preset_lib.from_config(_CONFIG.value).model.parts()
  return conversion_lib.plan(
    _SOURCE.value,
    {name: config for name, (_, config) in parts.items()},
    parts=_PARTS.value,
    rules=_RULES.value,
    temporal_heads=_HEADS.value,
    seed=_SEED.value,
    adapter_alpha=_ADAPTER_ALPHA.value,
    revision=_REVISION.value,
    cache=_CACHE.value,
    offline=_OFFLINE.value,
  )


def export() -> None:
  """Exports a folder of weights to one safetensors file."""
  if len(_SOURCE.value) != 1:
    raise UserError("--export takes one --source, a folder of weights.")
  output = paths.of(_OUTPUT.value)
  if output.suffix != open_file.SAFETENSORS:
    raise UserError(
      f"--output={output}: an export is a {open_file.SAFETENSORS} file."
    )
  with tqdm.tqdm(desc="export", unit=" tensors") as bar:
    names = weight_export.export(
      _SOURCE.value[0],
      output,
      dtype=_DTYPE.value,
      with_temporal=_TEMPORAL.value,
      on_tensor=bar.update,
    )
  print(f"Wrote {len(names)} tensors to {output}.")


if __name__ == "__main__":
  program.run(main)
