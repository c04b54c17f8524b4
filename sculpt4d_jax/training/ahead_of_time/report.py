"""Reports a compiled program: memory, FLOPs, collectives, bounds of its time.

Memory is the compiler's figure for one chip. FLOPs are counted from the model's
shapes, because the compiler's count omits loops and kernels: model FLOPs are
those needed for the result, hardware FLOPs also include recomputation in the
backward pass. Collectives are counted in the program's text, if the compiler
prints it; see `collectives`.

Each part gives a lower bound on the time of a step: hardware FLOPs at the
chip's peak, and collectives at the bandwidth of its links. The account of the
compiler's estimates is a tighter bound; see `account`. The largest of these
gives an upper bound on the model FLOPs utilisation (MFU); a real step is
slower.
"""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import remat
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.ahead_of_time import account
from sculpt4d_jax.training.ahead_of_time import collectives
from sculpt4d_jax.training.ahead_of_time import step_flops


@dataclasses.dataclass(frozen=True)
class Chip:
  """Data sheet values of a TPU.

  Attributes:
    memory_bytes: HBM.
    flops: Peak in bfloat16, per second.
    link_bytes: Bytes per second between chips, over all links of one chip.
    dcn_bytes: Bytes per second between slices, one chip's share.
    memory_rate: Bytes per second from and to HBM.
    clock: Cycles per second of a core, derived from its peak and matrix units.
  """

  memory_bytes: float
  flops: float
  link_bytes: float
  dcn_bytes: float
  memory_rate: float
  clock: float

  @property
  def rates(self) -> account.Rates:
    """The chip's speeds, to account for the time of a program."""
    networks = {"ICI": self.link_bytes, "DCN": self.dcn_bytes}
    return account.Rates(self.clock, self.flops, self.memory_rate, networks)


# From Google Cloud's pages of each TPU; links in one direction. The share of
# the data centre's network is the page's figure per chip, or that of a pod
# divided by its chips.
_CHIPS = {
  "v5e": Chip(16e9, 197e12, 200e9, 3.1e9, 819e9, 1.503e9),
  "v5p": Chip(95e9, 459e12, 600e9, 6.2e9, 2765e9, 1.751e9),
  "v6e": Chip(32e9, 918e12, 448e9, 12.5e9, 1640e9, 1.751e9),
}
# Multiples of the forward pass: backward is twice the work, remat repeats it.
_BACKWARD, _REMAT = 2, 1


def chip(topology: str) -> Chip:
  """The chip of a topology such as "v5p:4x4x4"."""
  kind = topology.split(":")[0]
  if kind not in _CHIPS or ":" not in topology:
    raise UserError(
      f"--topology={topology}: expected one of {sorted(_CHIPS)} and a shape,"
      " as v5p:4x4x4."
    )
  return _CHIPS[kind]


def topology_devices(
  topology: str, num_slices: int = 1
) -> Sequence[jax.Device]:
  """Devices to compile for; "v6e:1x1" is a single chip.

  Args:
    topology: Kind and shape of a slice.
    num_slices: Number of slices, joined by the data centre's network.

  Raises:
    ValueError: The TPU compiler is missing, or does not know the topology.
  """
  from jax.experimental import topologies

  options = {}
  if topology.split(":")[-1].strip("1x") == "":
    # One chip of a host, which has several.
    options["chips_per_host_bounds"] = (1, 1, 1)
  if num_slices > 1:
    options["num_slices"] = num_slices
  try:
    return topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **options
    ).devices
  except Exception as error:  # JAX raises many types.
    raise UserError(
      f"Cannot compile for {topology}: {str(error).splitlines()[0]}. It needs"
      ' the TPU compiler, pip install "jax[tpu]", and a shape that exists.'
    ) from error


def _dit_flops(
  preset: preset_lib.Preset, num_frames: int, mode: str | None = None
) -> float:
  """FLOPs of one pass of a clip through the DiT; matrix products only."""
  encoder = preset.model.image_encoder
  return sum(
    flops.dit_call(
      preset.model.dit,
      num_frames,
      preset.model.vae.num_latents,
      encoder.num_tokens,
      mode,
    ).values()
  )


def _context_flops(
  preset: preset_lib.Preset, num_frames: int
) -> tuple[float, float]:
  """FLOPs of a clip's pictures: the encoder, and the keys and values."""
  encoder = preset.model.image_encoder
  pictures = flops.image_encoder(encoder, num_frames)
  keys = flops.dit_context(preset.model.dit, num_frames, encoder.num_tokens)
  return sum(pictures.values()), sum(keys.values())


def model_flops(
  preset: preset_lib.Preset, what: str, num_clips: int
) -> dict[str, float]:
  """Model and hardware FLOPs of a training step or of sampling, all chips.

  Args:
    preset: The preset.
    what: "train" (the DiT), "distill" (a few-step student), "train_vae" (the
      autoencoder) or "sample".
    num_clips: Number of clips that are sampled; a training step uses the
      preset's.
  """
  if what == "train":
    task = preset.dit_training.task
    num_clips = task.batch_size
    num_frames = task.frames_of(preset.data.num_frames)
    encoder, keys = _context_flops(preset, num_frames)
    once = _dit_flops(preset, num_frames) + keys
    learns = task.train_image_encoder
    model = (1 + _BACKWARD) * once + encoder * (1 + _BACKWARD * learns)
    again = once * _again(preset.model.dit)
    return {"model": num_clips * model, "hardware": num_clips * (model + again)}
  if what == "distill":
    num_clips = preset.distillation.task.batch_size
    encoder, keys = _context_flops(preset, preset.data.num_frames)
    once = _dit_flops(preset, preset.data.num_frames) + keys
    # Two forward passes compute the targets.
    model = (1 + _BACKWARD + 2) * once + encoder
    again = once * _again(preset.model.dit)
    return {"model": num_clips * model, "hardware": num_clips * (model + again)}
  if what == "train_vae":
    options = preset.vae_training.task
    model = step_flops.vae_step(
      preset.model.vae,
      batch_size=options.batch_size,
      num_frames=options.num_frames,
      num_queries=options.num_queries,
    )
    again = _again(preset.model.vae)
    return {"model": model, "hardware": model * (1 + again / (1 + _BACKWARD))}
  sampling = preset.sampling
  encoder, keys = _context_flops(preset, sampling.num_frames)
  calls = 2 if sampling.guidance_scale != 1.0 else 1
  num_steps = sampling.num_steps - 1  # Intervals between the times.
  once = _dit_flops(preset, sampling.num_frames, sampling.temporal_mode)
  # Keys and values of the context are computed once if they are cached.
  keys *= 1 if sampling.cache_context else num_steps
  total = num_clips * (encoder + calls * (num_steps * once + keys))
  return {"model": total, "hardware": total}


def kernels(lowered: Any) -> list[str]:
  """Names of the Pallas kernels in a lowered program."""
  return sorted(set(re.findall(r'kernel_name = "([^"]+)"', lowered.as_text())))


def _again(
  config: dit_config.DiTConfig | shape_vae.ShapeVAEConfig,
) -> int:
  """Forward passes that the backward pass repeats whole."""
  return _REMAT * remat.computes_blocks_again(config.remat_policy)


def examine(
  executable: Any,
  kind: Chip,
  work: dict[str, float],
  num_chips: int,
  slices: Sequence[int] | None = None,
) -> dict[str, Any]:
  """Figures of a compiled program, for one chip.

  Args:
    executable: The program.
    kind: The chip.
    work: FLOPs on all chips, by kind.
    num_chips: Chips.
    slices: The slice of every chip, in the order of the mesh; None for one.
  """
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
  on_host = sum(
    getattr(memory, f"host_{part}_size_in_bytes", 0)
    for part in ("argument", "temp")
  )
  if on_host:
    sizes["on the host"] = on_host
  text = _text(executable)
  moved = None if text is None else _collectives(text, slices)
  seconds = {"products": work["hardware"] / num_chips / kind.flops}
  if moved is not None:
    for network, rate in kind.rates.networks.items():
      total = sum(e["bytes"] for e in moved if e["network"] == network)
      if total or network == "ICI":
        seconds[f"collectives, {network}"] = total / rate
  parts = None
  if text is not None:
    parts = account.account(text, kind.rates, slices)
    seconds["account"] = parts.total
  bound = max(seconds.values())
  return {
    "memory_gb": {k: round(v / 1e9, 3) for k, v in sizes.items()},
    "tera_flops": {k: round(v / num_chips / 1e12, 2) for k, v in work.items()},
    "collectives": moved,
    "account": None if parts is None else _rounded(parts),
    "seconds": {k: round(v, 4) for k, v in seconds.items()},
    "mfu_bound": round(work["model"] / num_chips / kind.flops / bound, 3),
  }


def _text(executable: Any) -> str | None:
  """The optimised program, or None if the compiler does not print it."""
  try:
    return executable.as_text() or None
  except jax.errors.JaxRuntimeError:  # Some programs cannot be printed.
    return None


def _collectives(text: str, slices: Any) -> list[dict[str, Any]]:
  return [dataclasses.asdict(c) for c in collectives.count(text, slices)]


def _rounded(parts: account.Account) -> dict[str, float]:
  """Rounded seconds by class, of recomputation and of hidden transfers."""
  named = dict(parts.seconds, recomputed=parts.recomputed, hidden=parts.hidden)
  return {name: round(value, 5) for name, value in named.items()}


def describe(what: str, report: dict[str, Any], limit: float) -> str:
  """The figures as lines of text."""
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
    for entry in report["collectives"]:
      unsure = ", some in loops of unknown turns" * bool(entry["unknown_loops"])
      lines.append(
        f"  {entry['kind']} among {entry['group_size']} chips over"
        f" {entry['network']}:"
        f" {entry['number']}, {entry['bytes'] / 1e9:.3f} GB received{unsure}"
      )
  if report.get("kernels"):
    lines.append(f"  Pallas kernels: {', '.join(report['kernels'])}")
  if report["account"] is not None:
    lines += _describe_account(report["account"])
  times = ", ".join(f"{k} {v:.3f}" for k, v in report["seconds"].items())
  lines.append(
    f"  at least {max(report['seconds'].values()):.3f} s ({times}); MFU at"
    f" most {report['mfu_bound']:.0%}"
  )
  lines.append("  fits" if report["fits"] else "  DOES NOT FIT")
  return "\n".join(lines)


def _describe_account(parts: dict[str, float]) -> list[str]:
  total = sum(parts[name] for name in account.CLASSES)
  named = ", ".join(
    f"{name} {parts[name]:.4f} ({parts[name] / max(total, 1e-12):.0%})"
    for name in account.CLASSES
  )
  return [
    f"  account of {total:.4f} s by the compiler's estimates: {named}",
    f"    of it computed again {parts['recomputed']:.4f}; collectives hidden"
    f" behind it {parts['hidden']:.4f}",
  ]
