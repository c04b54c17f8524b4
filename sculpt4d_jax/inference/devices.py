"""Distributes the sampling of one clip over several devices.

The two branches of guidance are two clips of one batch, so they use the mesh's
`data` axis; a clip's frames use `context`. Every device holds its shard of the
parameters, see `partitioning.py`.

The devices may be those of several processes, which then all make the same calls.
Each has the complete clip and weights on its host and places its share of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
from typing import Any

from flax import nnx
import jax

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import streaming


def sampling_mesh(
  devices: Sequence[jax.Device],
  config: sampling_lib.SamplingConfig,
  dit: dit_config.DiTConfig,
  num_frames: int,
) -> partitioning.Mesh | None:
  """The mesh of as many devices as a clip can use; None for a single device.

  Frames are split over a number of devices that divides both frames and
  attention heads, because temporal attention exchanges the two by an
  all-to-all. Devices that are left over stay idle.

  Args:
    devices: Devices of this process, or of all.
    config: Settings of the sampler; branches of guidance that are called in
      turns are not split.
    dit: The transformer.
    num_frames: Frames of the clip, or of a window.

  Raises:
    UserError: The settings need one device, and several processes are there.
  """
  if config.needs_one_device:
    first(devices)
    return None
  is_pair = config.guidance_scale != 1.0 and not config.guidance_in_turns
  # Calls outside the guidance interval have one branch for all devices.
  branches = 2 if is_pair and config.guides_always else 1
  best = (1, 1)
  for data in {1, branches}:
    for context in range(1, len(devices) // data + 1):
      if num_frames % context or dit.num_heads % context:
        continue
      # As many as possible; among equals, branches are split first.
      best = max(best, (data, context), key=lambda x: (x[0] * x[1], x[0]))
  data, context = best
  if data * context == 1:
    return None
  return partitioning.make_mesh(
    partitioning.MeshConfig(data=data, fsdp=1, context=context),
    list(devices)[: data * context],
  )


def first(devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
  """The first device alone, for settings that use one; none of none.

  Raises:
    UserError: The devices belong to several processes.
  """
  if are_of_several_processes(devices):
    raise UserError(
      "stream_layers, skips_on_host and weights=int8 use one device, so several"
      " processes cannot share a clip with them."
    )
  return devices[:1]


class Transformer:
  """The transformer's weights on the devices that share a clip.

  Attributes:
    params: Its parameters, where the last clip needed them.
    mesh: Mesh of that clip; None for a single device.
  """

  def __init__(
    self,
    params: nnx.State,
    config: dit_config.DiTConfig,
    devices: Sequence[jax.Device],
    streams: bool,
  ):
    """Places the weights.

    Args:
      params: Parameters of a DiT.
      config: Its configuration.
      devices: Devices that share a clip; none leaves all to the default one.
      streams: Whether the blocks stay in the host's memory.

    Raises:
      UserError: The device cannot stream, or several processes would.
    """
    self._config, self._streams = config, streams
    self._devices = tuple(first(devices) if streams else devices)
    self._is_shared = are_of_several_processes(self._devices)
    self.replace(params)

  def replace(self, params: nnx.State) -> None:
    """Takes other weights of the same shapes."""
    self.mesh: partitioning.Mesh | None = None
    if self._is_shared:
      # Each process places its share of them, for each mesh.
      self.params = self._host_params = jax.device_get(params)
    elif self._streams:
      device = next(iter(self._devices), None)
      self.params = streaming.place_kernels(params, device)
    else:
      self.params = jax.device_put(params)

  @property
  def device(self) -> jax.Device:
    """The first of the devices."""
    return next(iter(self._devices), jax.local_devices()[0])

  @contextlib.contextmanager
  def on_mesh(
    self, config: sampling_lib.SamplingConfig, num_frames: int
  ) -> Iterator[Callable[[Any], Any]]:
    """Places the weights on the devices that a clip can use.

    Args:
      config: Settings of the sampler.
      num_frames: Frames of the clip, or of a window.

    Yields:
      A function that places a call's other arrays.

    Raises:
      UserError: Some process would have no part of the clip.
    """
    as_they_are = lambda tree: tree
    if len(self._devices) < 2:
      yield as_they_are
      return
    mesh = sampling_mesh(self._devices, config, self._config, num_frames)
    if self._is_shared:
      self._check_that_all_share(mesh, num_frames)
    if mesh != self.mesh:
      where = self._devices[0]
      if mesh is not None:
        where = partitioning.shardings(self.params, mesh)
      if self._is_shared:
        self.params = partitioning.place(self._host_params, where)
      else:
        self.params = jax.device_put(self.params, where)
      self.mesh = mesh
    if mesh is None:
      yield as_they_are
      return
    with partitioning.use_mesh(mesh):
      whole = jax.sharding.NamedSharding(mesh, partitioning.Spec())
      if self._is_shared:
        yield lambda tree: partitioning.place(
          tree, jax.tree.map(lambda _: whole, tree)
        )
      else:
        yield as_they_are

  def _check_that_all_share(
    self, mesh: partitioning.Mesh | None, num_frames: int
  ) -> None:
    """Raises UserError if a process has no device in the mesh."""
    wanted = _processes(self._devices)
    if mesh is None or _processes(mesh.devices.flat) != wanted:
      raise UserError(
        f"{len(wanted)} processes cannot share {num_frames} frames of a"
        f" transformer with {self._config.num_heads} heads: frames are divided"
        " by a number that divides both. Use fewer processes, or another"
        " sampling.num_frames."
      )


def _processes(devices: Iterable[jax.Device]) -> set[int]:
  return {device.process_index for device in devices}


def are_of_several_processes(devices: Sequence[jax.Device]) -> bool:
  """Whether the devices belong to more than one process."""
  return len(_processes(devices)) > 1
