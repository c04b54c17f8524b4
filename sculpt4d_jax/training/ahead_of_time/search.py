"""Searches layouts of a training step on a slice.

A layout is a mesh, a remat policy and the number of micro-batches. Parameters
are split over `fsdp` and frames over `context`; slices are joined along `data`.
The preset determines the other axes of the mesh.

More micro-batches need less memory but gather the parameters more often, so
they are only useful if fewer do not fit.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
from typing import Any

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import presets

KEEP_ALL = "none"  # Text for remat_policy=None.
Report = dict[str, Any]  # From `report.examine`.


@dataclasses.dataclass(frozen=True)
class Layout:
  """A layout of a training step.

  Attributes:
    remat_policy: Remat policy of the DiT; None keeps all activations.
    fsdp: Shards of the parameters.
    context: Shards of a clip's frames.
    accumulation_steps: Micro-batches of a step.
  """

  remat_policy: str | None
  fsdp: int
  context: int
  accumulation_steps: int

  def __str__(self) -> str:
    return (
      f"fsdp={self.fsdp} context={self.context}"
      f" remat_policy={self.remat_policy or KEEP_ALL}"
      f" accumulation_steps={self.accumulation_steps}"
    )

  def fields(self) -> dict[str, Any]:
    """The configuration fields that select this layout."""
    return {
      "mesh.fsdp": self.fsdp,
      "mesh.context": self.context,
      "model.dit.remat_policy": self.remat_policy or KEEP_ALL,
      "dit_training.optimizer.accumulation_steps": self.accumulation_steps,
    }

  def apply(self, preset: preset_lib.Preset) -> preset_lib.Preset:
    """The preset in this layout."""
    replace = dataclasses.replace
    dit = replace(preset.model.dit, remat_policy=self.remat_policy)
    optimizer = replace(
      preset.dit_training.optimizer, accumulation_steps=self.accumulation_steps
    )
    return replace(
      preset,
      mesh=replace(preset.mesh, fsdp=self.fsdp, context=self.context),
      model=replace(preset.model, dit=dit),
      dit_training=replace(preset.dit_training, optimizer=optimizer),
    )


def layouts(
  preset: preset_lib.Preset,
  devices: Sequence[Any],
  remat_policies: Sequence[str | None],
  accumulation_steps: Sequence[int],
  contexts: Sequence[int] | None = None,
) -> list[tuple[Layout, ...]]:
  """Groups of layouts that differ only in micro-batches, fewest first.

  Args:
    preset: Preset of the step.
    devices: Devices of all slices.
    remat_policies: Those to try.
    accumulation_steps: Those to try.
    contexts: Shards of a clip's frames to try; None tries all.

  Raises:
    ValueError: None of them divides the step.
  """
  groups = []
  for remat, (fsdp, context) in itertools.product(
    remat_policies, _meshes(preset.mesh, len(devices))
  ):
    if contexts and context not in contexts:
      continue
    group = tuple(
      layout
      for steps in sorted(set(accumulation_steps))
      if _divides(
        layout := Layout(remat, fsdp, context, steps), preset, devices
      )
    )
    if group:
      groups.append(group)
  if not groups:
    task = preset.dit_training.task
    raise UserError(
      f"No mesh of {len(devices)} devices divides a step of"
      f" {task.batch_size} clips of {task.frames_of(preset.data.num_frames)}"
      f" frames in {list(accumulation_steps)} micro-batches."
    )
  return groups


def run(
  groups: Sequence[tuple[Layout, ...]],
  examine: Callable[[Layout], Report | None],
) -> list[tuple[Layout, Report]]:
  """Compiles the layouts of each group until one fits.

  Args:
    groups: From `layouts`.
    examine: The report of a layout with "fits"; None if it does not compile for
      lack of memory.

  Returns:
    Layouts with their reports: fitting ones first, sorted by the bound of their
    MFU in descending order.
  """
  found = []
  for group in groups:
    for layout in group:
      report = examine(layout)
      if report is not None:
        found.append((layout, report))
        if report["fits"]:
          break
  return sorted(
    found, key=lambda one: (not one[1]["fits"], -one[1]["mfu_bound"])
  )


def table(found: Sequence[tuple[Layout, Report]]) -> str:
  """The compiled layouts, the best first, and the fields of the best."""
  lines = [
    f"{'MFU <=':>7}{'step s >=':>11}{'peak GB':>9}{'fits':>6}"
    f"{'again':>8}{'exposed':>9}  layout"
  ]
  for layout, report in found:
    parts = report["account"] or {}
    lines.append(
      f"{report['mfu_bound']:7.1%}{max(report['seconds'].values()):11.4f}"
      f"{report['memory_gb']['peak']:9.2f}"
      f"{'yes' if report['fits'] else 'no':>6}"
      f"{parts.get('recomputed', 0):8.4f}{parts.get('collectives', 0):9.4f}"
      f"  {layout}"
    )
  if found and found[0][1]["fits"]:
    fields = found[0][0].fields().items()
    lines.append("best: " + " ".join(f"{k}={v}" for k, v in fields))
  else:
    lines.append("None of them fits.")
  return "\n".join(lines)


def _meshes(
  mesh: partitioning.MeshConfig, num_devices: int
) -> Iterator[tuple[int, int]]:
  """All (fsdp, context) that use all devices, the fewest shards first."""
  others = mesh.data * mesh.expert * mesh.tensor
  if others < 1 or num_devices % others:
    raise UserError(
      f"{mesh} leaves no whole number of {num_devices} devices for fsdp and"
      " context; give data, expert and tensor as positive divisors."
    )
  rest = num_devices // others
  for context in range(1, rest + 1):
    if rest % context == 0:
      yield rest // context, context


def _divides(
  layout: Layout, preset: preset_lib.Preset, devices: Sequence[Any]
) -> bool:
  try:
    changed = layout.apply(preset)
    mesh = partitioning.make_mesh(changed.mesh, devices)
    presets.dit(changed).check_mesh(mesh, layout.accumulation_steps)
  except UserError:
    return False
  return True
