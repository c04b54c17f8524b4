"""What a compiled program tells: memory, work, collectives, bounds of its time.

Memory is the compiler's own figure for one chip. FLOPs are counted here from the
model's shapes, as the compiler's count leaves out loops and kernels: model FLOPs
are those the result needs, hardware FLOPs add what is computed again in the
backward pass. Collectives are counted in the program's text, where the compiler
prints it, a loop's times its trips where it says how many.

The time of a step is bounded from below by each of its parts alone: hardware
FLOPs at the chip's peak, and collectives at the bandwidth of its links. The
bound on the model FLOPs utilisation (MFU) is model FLOPs over the peak in the
larger of these; a real step is slower.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax
import ml_collections
import numpy as np

from sculpt4d_jax import partitioning
from sculpt4d_jax.models import attention


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU, by its data sheet.

  Attributes:
    memory_bytes: HBM.
    flops: Peak in bfloat16, a second.
    link_bytes: Between chips, all links of one chip together, a second.
  """

  memory_bytes: float
  flops: float
  link_bytes: float


# Google Cloud's pages of each TPU; links in one direction.
_CHIPS = {
    "v5e": Chip(16e9, 197e12, 200e9),
    "v5p": Chip(95e9, 459e12, 600e9),
    "v6e": Chip(32e9, 918e12, 448e9),
}
_DTYPE_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}
_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
    "collective-permute",
)
# Times the forward pass: backward takes twice its work, remat repeats it.
_BACKWARD, _REMAT = 2, 1


def chip(topology: str) -> Chip:
  """The chip of a topology such as "v5p:4x4x4"."""
  kind = topology.split(":")[0]
  if kind not in _CHIPS or ":" not in topology:
    raise ValueError(
        f"--topology={topology}: expected one of {sorted(_CHIPS)} and a shape,"
        " as v5p:4x4x4."
    )
  return _CHIPS[kind]


def topology_devices(topology: str) -> Sequence[jax.Device]:
  """Devices to compile for.

  Raises:
    ValueError: The compiler for TPUs is missing, or knows no such topology.
  """
  from jax.experimental import topologies  # pylint: disable=g-import-not-at-top

  try:
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology
    ).devices
  except Exception as error:  # jax raises kinds of its own.
    raise ValueError(
        f"Cannot compile for {topology}: {str(error).splitlines()[0]}. It needs"
        ' the TPU compiler, pip install "jax[tpu]", and a shape that exists.'
    ) from error


def forward_flops(config: ml_collections.ConfigDict, num_frames: int) -> float:
  """Of one clip through the DiT once; products only."""
  c = config.model.dit
  tokens = num_frames * (config.model.vae.num_latents + 1)
  latents = num_frames * config.model.vae.num_latents
  context = (config.model.image_encoder.image_size
             // config.model.image_encoder.patch_size) ** 2 + 1
  d, hidden = c.width, c.mlp_ratio * c.width
  mlp = 4 * d * hidden  # FLOPs a token of one expert or MLP.
  blocks = c.depth
  projections = tokens * 2 * d * d * (4 + 2)  # Spatial; query, out of cross.
  projections += num_frames * context * 2 * c.context_width * d * 2
  spatial = 4 * d * num_frames * (config.model.vae.num_latents + 1) ** 2
  cross = 4 * d * tokens * context
  temporal = 0.0
  if c.temporal_mode in ("sparse", "full"):
    mask = attention.temporal_mask(
        num_frames,
        config.model.vae.num_latents,
        c.temporal_block_size,
        c.temporal_schedule if c.temporal_mode == "sparse" else (1,),
        c.temporal_anchor_frames if c.temporal_mode == "sparse" else (),
    )
    temporal = 4 * d * latents**2 * mask.density()
  if c.temporal_mode != "none":
    projections += latents * 2 * d * d * 4
  moe = c.num_moe_blocks * tokens * (
      mlp * (c.num_experts_per_token + 1) + 2 * d * c.num_experts
  )
  dense = (blocks - c.num_moe_blocks) * tokens * mlp
  skips = ((blocks - 1) // 2) * tokens * 2 * 2 * d * d
  return blocks * (projections + spatial + cross + temporal) + moe + dense + skips


def encoder_flops(config: ml_collections.ConfigDict, num_frames: int) -> float:
  """Of one clip's pictures through the image encoder."""
  c = config.model.image_encoder
  tokens = (c.image_size // c.patch_size) ** 2 + 1
  layer = tokens * c.width**2 * (8 + 4 * c.mlp_ratio) + 4 * tokens**2 * c.width
  patches = 2 * tokens * 3 * c.patch_size**2 * c.width
  return num_frames * (c.num_layers * layer + patches)


def model_flops(
    config: ml_collections.ConfigDict, what: str, mesh: partitioning.Mesh
) -> dict[str, float]:
  """Model and hardware FLOPs of a training step or of sampling, all chips."""
  if what == "train":
    clips = config.dit_training.batch_size
    once = clips * forward_flops(config, config.data.num_frames)
    encoder = clips * encoder_flops(config, config.data.num_frames)
    learns = config.dit_training.train_image_encoder
    encoder *= 1 + _BACKWARD * learns
    again = _REMAT if config.model.dit.remat_policy == "full" else 0
    model = (1 + _BACKWARD) * once + encoder
    return {"model": model, "hardware": model + again * once}
  sampling = config.sampling
  rows = int(np.prod([mesh.shape[n] for n in partitioning.BATCH_AXES]))
  guided = 2 if sampling.guidance_scale != 1.0 else 1
  clips = max(rows // guided, 1)
  # The context's keys and values are computed once, not each step.
  total = clips * (
      guided * (sampling.num_steps - 1)
      * forward_flops(config, sampling.num_frames)
      + encoder_flops(config, sampling.num_frames)
  )
  return {"model": total, "hardware": total}


def examine(
    executable: Any, kind: Chip, flops: dict[str, float], num_chips: int
) -> dict[str, Any]:
  """Figures of a compiled program, for one chip."""
  memory = executable.memory_analysis()
  peak = getattr(memory, "peak_memory_in_bytes", 0) or (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
  )
  sizes = {
      "arguments": memory.argument_size_in_bytes,
      "outputs": memory.output_size_in_bytes,
      "shared by both": memory.alias_size_in_bytes,
      "temporary": memory.temp_size_in_bytes,
      "code": memory.generated_code_size_in_bytes,
      "peak": peak,
  }
  moved = collectives(executable)
  seconds = {"products": flops["hardware"] / num_chips / kind.flops}
  if moved is not None:
    total = sum(entry["bytes"] for entry in moved.values())
    seconds["collectives"] = total / kind.link_bytes
  bound = max(seconds.values())
  return {
      "memory_gb": {k: round(v / 1e9, 3) for k, v in sizes.items()},
      "tera_flops": {k: round(v / num_chips / 1e12, 2) for k, v in flops.items()},
      "collectives": moved,
      "seconds": {k: round(v, 4) for k, v in seconds.items()},
      "mfu_bound": round(flops["model"] / num_chips / kind.flops / bound, 3),
  }


def collectives(executable: Any) -> dict[str, dict[str, float]] | None:
  """Number and bytes of every kind, or None where no text is printed."""
  try:
    text = executable.as_text()
  except Exception:  # The compiler refuses to print some programs.
    return None
  if not text:
    return None
  return count_collectives(text)


def count_collectives(text: str) -> dict[str, dict[str, float]]:
  """Counts the collectives in a program's text.

  Bytes are those of the results, which a chip receives. Collectives in the body
  of a loop count as often as the loop turns, where its trips are known.
  """
  trips = _trips(text)
  found = {}
  computation = ""
  pattern = re.compile(
      r"= (\(.*?\)|\S+) (" + "|".join(_COLLECTIVES) + r")(-start)?\("
  )
  for line in text.splitlines():
    header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if header:
      computation = header.group(1)
    match = pattern.search(line)
    if match:
      times = trips.get(computation, 1)
      sizes = _sizes(match.group(1))
      # An asynchronous one names its operand beside its result.
      size = max(sizes) if match.group(3) and sizes else sum(sizes)
      entry = found.setdefault(match.group(2), {"number": 0, "bytes": 0})
      entry["number"] += times
      entry["bytes"] += times * size
  return found


def _sizes(types: str) -> list[int]:
  sizes = []
  for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
    if dtype in _DTYPE_BYTES:
      numbers = [int(n) for n in shape.split(",") if n]
      sizes.append(_DTYPE_BYTES[dtype] * int(np.prod(numbers, dtype=np.int64)))
  return sizes


def _trips(text: str) -> dict[str, int]:
  """How often each computation runs, loops within loops multiplied."""
  inside, trips, computation = {}, {}, ""
  for line in text.splitlines():
    header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
    if header:
      computation = header.group(1)
    loop = re.search(r"body=%?([\w.\-]+)", line)
    if loop:
      count = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', line)
      inside[loop.group(1)] = (computation, int(count.group(1)) if count else 1)
    for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line):
      inside.setdefault(called, (computation, 1))

  def times(name, depth=0):
    if name not in inside or depth > 20:
      return 1
    outer, count = inside[name]
    return count * times(outer, depth + 1)

  for name in inside:
    trips[name] = times(name)
  return trips


def describe(what: str, report: dict[str, Any], limit: float) -> str:
  """The figures as lines to read."""
  lines = [f"{what}: compiled in {report['compile_seconds']} s"]
  memory = ", ".join(f"{k} {v:.2f}" for k, v in report["memory_gb"].items())
  lines.append(f"  memory a chip, GB: {memory}; limit {limit / 1e9:.1f}")
  work = report["tera_flops"]
  lines.append(
      f"  TFLOPs a chip: model {work['model']}, hardware {work['hardware']}"
  )
  if report["collectives"] is None:
    lines.append("  collectives: the compiler does not print this program")
  else:
    for name, entry in sorted(report["collectives"].items()):
      lines.append(
          f"  {name}: {entry['number']:.0f}, {entry['bytes'] / 1e9:.2f} GB"
      )
  times = ", ".join(f"{k} {v:.3f}" for k, v in report["seconds"].items())
  lines.append(
      f"  at least {max(report['seconds'].values()):.3f} s ({times}); MFU at"
      f" most {report['mfu_bound']:.0%}"
  )
  lines.append("  fits" if report["fits"] else "  DOES NOT FIT")
  return "\n".join(lines)
