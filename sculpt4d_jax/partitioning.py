"""The device mesh, and which axis of an array lies on which axis of it.

A mesh has five named axes:

  data     clips; every group of devices along it holds all parameters
  fsdp     clips; parameters, optimizer state and averages are split along it
  expert   clips; experts of a mixture are split along it, tokens exchanged
  context  frames of a clip; temporal attention exchanges frames for heads
  tensor   attention heads and hidden units

Modules speak of logical axes ("embed", "heads", "batch"); the rules below map
them to the mesh. An axis of an array that the mesh axes do not divide is kept
whole, so that one clip can be sampled on any mesh; what a training step needs
to divide is checked by `check_training`.

Inside `use_mesh` the functions here act on that mesh. Outside of it, and on a
mesh of one device, they do nothing: the same model then runs unsharded.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import mesh_utils
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Mesh = jax.sharding.Mesh
NamedSharding = jax.sharding.NamedSharding
Spec = jax.sharding.PartitionSpec
Axes = Sequence[str | None]

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
# A clip's own axes: over what a loss is averaged.
BATCH_AXES = ("data", "fsdp", "expert")

# Logical axis -> mesh axes, of parameters and what is as large as they are.
PARAMETER_RULES = {
  "embed": ("fsdp", "context", "expert"),
  "context": ("fsdp", "context", "expert"),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "expert": ("expert",),
}
# Logical axis -> mesh axes, of activations.
ACTIVATION_RULES = {
  "batch": BATCH_AXES,
  "frames": ("context",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
}
# Parameters of fewer numbers a layer are not split: to gather them would take
# longer than to read them.
MIN_SPLIT_SIZE = 2**17

_current: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  "mesh", default=None
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh; see the module's docstring.

  Attributes:
    data: Copies of the parameters.
    fsdp: Shards of the parameters; -1, for one axis of the five, takes all
      devices that the others leave.
    expert: Shards of the experts.
    context: Shards of a clip's frames.
    tensor: Shards of heads and hidden units.
  """

  data: int = 1
  fsdp: int = -1
  expert: int = 1
  context: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.astuple(self)
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
      raise UserError(
        f"{self} must have positive sizes, and -1 (what is left) at most once."
      )

  def resolve(self, num_devices: int) -> tuple[int, ...]:
    """The five sizes on so many devices.

    Raises:
      ValueError: The sizes do not multiply to the devices.
    """
    sizes = dataclasses.astuple(self)
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
      named = dict(zip(MESH_AXES, sizes))
      raise UserError(
        f"The mesh {named} needs {known} devices"
        + (" or a multiple of them" if -1 in sizes else "")
        + f", but there are {num_devices}; change config.mesh, in which -1"
        " takes what is left."
      )
    return tuple(num_devices // known if s == -1 else s for s in sizes)


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Lays the mesh over the devices; neighbours on it are linked by wires.

  Devices of several slices (pods joined by a data centre's network) are
  separated along `data`, whose traffic is least.

  Raises:
    ValueError: The sizes do not multiply to the devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = config.resolve(len(devices))
  num_slices = len({getattr(d, "slice_index", 0) for d in devices})
  if num_slices > 1:
    if shape[0] % num_slices:
      raise UserError(
        f"mesh.data={shape[0]} is not a multiple of the {num_slices} slices;"
        " only data may cross them."
      )
    within = (shape[0] // num_slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      within,
      (num_slices,) + (1,) * (len(shape) - 1),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(
      shape, list(devices), allow_split_physical_axes=True
    )
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return Mesh(grid, MESH_AXES, axis_types=auto)


def slices(mesh: Mesh) -> list[int]:
  """The slice of every device, in the order of the mesh."""
  return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Makes the functions here, and what is traced meanwhile, use the mesh."""
  token = _current.set(mesh)
  try:
    # Part of jax's cache keys: one function on two meshes is traced twice.
    with jax.set_mesh(mesh):
      yield
  finally:
    _current.reset(token)


def current_mesh() -> Mesh | None:
  """The mesh in use, unless it is of one device."""
  mesh = _current.get()
  return None if mesh is None or mesh.size == 1 else mesh


def platform() -> tuple[str, str]:
  """Platform and kind of the devices that are computed on.

  They are the mesh's, which may be of a machine that is only compiled for.
  """
  mesh = _current.get()
  if mesh is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  device = mesh.devices.flat[0]
  return device.platform, device.device_kind


def compute_capability() -> str:
  """Of the NVIDIA GPUs that are computed on, as "9.0"; see `platform`."""
  mesh = _current.get()
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  return str(getattr(device, "compute_capability", "unknown"))


def spec(
  shape: Sequence[int],
  axes: Axes,
  mesh: Mesh,
  rules: dict[str, tuple[str, ...]],
) -> Spec:
  """Mesh axes of every axis of an array.

  An axis takes the mesh axes of its rule, in order, as long as they divide it
  and no axis before has taken them.
  """
  taken, entries = set(), []
  for size, axis in zip(shape, axes, strict=True):
    entry = []
    for name in rules.get(axis, ()):
      width = mesh.shape[name]
      if width > 1 and name not in taken and size % width == 0:
        entry.append(name)
        size //= width
    taken.update(entry)
    entries.append(tuple(entry) if len(entry) > 1 else (entry or [None])[0])
  return Spec(*entries)


def activation_spec(shape: Sequence[int], axes: Axes) -> Spec:
  """Where activations lie on the mesh in use."""
  return spec(shape, axes, current_mesh(), ACTIVATION_RULES)


def constrain(x: Array, *axes: str | None) -> Array:
  """Says where an activation lies; axes that are not named are whole."""
  mesh = current_mesh()
  if mesh is None:
    return x
  axes = axes + (None,) * (x.ndim - len(axes))
  sharding = NamedSharding(mesh, activation_spec(x.shape, axes))
  return jax.lax.with_sharding_constraint(x, sharding)


def parameter_spec(shape: Sequence[int], axes: Axes, mesh: Mesh) -> Spec:
  """Where a parameter lies; it may have an axis of layers in front."""
  num_layer_axes = len(shape) - len(axes)
  own = shape[num_layer_axes:]
  if math.prod(own) < MIN_SPLIT_SIZE and "expert" not in axes:
    return Spec()
  return Spec(
    *(None,) * num_layer_axes, *spec(own, axes, mesh, PARAMETER_RULES)
  )


def gather(parameter: nnx.Param, dtype: Any) -> Array:
  """A parameter in the compute dtype, whole but for heads and hidden units.

  It is cast before it is gathered, and its gradient is summed right into the
  shards that the optimizer holds.
  """
  value = parameter[...].astype(dtype)
  mesh = current_mesh()
  if mesh is None:
    return value
  axes = parameter.get_metadata()["logical_axes"]
  own = parameter_spec(value.shape, axes, mesh)
  # One axis of the mesh after the other: among all chips of a slice at once the
  # TPU's compiler would sum whole parameters, which is twice the bytes.
  steps, kept = [own], list(MESH_AXES)
  for name in reversed(PARAMETER_RULES["embed"]):
    kept.remove(name)
    step = Spec(*(_keep(entry, kept) for entry in own))
    if step != steps[-1]:
      steps.append(step)
  return _reshard(value, tuple(NamedSharding(mesh, step) for step in steps))


def _keep(entry, names):
  """The mesh axes of a spec's entry that are among `names`."""
  entry = (entry,) if isinstance(entry, str) else (entry or ())
  kept = tuple(name for name in entry if name in names)
  return (kept or (None,))[0] if len(kept) < 2 else kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reshard(x, steps):
  """From the first of some shardings to the last one."""
  for step in steps[1:]:
    x = jax.lax.with_sharding_constraint(x, step)
  return x


def _reshard_forward(x, steps):
  return _reshard(x, steps), None


def _reshard_backward(steps, _, cotangent):
  return (jax.lax.with_sharding_constraint(cotangent, steps[0]),)


_reshard.defvjp(_reshard_forward, _reshard_backward)


def map_local(
  function: Callable[..., Any],
  args: Sequence[Any],
  in_specs: Sequence[Any],
  out_specs: Any,
) -> Any:
  """Runs a function on every device's own part of the arguments.

  The function may use collectives of `jax.lax` by the names of mesh axes. Call
  it where `current_mesh()` is not None.
  """
  return jax.shard_map(
    function,
    mesh=current_mesh(),
    in_specs=tuple(in_specs),
    out_specs=out_specs,
    # Pallas kernels do not tell on what axes their results vary.
    check_vma=False,
  )(*args)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Shardings of a state: of each parameter, moment and average by its axes.

  Args:
    tree: Arrays or their shapes; parameters are `nnx.Variable`s that name their
      logical axes. Everything else is whole on every device.
    mesh: The mesh.
  """
  whole = NamedSharding(mesh, Spec())

  def of_node(node):
    if not isinstance(node, nnx.Variable):
      return whole
    axes = node.get_metadata().get("logical_axes")
    if axes is None:
      return jax.tree.map(lambda _: whole, node)
    return jax.tree.map(
      lambda x: NamedSharding(mesh, parameter_spec(x.shape, axes, mesh)), node
    )

  return jax.tree.map(
    of_node, tree, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )


def batch_sharding(
  shape: Sequence[int], mesh: Mesh, num_frames: int | None = None
) -> NamedSharding:
  """Where an array of a batch lies: clips first, then frames if there are."""
  has_frames = len(shape) > 1 and num_frames in (None, shape[1])
  axes = ("batch", "frames" if has_frames else None)[: len(shape)]
  axes += (None,) * (len(shape) - len(axes))
  return NamedSharding(mesh, spec(shape, axes, mesh, ACTIVATION_RULES))


def local_rows(num_rows: int, mesh: Mesh) -> np.ndarray:
  """The clips of a batch that this process has to load."""
  indices = batch_sharding((num_rows,), mesh).addressable_devices_indices_map(
    (num_rows,)
  )
  rows = [np.arange(num_rows)[index] for index in indices.values()]
  return np.unique(np.concatenate(rows))


def global_batch(
  local: dict[str, np.ndarray], rows: np.ndarray, num_rows: int, mesh: Mesh
) -> dict[str, Array]:
  """A batch on the mesh, from the clips that each process loaded.

  Args:
    local: Arrays whose first axis is that of `rows`.
    rows: Row indices from `local_rows`.
    num_rows: Clips of the whole batch.
    mesh: The mesh.
  """
  position = {int(row): index for index, row in enumerate(rows)}

  def place(x):
    shape = (num_rows, *x.shape[1:])

    def shard(index):
      wanted = [position[row] for row in range(num_rows)[index[0]]]
      return np.ascontiguousarray(x[wanted][(slice(None), *index[1:])])

    return jax.make_array_from_callback(
      shape, batch_sharding(shape, mesh), shard
    )

  return jax.tree.map(place, local)


def check_training(
  mesh: Mesh,
  *,
  batch_size: int,
  num_frames: int = 0,
  num_heads: int = 0,
  hidden_width: int = 0,
  num_experts: int = 0,
  accumulation_steps: int = 1,
) -> None:
  """Checks that the mesh divides a training step; 0 skips a check.

  Raises:
    ValueError: It does not, and what to change.
  """
  size = lambda *names: math.prod(mesh.shape[name] for name in names)
  if batch_size % accumulation_steps:
    raise UserError(
      f"batch_size={batch_size} is not a multiple of accumulation_steps="
      f"{accumulation_steps}; choose steps that divide it."
    )
  clips = batch_size // accumulation_steps
  checks = (
    ("clips a step (batch_size / accumulation_steps)", clips, BATCH_AXES),
    ("frames of a clip", num_frames, ("context",)),
    ("attention heads", num_heads, ("context", "tensor")),
    ("hidden units", hidden_width, ("tensor",)),
    ("experts", num_experts, ("expert",)),
  )
  for what, count, names in checks:
    if count % size(*names):
      sizes = " * ".join(f"{n}={mesh.shape[n]}" for n in names)
      raise UserError(
        f"{count} {what} cannot be split over {size(*names)} devices"
        f" ({sizes}): change the sizes in config.mesh or the number."
      )
