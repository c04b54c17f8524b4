"""Counts the operations of a sample by part, for the paper's tables and figure.

The paper's columns in PFLOPs fit

    fixed(F) + density(F) * 500 * 21 * 4 * (4096 F)^2 * 2048

to within 0.8 %: their attention corresponds to 500 calls of the transformer on
one clip, although 50 steps with guidance are 100 calls. The tables therefore
also print our counts for 500 calls. The paper does not break down its fixed
part.

Source: Sculpt4D, Tables A1 and A2, Figure A1.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae

PAPER_CALLS = 500
# Frames: PFLOPs sparse and full, network ratio in per cent.
PAPER_TABLE_A2 = {
  8: (84.5, 123.2, 68.6),
  16: (186.3, 425.7, 43.8),
  32: (425.0, 1584.9, 26.8),
}
# Variant: name in configs/ablations.py, schedule (None is full attention),
# anchor frames, PFLOPs.
PAPER_TABLE_A1 = {
  "A": ("no_anchor", (1, 1, 2, 4, 8, 16), (), 169.8),
  "B": ("fixed_stride", (4,), (0,), 167.1),
  "C": ("aggressive", (1, 2, 4, 8, 16, 32), (0,), 145.0),
  "D": ("conservative", (1, 1, 2, 2, 4, 4), (0,), 233.6),
  "E": ("full", None, (0,), 425.7),
  "F": ("ours", (1, 1, 2, 4, 8, 16), (0,), 186.3),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of a preset's networks that determine the operations."""

  dit: dit_config.DiTConfig
  image_encoder: image_encoder_lib.ImageEncoderConfig
  vae: shape_vae.ShapeVAEConfig

  def call(self, num_frames: int, mode: str | None = None) -> flops.Counts:
    """One call of the transformer on one clip."""
    return flops.dit_call(
      self.dit,
      num_frames,
      self.vae.num_latents,
      self.image_encoder.num_tokens,
      mode,
    )


def sample(
  sizes: Sizes, sampling: model_lib.SamplingConfig, num_points: int = 0
) -> flops.Counts:
  """All operations from pictures to latents and to `num_points` per frame.

  Args:
    sizes: Sizes of the networks.
    sampling: Frames, steps, guidance and mode of temporal attention.
    num_points: Points of each frame where the field is evaluated; 0 leaves out
      the autoencoder.
  """
  frames = sampling.num_frames
  branches = 1 if sampling.guidance_scale == 1.0 else 2
  context_tokens = sizes.image_encoder.num_tokens
  clips = sampling.num_clips
  parts = [
    flops.image_encoder(sizes.image_encoder, clips * frames),
    flops.times(
      clips * branches, flops.dit_context(sizes.dit, frames, context_tokens)
    ),
    flops.times(
      sampling.num_evaluations, sizes.call(frames, sampling.temporal_mode)
    ),
  ]
  if num_points:
    parts.append(flops.vae_decoder(sizes.vae, clips * frames))
    parts.append(flops.field_queries(sizes.vae, clips * frames * num_points))
  return flops.add(*parts)


def parts_table(columns: Mapping[str, Mapping[str, int]]) -> str:
  """Parts by column, in TFLOPs, with the share of each in its column."""
  names = list(dict.fromkeys(name for c in columns.values() for name in c))
  totals = {column: sum(counts.values()) for column, counts in columns.items()}
  lines = [f"{'TFLOPs':<36}" + "".join(f"{c:>22}" for c in columns)]
  for name in names:
    cells = ""
    for column, counts in columns.items():
      if name in counts:
        share = counts[name] / totals[column]
        cells += f"{counts[name] / 1e12:>14,.3f}{share:>8.1%}"
      else:
        cells += f"{'':>22}"
    lines.append(f"{name:<36}{cells}")
  cells = "".join(f"{total / 1e12:>14,.3f}{'':>8}" for total in totals.values())
  return "\n".join([*lines, f"{'all':<36}{cells}"])


def table_a2(sizes: Sizes, frames: Sequence[int] = (8, 16, 32, 64)) -> str:
  """Sparse against full attention by frames; our counts and the paper's."""
  lines = [
    f"Table A2: PFLOPs of {PAPER_CALLS} calls, ours | paper",
    f"{'frames':<8}{'sparse':>20}{'full':>22}{'network ratio':>20}"
    f"{'attention':>12}",
  ]
  for num_frames in frames:
    ours = [_peta(sizes.call(num_frames, mode)) for mode in ("sparse", "full")]
    scores = [
      sizes.call(num_frames, mode)[flops.TEMPORAL_SCORES]
      for mode in ("sparse", "full")
    ]
    paper = PAPER_TABLE_A2.get(num_frames)
    sparse, full, ratio = (
      (f"{paper[0]:.1f}", f"{paper[1]:.1f}", f"{paper[2]:.1f}%")
      if paper
      else "---"
    )
    lines.append(
      f"{num_frames:<8}{ours[0]:>11.1f} |{sparse:>7}{ours[1]:>13.1f} |"
      f"{full:>7}{ours[0] / ours[1]:>11.1%} |{ratio:>7}"
      f"{scores[0] / scores[1]:>12.2%}"
    )
  return "\n".join(lines)


def _variant(sizes: Sizes, letter: str) -> tuple[Sizes, str]:
  """Sizes with a schedule of Table A1, and the mode of temporal attention."""
  _, schedule, anchors, _ = PAPER_TABLE_A1[letter]
  if schedule is None:
    return sizes, "full"
  dit = dataclasses.replace(
    sizes.dit, temporal_schedule=schedule, temporal_anchor_frames=anchors
  )
  return dataclasses.replace(sizes, dit=dit), "sparse"


def table_a1(sizes: Sizes, num_frames: int = 16) -> str:
  """The ablation's variants; our counts and the paper's."""
  lines = [
    f"Table A1: {num_frames} frames, PFLOPs of {PAPER_CALLS} calls",
    f"{'variant':<18}{'density':>10}{'ours':>10}{'paper':>10}"
    f"{'difference':>13}",
  ]
  for letter, (name, *_, paper) in PAPER_TABLE_A1.items():
    variant, mode = _variant(sizes, letter)
    counts = variant.call(num_frames, mode)
    full = variant.call(num_frames, "full")[flops.TEMPORAL_SCORES]
    density = counts[flops.TEMPORAL_SCORES] / full
    ours = _peta(counts)
    lines.append(
      f"{letter}: {name:<15}{density:>10.2%}{ours:>10.1f}{paper:>10.1f}"
      f"{ours - paper:>13.1f}"
    )
  return "\n".join(lines)


def relative_rows(sizes: Sizes, table: str, num_frames: int) -> list[list[str]]:
  """Densities and ratios alone, for a size that is not the paper's.

  Args:
    sizes: Sizes of the networks.
    table: "A1" for its variants at `num_frames`, "A2" for numbers of frames.
    num_frames: Frames of a clip, for A1.

  Returns:
    Rows of cells, the first one the heads.
  """
  cases = [(str(frames), sizes, frames, "sparse") for frames in (8, 16, 32, 64)]
  if table == "A1":
    cases = []
    for letter, (name, *_) in PAPER_TABLE_A1.items():
      variant, mode = _variant(sizes, letter)
      cases.append((f"{letter}: {name}", variant, num_frames, mode))
  head = "variant" if table == "A1" else "frames"
  rows = [[head, "attention, % of full", "network, % of full", "GFLOP a call"]]
  for title, variant, frames, mode in cases:
    counts, full = (variant.call(frames, m) for m in (mode, "full"))
    scores = counts[flops.TEMPORAL_SCORES] / full[flops.TEMPORAL_SCORES]
    total = sum(counts.values())
    ratio = total / sum(full.values())
    rows.append([title, f"{scores:.2%}", f"{ratio:.2%}", f"{total / 1e9:.4g}"])
  return rows


def difference(sizes: Sizes, num_frames: int = 16) -> str:
  """Explains the difference between our network column and the paper's."""
  counts = sizes.call(num_frames, "full")
  attention = PAPER_CALLS * counts.pop(flops.TEMPORAL_SCORES) / 1e15
  fixed = PAPER_CALLS * sum(counts.values()) / 1e15
  paper_fixed = PAPER_TABLE_A2[num_frames][1] - attention
  dense = sum(
    counts[name]
    for name in (
      "spatial attention: projections",
      "temporal attention: projections",
      "cross-attention: projections",
      "MLP",
      "MoE: routed experts",
    )
  )
  dense = PAPER_CALLS * dense / 1e15
  return (
    f"At {num_frames} frames the scores of full temporal attention are"
    f" {attention:.1f} PFLOPs, ours and the paper's alike; what is left of"
    f" the paper's full column is {paper_fixed:.1f}, and ours is {fixed:.1f}."
    " The paper does not break its part down. It is less than the"
    " projections of all attentions, the MLPs and the routed experts alone"
    f" ({dense:.1f} at two operations a multiplication with its addition,"
    f" {dense / 2:.1f} at one), so that it cannot hold every product of the"
    " model it describes; ours does."
  )


def _peta(counts: Mapping[str, int]) -> float:
  return PAPER_CALLS * sum(counts.values()) / 1e15


def ratios(
  sizes: Sizes, frames: Sequence[int]
) -> tuple[list[float], list[float]]:
  """Operations of sparse over full attention by frames.

  Returns:
    Ratios of the whole network and of temporal attention alone.
  """
  network, attention = [], []
  for num_frames in frames:
    sparse, full = (sizes.call(num_frames, m) for m in ("sparse", "full"))
    network.append(sum(sparse.values()) / sum(full.values()))
    attention.append(
      sparse[flops.TEMPORAL_SCORES] / full[flops.TEMPORAL_SCORES]
    )
  return network, attention


def figure_a1(sizes: Sizes, max_frames: int = 64) -> str:
  """Figure A1 as SVG: cost of sparse over full attention by frames.

  Two curves, temporal attention and the whole network, and the paper's points.
  `reproduce.plots` draws it as PNG too, by an optional package.
  """
  frames = range(2, max_frames + 1)
  network, attention = ratios(sizes, frames)
  x = lambda f: 60 + 520 * (f - 2) / (max_frames - 2)
  y = lambda ratio: 340 - 300 * ratio
  text = lambda x, y, words, anchor="middle": (
    f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'
  )
  parts = []
  for percent in range(0, 101, 20):
    height = y(percent / 100)
    parts.append(f'<path d="M60 {height:.0f}H580" stroke="#ddd"/>')
    parts.append(text(52, height + 4, f"{percent} %", "end"))
  for num_frames in (n for n in (2, 8, 16, 32, 64) if n <= max_frames):
    parts.append(text(x(num_frames), 358, num_frames))
  parts.append(text(320, 380, "frames"))
  parts.append(text(320, 24, "Operations of sparse over full attention"))
  curves = (
    (network, "#b5482a", "network", 2),
    (attention, "#2a5db5", "temporal attention", None),
  )
  for row, (curve, color, name, column) in enumerate(curves):
    points = " ".join(f"{x(f):.1f},{y(r):.1f}" for f, r in zip(frames, curve))
    parts.append(
      f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
    )
    parts.append(
      f'<path d="M400 {60 + 20 * row}h24" stroke="{color}" stroke-width="2"/>'
    )
    parts.append(text(432, 64 + 20 * row, name, "start"))
    for num_frames, figures in PAPER_TABLE_A2.items():
      if column is not None and num_frames <= max_frames:
        parts.append(
          f'<circle cx="{x(num_frames):.1f}"'
          f' cy="{y(figures[column] / 100):.1f}" r="4" fill="none"'
          f' stroke="{color}"/>'
        )
  parts.append('<circle cx="412" cy="100" r="4" fill="none" stroke="#b5482a"/>')
  parts.append(text(432, 104, "network, the paper's counts", "start"))
  style = 'font-family="sans-serif" font-size="12" fill="#333"'
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 396">'
    '<rect width="620" height="396" fill="#fff"/>'
    f"<g {style}>" + "".join(parts) + "</g></svg>\n"
  )
