"""Converts checkpoints of Hunyuan3D 2.1, Sculpt4D and DINOv2 into ours.

`plan_conversion` compares files with networks by names and shapes alone; the
plan maps tensors to parameters; `write` executes it with one tensor in memory
at a time. The result is a folder with an Orbax checkpoint for each network, and
sculpt4d.json, which describes them; `model_folders.load` reads it.
`weights/export.py` is the reverse.

If a checkpoint lacks temporal attention, it gets initial values: the output
projection is zero, so the 4D model equals the per-frame one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import dit_block
from sculpt4d_jax.models import networks
from sculpt4d_jax.weights import adapters
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import checkpoint_sizes
from sculpt4d_jax.weights import dit as dit_weights
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import float8
from sculpt4d_jax.weights import image_encoder as image_encoder_weights
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import orbax_leaves
from sculpt4d_jax.weights import rule_files
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import temporal as temporal_weights
from sculpt4d_jax.weights import training_files
from sculpt4d_jax.weights import vae as vae_weights
from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import views

CheckpointError = tensor_file.CheckpointError
PARTS = checkpoint_parts.PARTS
DTYPES = ("bfloat16", "float32")
# Biases that a checkpoint with temporal attention may lack; they are then zero.
_TEMPORAL_BIASES = (
  r"stages\.\d+\.temporal_attention\.out\.bias",
  r"stages\.\d+\.norm_temporal\.bias",
)


@dataclasses.dataclass(frozen=True)
class PartPlan:
  """Plan for one network.

  Attributes:
    name: "dit", "vae" or "image_encoder".
    config: Configuration of the network.
    part: Location of its tensors.
    plan: Tensors that fill each parameter.
    shapes: Shapes of our parameters by path.
    original: Names that rules see -> names in the file.
  """

  name: str
  config: Any
  part: checkpoint_parts.Part
  plan: weight_rules.Plan
  shapes: Mapping[str, tuple[int, ...]]
  original: Mapping[str, str]

  def describe(self) -> Iterator[str]:
    """One line for every tensor and every parameter."""
    yield f"{self.name}, from {self.part.file.path}:"
    for step in self.plan.steps:
      targets = ", ".join(
        f"{s.path}{list(s.index) or ''} {list(s.shape)}" for s in step.slots
      )
      for name in step.sources:
        info = self.part.tensors[name]
        yield (
          f"  {self.original[self.part.prefix + name]} {info.dtype}"
          f" {list(info.shape)} -> {targets} ({step.transform.name})"
        )
    for name in self.plan.ignored:
      yield f"  {self.original[self.part.prefix + name]} -> not needed"
    for path in self.plan.unfilled:
      yield (
        f"  not in the checkpoint -> {path} {list(self.shapes[path])}"
        f" ({_initial_kind(path)})"
      )


@dataclasses.dataclass(frozen=True)
class Conversion:
  """Plan for all networks of a checkpoint.

  Attributes:
    parts: Plans of the networks.
    not_read: Unused files, or unused networks in them.
    seed: Seed of initial values.
    notes: Clauses on tensors left out, scaled or folded in.
  """

  parts: tuple[PartPlan, ...]
  not_read: tuple[str, ...]
  seed: int
  notes: tuple[str, ...] = ()

  @property
  def num_steps(self) -> int:
    """Number of rules to run, for a progress bar."""
    return sum(len(part.plan.steps) for part in self.parts)

  def describe(self) -> Iterator[str]:
    """One line for every tensor, parameter, unused file and note."""
    for part in self.parts:
      yield from part.describe()
    for line in self.not_read:
      yield f"Not read: {line}."
    for line in self.notes:
      yield f"Note: {line}."

  def summary(self) -> Iterator[str]:
    """A line for each network and each note."""
    for part in self.parts:
      tensors = sum(len(step.sources) for step in part.plan.steps)
      numbers = sum(
        int(np.prod(info.shape)) for info in part.part.tensors.values()
      )
      line = f"{part.name}: {tensors} tensors, {numbers:,} numbers"
      if part.plan.unfilled:
        line += (
          f"; {len(part.plan.unfilled)} parameters of temporal attention are"
          " not in the checkpoint and start from initial values, their output"
          " projection from zero"
        )
      yield line + "."
    for line in self.notes:
      yield f"Note: {line}."


def plan_conversion(
  files: Sequence[tensor_file.TensorFile],
  configs: Mapping[str, Any],
  *,
  heads: str | None = None,
  rules: rule_files.RuleFile = rule_files.RuleFile(),
  seed: int = 0,
  adapter_alpha: float | None = None,
) -> Conversion:
  """Compares checkpoints with networks; reads no tensor data.

  Files are taken as trainers leave them: wrappers' words drop out of names, the
  state of a run is left out, float8 is scaled, and adapters are folded into the
  weights of the network they belong to.

  Args:
    files: Checkpoints. A network that several contain is taken from the first.
    configs: Configuration of each network that is wanted, by part.
    heads: Layout of temporal attention's heads, one of `temporal.HEADS`, if the
      checkpoint does not specify it.
    rules: A user's own rules.
    seed: Seed of the initial values of what a checkpoint lacks.
    adapter_alpha: Alpha of LoRA adapters whose files do not say it.

  Raises:
    CheckpointError: A network is missing, or an option is needed.
    ValueError: Names, shapes or dtypes do not match; all are listed.
  """
  if heads not in (None, *temporal_weights.HEADS):
    raise UserError(f"Heads {heads!r}: choose one of {temporal_weights.HEADS}.")
  prepared = [_prepare(file, rules, adapter_alpha) for file in files]
  notes = [note for one in prepared for note in one.notes]
  # A user copies prefixes from the file, whose names lost these words above.
  prefixes = {
    part: training_files.without_wrappers(prefix)
    for part, prefix in rules.prefixes.items()
  }
  found, not_read, spare = {}, [], []
  for file in (one.file for one in prepared):
    parts, rest = checkpoint_parts.split(file, prefixes)
    spare += [f"{file.original[name]} in {file.path}" for name in rest]
    for name, part in parts.items():
      if name in configs and name not in found:
        found[name] = part
      else:
        reason = "there already" if name in configs else "not asked for"
        not_read.append(f"{name} in {file.path}, {reason}")
  # Adapters often have a file to themselves, so that the weights they change
  # are known only when all files have been split.
  adapter_files = [one.adapters for one in prepared if one.adapters]
  found, folded = adapters.fold(found, adapter_files)
  notes += folded
  missing = [name for name in configs if name not in found]
  if missing:
    places = ", ".join(str(file.path) for file in files)
    raise CheckpointError(
      f"There is no {' and no '.join(missing)} in {places}"
      f"{''.join(f' ({note})' for note in notes)}. Give further"
      " checkpoints, or say --parts for those that are there; names of"
      " another kind need a rule file (--rules)."
    )
  made, problems = [], []
  for name, config in configs.items():
    try:
      # Problems of all networks are collected and reported together.
      made.append(_plan_part(name, config, found[name], heads, rules))
    except CheckpointError:
      # A missing option or another configuration explains the differences.
      raise
    except ValueError as error:
      problems.append(f"{name}, from {found[name].file.path}: {error}")
  # Unused names may be a sign of a wrong prefix: an error, unless
  # the user ignores them.
  if spare and not _all_ignored(spare, rules):
    listed = "\n    ".join(weight_rules.shortened(spare))
    problems.append(f"Names that belong to no network:\n    {listed}")
  if problems:
    raise UserError("\n".join(problems))
  return Conversion(tuple(made), tuple(not_read), seed, tuple(notes))


def write(
  conversion: Conversion,
  folder: paths.PathLike,
  *,
  dtype: str = "bfloat16",
  details: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  on_step: Callable[[], None] = lambda: None,
) -> None:
  """Converts, one tensor in memory at a time.

  Args:
    conversion: Conversion from `plan_conversion`.
    folder: Output folder, which appears when it is complete.
    dtype: Dtype of the result, one of DTYPES.
    details: Further fields of sculpt4d.json.
    overwrite: Whether an earlier conversion in `folder` is replaced.
    on_step: Called after each rule.

  Raises:
    ValueError: The folder exists, or the checkpoint is damaged.
    atomic.OutputError: The folder cannot be written.
  """
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r}: choose one of {DTYPES}.")
  folder = paths.of(folder)
  output_checks.check_folder(folder)
  # Only a folder that a conversion wrote may be replaced.
  if overwrite and folder.exists():
    if not (folder / model_folders.DESCRIPTION).is_file():
      raise UserError(
        f"{folder} exists and holds no converted checkpoint; choose another"
        " folder."
      )
  with atomic.new_folder(folder, replace=overwrite) as staging:
    about = {}
    for part in conversion.parts:
      _write_part(part, staging / part.name, dtype, conversion.seed, on_step)
      about[part.name] = model_folders.describe(
        part.config,
        {
          "source": str(part.part.file.path),
          "initialised": list(part.plan.unfilled),
        }
        | _own_details(part)
        | dict(details or {}),
      )
    model_folders.write_description(staging, about, dtype)


class _Prepared(NamedTuple):
  """A file as the networks' tables see it.

  Attributes:
    file: Its weights.
    adapters: Its adapters.
    notes: Clauses on what was done to it.
  """

  file: views.View
  adapters: adapters.AdapterFile | None
  notes: list[str]


def _prepare(
  file: tensor_file.TensorFile,
  rules: rule_files.RuleFile,
  adapter_alpha: float | None,
) -> _Prepared:
  """Takes off what trainers and compilers put around weights."""
  # The order matters:
  #
  #   renames     a user writes them for the names that the file has
  #   wrappers    hide the words by which the others recognise names
  #   state       its tensors have dtypes and names that no rule expects
  #   float8      a weight and its scale become one tensor
  #   adapters    are added to weights as they are used
  training_files.refuse_partitioned(file)
  made = training_files.unwrap(_renamed(file, rules))
  made, notes = training_files.drop_state(made)
  made, more = float8.widen(made)
  made, found = adapters.find(made, adapter_alpha)
  return _Prepared(made, found, notes + more)


def _renamed(
  file: tensor_file.TensorFile, rules: rule_files.RuleFile
) -> views.View:
  """The file whose names have passed a user's renames."""
  sources: dict[str, str] = {}
  for name in file.tensors:
    renamed = rules.rename(name)
    if renamed in sources:
      raise CheckpointError(
        f"The renames of the rule file make one name, {renamed!r}, of"
        f" {sources[renamed]!r} and {name!r}."
      )
    sources[renamed] = name
  return views.renamed(file, sources)


def _all_ignored(spare: Sequence[str], rules: rule_files.RuleFile) -> bool:
  names = [text.partition(" in ")[0] for text in spare]
  return all(weight_rules.matches(name, rules.ignore) for name in names)


def _plan_part(
  name: str,
  config: Any,
  part: checkpoint_parts.Part,
  heads: str | None,
  rules: rule_files.RuleFile,
) -> PartPlan:
  checkpoint_sizes.check_config_file(name, part.file.path, config)
  # Abstract: shapes are enough, and the weights may be larger than memory.
  graphdef, params = networks.abstract(networks.KINDS[name][0], config)
  shapes = weight_rules.param_shapes(nnx.merge(graphdef, params))
  tensors = part.tensors
  ignore, optional = rules.ignore, ()
  if name == "dit":
    table = rules.merge(name, config, dit_weights.rules(config))
    # Files of our export record the layout of heads; other files do not.
    heads = heads or part.file.metadata.get(temporal_weights.METADATA)
    # A user's rules for temporal attention replace the search for its names.
    # A file with temporal layers must have all their kernels; a per-frame
    # model's may lack these layers altogether.
    if not any("temporal" in t for rule in table for t in rule.targets):
      extra = temporal_weights.find_rules(config, tensors, table, heads)
      optional = _TEMPORAL_BIASES if extra else dit_weights.TEMPORAL
      table += extra
  elif name == "vae":
    table = rules.merge(name, config, vae_weights.rules(config))
  else:
    table = rules.merge(
      name, config, image_encoder_weights.rules_for(config, tensors)
    )
    ignore = (*ignore, *image_encoder_weights.IGNORE)
  plan = weight_rules.plan(
    table,
    tensors,
    shapes,
    ignore=ignore,
    optional=optional,
    hint=checkpoint_sizes.differences(name, tensors, config),
  )
  return PartPlan(name, config, part, plan, shapes, part.file.original)


def _write_part(
  part: PartPlan,
  folder: pathlib.Path,
  dtype: str,
  seed: int,
  on_step: Callable[[], None],
) -> None:
  # Slices of a stack arrive one by one and become files one by one, so that no
  # stack of all blocks or experts is ever in memory.
  axes = {
    slot.path: len(slot.index)
    for step in part.plan.steps
    for slot in step.slots
  }
  unfilled = part.plan.unfilled
  axes |= dict.fromkeys(unfilled, 1)  # Temporal layers are stacks of blocks.
  writer = orbax_leaves.LeafWriter(folder, part.shapes, axes, dtype)
  # Slots of each step that are not written yet.
  left = [len(step.slots) for step in part.plan.steps]
  done = 0
  for slot, array in part.plan.run(part.part.read):
    try:
      writer.write(slot.path, slot.index, array)
    except CheckpointError as error:
      # Slots arrive in the order of the steps, so the count of finished steps
      # names the tensor that failed.
      names = ", ".join(part.plan.steps[done].sources)
      raise CheckpointError(
        f"{part.part.file.path}: {names} {error}; the checkpoint is damaged."
      ) from error
    left[done] -= 1
    if not left[done]:
      done += 1
      on_step()
  if unfilled:
    for path, index, array in _initial_values(part, seed):
      writer.write(path, index, array)
  writer.finish()


def _own_details(part: PartPlan) -> dict[str, Any]:
  """Details that our exports store with the autoencoder's weights."""
  scale = part.part.file.metadata.get(weight_export.SCALE)
  if part.name != "vae" or scale is None:
    return {}
  try:
    return {"scale_factor": float(scale)}
  except ValueError as error:
    raise CheckpointError(
      f"{part.part.file.path} has a damaged header: {error}."
    ) from error


def _initial_values(
  part: PartPlan, seed: int
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
  """Initial values of the temporal layers, block by block."""
  wanted = set(part.plan.unfilled)
  for block in range(part.config.depth):
    stage, slot = part.config.locate(block)
    prefix = f"stages.{stage}."
    # By block, so that values do not depend on how blocks are stacked.
    key = jax.random.fold_in(jax.random.key(seed), block)
    layers = dit_block.temporal_layers(part.config, rngs=nnx.Rngs(key))
    for name, layer in layers.items():
      for path, value in weight_rules.params_by_path(layer).items():
        full = f"{prefix}{name}.{path}"
        if full in wanted:
          yield full, (slot,), np.asarray(value)


def _initial_kind(path: str) -> str:
  # As `dit_block.temporal_layers` makes them, for the printed plan.
  if path.endswith((".out.kernel", ".bias")):
    return "initialised with zeros"
  if path.endswith(".scale"):
    return "initialised with ones"
  return "initialised at random"
