"""The device mesh, and the partitioning of arrays over its axes.

A mesh has five named axes:

  data     clips; parameters are replicated along it
  fsdp     clips; parameters, optimizer state and averages are split along it
  expert   clips; experts of a mixture are split along it, and tokens exchanged
  context  frames of a clip; temporal attention exchanges frames for heads
  tensor   attention heads and hidden units

Modules use logical axes ("embed", "heads", "batch"), which the rules below map
to the mesh. An array axis that the mesh axes do not divide is not partitioned,
so that one clip can be sampled on any mesh. `check_training` checks the
divisibility that a training step needs.

Inside `use_mesh` these functions use that mesh. Outside of it, and on a mesh of
one device, they do nothing, and the same model runs unsharded.
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
from jax.experimental import multihost_utils
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Mesh = jax.sharding.Mesh
NamedSharding = jax.sharding.NamedSharding
Spec = jax.sharding.PartitionSpec
Axes = Sequence[str | None]

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
# Mesh axes of clips, over which losses are averaged.
BATCH_AXES = ("data", "fsdp", "expert")

# What the mesh axes split, "-" where all hold the same:
#
#                    data    fsdp    expert  context  tensor
#   parameters        -      embed   embed   embed    heads, mlp
#   experts           -      embed   expert  embed    mlp
#   activations      clips   clips   clips   frames   heads, mlp
#
# Devices along `expert` and `context` have other clips and frames but need the
# same parameters, which are therefore split along these axes as along `fsdp`.
# Logical axis -> mesh axes, for parameters, moments and averages.
PARAMETER_RULES = {
  "embed": ("fsdp", "context", "expert"),
  "context": ("fsdp", "context", "expert"),
  "heads": ("tensor",),
  "mlp": ("tensor",),
  "expert": ("expert",),
}
# Logical axis -> mesh axes, for activations.
ACTIVATION_RULES = {
  "batch": BATCH_AXES,
  "frames": ("context",),
  "heads": ("tensor",),
  "mlp": ("tensor",),
}
# Parameters with fewer numbers per layer are replicated, because gathering them
# would take longer than reading them.
MIN_SPLIT_SIZE = 2**17

# A context variable, so that models in two threads may use two meshes.
_current: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  "mesh", default=None
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh; see the module's docstring.

  Attributes:
    data: Replicas of the parameters.
    fsdp: Shards of the parameters; -1, allowed for one of the five axes, takes
      all remaining devices.
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
    """The five sizes for a number of devices.

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
  """Makes the mesh; adjacent devices on it are physically connected.

  Devices of several slices (pods joined by a data centre's network) are
  separated along `data`, which has the least traffic.

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
    # Along the other axes something is exchanged in every layer, along `data`
    # gradients alone: only that fits the network between slices.
    within = (shape[0] // num_slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
      within,
      (num_slices,) + (1,) * (len(shape) - 1),
      devices,
      allow_split_physical_axes=True,
    )
  else:
    # Sizes of a preset rarely equal the sides of a torus: an axis may then take
    # a part of a side.
    grid = mesh_utils.create_device_mesh(
      shape, list(devices), allow_split_physical_axes=True
    )
  # Auto: the compiler chooses where `constrain` says nothing.
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return Mesh(grid, MESH_AXES, axis_types=auto)


def slices(mesh: Mesh) -> list[int]:
  """The slice of every device, in the order of the mesh."""
  return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """Makes these functions, and code traced in the block, use the mesh."""
  token = _current.set(mesh)
  try:
    # Part of JAX's cache keys, so a function is traced once per mesh.
    with jax.set_mesh(mesh):
      yield
  finally:
    _current.reset(token)


def current_mesh() -> Mesh | None:
  """The mesh in use; None if it has one device."""
  mesh = _current.get()
  return None if mesh is None or mesh.size == 1 else mesh


def platform() -> tuple[str, str]:
  """Platform and kind of the devices that the computation is for.

  They are those of the mesh, which may be a machine for ahead-of-time
  compilation.
  """
  mesh = _current.get()
  if mesh is None:
    return jax.default_backend(), jax.devices()[0].device_kind
  device = mesh.devices.flat[0]
  return device.platform, device.device_kind


def compute_capability() -> str:
  """Compute capability of the NVIDIA GPUs, such as "9.0"; see `platform`."""
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

  An axis gets the mesh axes of its rule, in order, if they divide it and no
  earlier axis uses them.
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
  """Mesh axes of activations on the mesh in use."""
  return spec(shape, axes, current_mesh(), ACTIVATION_RULES)


def constrain(x: Array, *axes: str | None) -> Array:
  """Constrains an activation's sharding; unnamed axes are not partitioned."""
  mesh = current_mesh()
  if mesh is None:
    return x
  axes = axes + (None,) * (x.ndim - len(axes))
  sharding = NamedSharding(mesh, activation_spec(x.shape, axes))
  return jax.lax.with_sharding_constraint(x, sharding)


def parameter_spec(shape: Sequence[int], axes: Axes, mesh: Mesh) -> Spec:
  """Mesh axes of a parameter, which may have a leading axis of layers."""
  num_layer_axes = len(shape) - len(axes)
  own = shape[num_layer_axes:]
  # Experts' biases are small, but must be where their kernels are: devices that
  # exchange tokens know only the experts that they hold.
  if math.prod(own) < MIN_SPLIT_SIZE and "expert" not in axes:
    return Spec()
  return Spec(
    *(None,) * num_layer_axes, *spec(own, axes, mesh, PARAMETER_RULES)
  )


def gather(parameter: nnx.Param, dtype: Any) -> Array:
  """Gathers a parameter, except heads and hidden units, in the compute dtype.

  It is cast before gathering, and its gradient is reduced directly to the
  shards of the optimizer.
  """
  value = parameter[...].astype(dtype)
  mesh = current_mesh()
  if mesh is None:
    return value
  axes = parameter.get_metadata()["logical_axes"]
  own = parameter_spec(value.shape, axes, mesh)
  # One mesh axis after the other: over all chips of a slice at once, the TPU
  # compiler would use an all-reduce of complete parameters, twice the bytes.
  # The last axis of an entry is gathered first, since it holds neighbours:
  #
  #   (fsdp, context, expert) --> (fsdp, context) --> (fsdp) --> whole
  steps, kept = [own], list(MESH_AXES)
  for name in reversed(PARAMETER_RULES["embed"]):
    kept.remove(name)
    step = Spec(*(_keep(entry, kept) for entry in own))
    if step != steps[-1]:
      steps.append(step)
  return _reshard(value, tuple(NamedSharding(mesh, step) for step in steps))


def _keep(
  entry: str | tuple[str, ...] | None, names: Sequence[str]
) -> str | tuple[str, ...] | None:
  """The mesh axes of a spec's entry that are among `names`."""
  entry = (entry,) if isinstance(entry, str) else (entry or ())
  kept = tuple(name for name in entry if name in names)
  return (kept or (None,))[0] if len(kept) < 2 else kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reshard(x: Array, steps: tuple[NamedSharding, ...]) -> Array:
  """Moves an array from the first of several shardings to the last one."""
  for step in steps[1:]:
    x = jax.lax.with_sharding_constraint(x, step)
  return x


def _reshard_forward(
  x: Array, steps: tuple[NamedSharding, ...]
) -> tuple[Array, None]:
  return _reshard(x, steps), None


def _reshard_backward(
  steps: tuple[NamedSharding, ...], _: None, cotangent: Array
) -> tuple[Array]:
  # In one step: the transposes of the steps would sum complete gradients first.
  return (jax.lax.with_sharding_constraint(cotangent, steps[0]),)


_reshard.defvjp(_reshard_forward, _reshard_backward)


def map_local(
  function: Callable[..., Any],
  args: Sequence[Any],
  in_specs: Sequence[Any],
  out_specs: Any,
) -> Any:
  """Runs a function on every device's shard of the arguments.

  The function may use collectives of `jax.lax` by the names of mesh axes. Call
  it where `current_mesh()` is not None.
  """
  return jax.shard_map(
    function,
    mesh=current_mesh(),
    in_specs=tuple(in_specs),
    out_specs=out_specs,
    # Pallas kernels do not declare over which axes their results vary.
    check_vma=False,
  )(*args)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Shardings of all parameters, moments and averages of a state.

  Args:
    tree: Arrays or their shapes; parameters are `nnx.Variable`s that name their
      logical axes. Everything else is replicated.
    mesh: The mesh.
  """
  whole = NamedSharding(mesh, Spec())

  def of_node(node: nnx.Variable | Array | jax.ShapeDtypeStruct) -> Any:
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
  """Sharding of a batch array: clips first, then frames if present."""
  # Without frames are, for instance, cameras [B, 4, 4].
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
  # Devices along `context` and `tensor` have parts of the same clips.
  return np.unique(np.concatenate(rows))


def place(tree: Any, where: Any) -> Any:
  """Puts arrays that every process has onto the devices of all processes.

  Args:
    tree: Arrays of the host, the same in every process.
    where: Their shardings, a tree of the same structure.
  """

  def put(x: Any, sharding: NamedSharding) -> Array:
    x = np.asarray(x)
    # Each device takes its part alone, which may be all that it has room for.
    # `device_put` would also compare the values of all processes first.
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree, where)


def on_host(tree: Any) -> Any:
  """Complete arrays on the host, in every process; a collective of them."""

  def fetch(x: Array) -> np.ndarray:
    if x.is_fully_addressable:
      return jax.device_get(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)


def global_batch(
  local: dict[str, np.ndarray], rows: np.ndarray, num_rows: int, mesh: Mesh
) -> dict[str, Array]:
  """A batch on the mesh, from the clips that each process loaded.

  Args:
    local: Arrays whose first axis is that of `rows`.
    rows: Row indices from `local_rows`.
    num_rows: Clips of the complete batch.
    mesh: The mesh.
  """
  position = {int(row): index for index, row in enumerate(rows)}

  def put(x: np.ndarray) -> Array:
    shape = (num_rows, *x.shape[1:])

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      wanted = [position[row] for row in range(num_rows)[index[0]]]
      return np.ascontiguousarray(x[wanted][(slice(None), *index[1:])])

    return jax.make_array_from_callback(
      shape, batch_sharding(shape, mesh), shard
    )

  return jax.tree.map(put, local)


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
    ValueError: It does not; the message names the remedy.
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
