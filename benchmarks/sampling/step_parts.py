"""Time of one call of the transformer, by part, next to its operations.

Every part is compiled and timed separately, for one clip of one preset; a part
of several blocks is timed in one of them and multiplied. The difference to the
complete call is the gain or loss of XLA compiling the parts together.
"""

from collections.abc import Callable
import statistics
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.models import dit as dit_lib

MODES = ("sparse", "full")


class Part(NamedTuple):
  """CPU seconds and operations of a part, all blocks together."""

  name: str
  seconds: float
  operations: int

  @property
  def rate(self) -> float:
    """Operations a CPU second."""
    return self.operations / self.seconds


class _Timed(NamedTuple):
  run: Callable[[], Any]
  count: int  # Blocks with this part.
  operations: int  # In all blocks.


def measure(
  dit: dit_lib.DiT, sizes: cost.Sizes, num_frames: int, rounds: int
) -> list[Part]:
  """Times the parts in turn; the medians count.

  Args:
    dit: The transformer, with weights that are not zero.
    sizes: Sizes of its preset.
    num_frames: F.
    rounds: Timed runs of each part, after an untimed one.

  Returns:
    The parts; then "whole call, sparse" and "whole call, full".
  """
  timed = _parts(dit, sizes, num_frames)
  seconds = {name: [] for name in timed}
  for part in timed.values():
    jax.block_until_ready(part.run())  # Compiles.
  for _ in range(rounds):
    for name, part in timed.items():
      start = time.process_time()
      jax.block_until_ready(part.run())
      seconds[name].append(time.process_time() - start)
  return [
    Part(name, part.count * statistics.median(seconds[name]), part.operations)
    for name, part in timed.items()
  ]


def table(parts: list[Part]) -> str:
  """One line per part: milliseconds, operations, and operations per second."""
  lines = [f"{'part':<36}{'CPU ms':>10}{'GFLOP':>10}{'GFLOP/s':>10}"]
  for part in parts:
    lines.append(
      f"{part.name:<36}{1e3 * part.seconds:>10.1f}"
      f"{part.operations / 1e9:>10.2f}{part.rate / 1e9:>10.1f}"
    )
  lines += [_rest(parts, mode) for mode in MODES]
  return "\n".join(lines)


def _rest(parts: list[Part], mode: str) -> str:
  """The complete call minus its parts."""
  other = MODES[1 - MODES.index(mode)]
  own = [p for p in parts if not p.name.endswith(f", {other}")]
  rest = own[-1].seconds - sum(part.seconds for part in own[:-1])
  return f"{f'rest of the whole call, {mode}':<36}{1e3 * rest:>10.1f}"


def _parts(
  dit: dit_lib.DiT, sizes: cost.Sizes, num_frames: int
) -> dict[str, _Timed]:
  config = dit.config
  inputs = _Inputs(dit, sizes, num_frames)
  counts = {mode: sizes.call(num_frames, mode) for mode in MODES}
  count = lambda *starts: sum(
    n for name, n in counts["full"].items() if name.startswith(starts)
  )
  kinds = config.block_kinds
  timed = {}

  def add(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    layers: int,
    operations: int,
  ) -> None:
    timed[name] = _Timed(_compiled(function, *args), layers, operations)

  of = lambda kind: dit.block([bool(kind(k)) for k in kinds].index(True))
  block = dit.block(0)
  add(
    "spatial attention",
    lambda block, x: x + block.spatial_attention(block.norm_spatial(x)),
    (block, inputs.x),
    len(kinds),
    count("spatial attention"),
  )
  add(
    "cross-attention",
    lambda block, x, context: (
      x + block.cross_attention(block.norm_cross(x), context)
    ),
    (block, inputs.x, block.cross_attention.encode_context(inputs.context)),
    len(kinds),
    count("cross-attention"),
  )
  for mode in MODES:
    add(
      f"temporal attention, {mode}",
      lambda block, x, mode=mode: (
        x
        + jnp.pad(
          block.temporal_attention(
            block.norm_temporal(x[:, :, 1:]),
            mode=mode,
            token_order="bit_reversed",
          ),
          ((0, 0), (0, 0), (1, 0), (0, 0)),
        )
      ),
      (block, inputs.x),
      len(kinds),
      sum(n for k, n in counts[mode].items() if k.startswith("temporal")),
    )
  if any(not kind.is_moe for kind in kinds):
    add(
      "MLP",
      lambda block, x: x + block.mlp(block.norm_mlp(x)),
      (of(lambda k: not k.is_moe), inputs.x),
      sum(not kind.is_moe for kind in kinds),
      count("MLP"),
    )
  if any(kind.is_moe for kind in kinds):
    add(
      "MoE",
      lambda block, x: x + block.moe(block.norm_mlp(x))[0],
      (of(lambda k: k.is_moe), inputs.x),
      sum(kind.is_moe for kind in kinds),
      count("MoE"),
    )
  if any(kind.has_skip for kind in kinds):
    add(
      "skips",
      lambda block, x: block.fuse_skip(x, x),
      (of(lambda k: k.has_skip), inputs.x),
      sum(kind.has_skip for kind in kinds),
      count("skips"),
    )
  add(
    "embedding and final layer",
    lambda dit, latents, time, x: (
      dit.embed(latents, time),
      dit.final_linear(dit.final_norm(x)[:, :, 1:]),
    ),
    (dit, inputs.latents, inputs.time, inputs.x),
    1,
    count("latent embedding", "time token", "final layer"),
  )
  for mode in MODES:
    add(
      f"whole call, {mode}",
      lambda dit, latents, time, context, mode=mode: (
        dit(latents, time, context, temporal_mode=mode).velocity
      ),
      (dit, inputs.latents, inputs.time, dit.encode_context(inputs.context)),
      1,
      sum(counts[mode].values()),
    )
  return timed


class _Inputs:
  """Random arrays of one clip."""

  def __init__(self, dit: dit_lib.DiT, sizes: cost.Sizes, num_frames: int):
    config = dit.config
    tokens = sizes.vae.num_latents
    keys = iter(jax.random.split(jax.random.key(1), 3))
    random = lambda *shape: jax.random.normal(next(keys), shape).astype(
      config.dtype
    )
    self.time = jnp.full((1,), 0.5)
    self.latents = random(1, num_frames, tokens, config.latent_channels)
    self.x = random(1, num_frames, tokens + 1, config.width)
    self.context = random(
      1, num_frames, sizes.image_encoder.num_tokens, config.context_width
    )


def _compiled(
  function: Callable[..., Any], module: nnx.Module, *args: Any
) -> Callable[[], Any]:
  graphdef, params = nnx.split(module)

  @jax.jit
  def call(params: nnx.State, *args: Any) -> Any:
    return function(nnx.merge(graphdef, params), *args)

  return lambda: call(params, *args)
