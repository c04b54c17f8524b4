"""Runs the DiT's blocks with weights or skips in the host's memory.

The stacks of the blocks' kernels stay in the host's pinned memory; the device
holds two blocks at a time. Before a block runs, the copy of the next one is
started, together with the skip that it takes, so that an asynchronous copy can
overlap with the block's work:

    copy     0 | 1      | 2      | 3
    work         block 0| block 1| block 2

Skips can be stored there, too: they are written when they are made and read
one block before they are needed. The blocks of a stage are one loop, except for
its last block, which overlaps with the copy of the next stage's first one.

The blocks compute the same as without it. An accelerator's compiler turns the
copies into asynchronous ones; for a CPU they are plain copies.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import frame_tokens

Array = array_types.Array
Tokens = frame_tokens.Tokens
# Weights of a block and the skip that it takes, both on the device.
_Fetched = tuple[Any, Tokens | None]

# Name of the memory of the host that a device copies from asynchronously.
MEMORY_KIND = "pinned_host"


class OnHost(NamedTuple):
  """Parts of the DiT that are kept in the host's memory.

  Attributes:
    layers: Weights of the blocks, as `place_kernels` puts them there.
    skips: Outputs of blocks that later blocks take.
  """

  layers: bool = False
  skips: bool = False


NOTHING = OnHost()


def is_streamed(path: jax.tree_util.KeyPath) -> bool:
  """Whether a parameter of the DiT is copied from the host.

  Kernels are; norms, biases and routers are small, and copies of single rows
  are not possible on every device.
  """
  name = jax.tree_util.keystr(path)
  return "stages" in name and "kernel" in name and "router" not in name


def place_kernels(params: Any, device: jax.Device | None = None) -> Any:
  """Puts the DiT's streamed parameters on the host, and others on the device.

  Args:
    params: State of a DiT, for any backend.
    device: Device that computes; None is the default one.

  Raises:
    ValueError: The device cannot stream.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      place(leaf, device) if is_streamed(path) else jax.device_put(leaf, device)
    ),
    params,
  )


def place(tree: Any, device: jax.Device | None = None) -> Any:
  """Puts arrays into the memory of a device's host.

  Args:
    tree: Arrays.
    device: Device that copies them; None is the default one.

  Raises:
    ValueError: The device has no such memory.
  """
  device = jax.devices()[0] if device is None else device
  check(device)
  return jax.device_put(
    tree, jax.sharding.SingleDeviceSharding(device, memory_kind=MEMORY_KIND)
  )


def check(device: jax.Device) -> None:
  """Raises ValueError unless a device copies from its host's memory."""
  kinds = [memory.kind for memory in device.addressable_memories()]
  if MEMORY_KIND not in kinds:
    raise UserError(
      f"{device} has the memories {kinds}, not {MEMORY_KIND!r}, so nothing can"
      " be kept on the host: set sampling.stream_layers and"
      " sampling.skips_on_host to false."
    )


def to_device(tree: Any) -> Any:
  """Copies arrays into the device's memory; to be traced."""
  return jax.device_put(tree, jax.memory.Space.Device)


def map_blocks(
  modules: Sequence[nnx.Module], function: Callable[[Any], Any]
) -> tuple[Any, ...]:
  """Applies a function to all blocks, with kernels on the host; to be traced.

  Args:
    modules: Stacked blocks of every stage.
    function: Function of a block; only kernels that it uses are copied.

  Returns:
    Results of every stage, stacked.
  """
  results = []
  for module in modules:
    graphdef, stack = nnx.split(module)

    def step(
      carry: tuple[()],
      number: Array,
      graphdef: nnx.GraphDef = graphdef,
      stack: nnx.State = stack,
    ) -> tuple[tuple[()], Any]:
      block = nnx.merge(graphdef, _layer(stack, number, True))
      return carry, function(block)

    num_blocks = jax.tree.leaves(stack)[0].shape[0]
    results.append(lax.scan(step, (), jnp.arange(num_blocks))[1])
  return tuple(results)


def run(
  stages: Sequence[dit_config.Stage],
  modules: Sequence[nnx.Module],
  x: Tokens,
  context: Any,
  key_values: Sequence[attention.KeyValues] | None,
  apply: Callable[[Any, Tokens, Any, Tokens | None], Tokens],
  on_host: OnHost,
) -> Tokens:
  """Applies all blocks.

  Args:
    stages: Kinds and numbers of the blocks.
    modules: Stacked blocks of every stage.
    x: Input of the first block, tokens of all frames.
    context: Context of every block, unless there are key_values.
    key_values: Keys and values of the context for every stage, stacked.
    apply: Function (block, x, context, skip) -> x.
    on_host: Parts in the host's memory.
  """
  graphdefs, stacks = zip(*map(nnx.split, modules))
  num_skips = sum(s.num_blocks for s in stages if s.kind.pushes)
  # Every skip is written before it is read.
  num_stored = max(num_skips, 1)
  if on_host.skips:
    memory = jax.memory.Space.Host
    # Zeros would be made on the device, in full, and copied.
    make = lambda x: lax.empty((num_stored, *x.shape), x.dtype)
    skips = jax.device_put(jax.tree.map(make, x), memory)
  else:
    memory = jax.memory.Space.Device
    # Of what depends on nothing, a compiler reserves the second branch of
    # guidance during the first one, too.
    make = lambda x: jnp.broadcast_to(x, (num_stored, *x.shape))
    skips = jax.tree.map(make, x)
  first_pushed, first_taken = _firsts(stages)

  def fetch(
    index: int, number: Array | int, x: Tokens, skips: Tokens
  ) -> tuple[Tokens, _Fetched]:
    """Weights of a block and its skip, copied once x is known."""
    # Else the compiler could start copies long before they are needed, and keep
    # the first block's weights from call to call.
    x, number = lax.optimization_barrier((x, jnp.int32(number)))
    params = _layer(stacks[index], number, on_host.layers)
    skip = None
    if stages[index].kind.has_skip:
      newest = num_skips - 1 - first_taken[index]
      skip = to_device(_slice(skips, newest - number))
      skip = jax.tree.map(lambda y: jnp.squeeze(y, 0), skip)
    return x, (params, skip)

  def work(
    index: int,
    number: Array | int,
    x: Tokens,
    skips: Tokens,
    fetched: _Fetched,
  ) -> tuple[Tokens, Tokens]:
    params, skip = fetched
    block = nnx.merge(graphdefs[index], params)
    seen = context
    if key_values is not None:
      seen = jax.tree.map(lambda y: _item(y, number), key_values[index])
    x = apply(block, x, seen, skip)
    if stages[index].kind.pushes:
      place_of_x = first_pushed[index] + number
      skips = jax.tree.map(
        lambda stack, y: lax.dynamic_update_index_in_dim(
          stack, y, place_of_x, 0
        ),
        skips,
        jax.device_put(x, memory),
      )
    return x, skips

  x, fetched = fetch(0, 0, x, skips)
  for index, stage in enumerate(stages):
    last = stage.num_blocks - 1

    def step(
      carry: tuple[Tokens, Tokens, _Fetched], number: Array, index: int = index
    ) -> tuple[tuple[Tokens, Tokens, _Fetched], None]:
      x, skips, fetched = carry
      # The next block's skip is read before this block writes its own. It does
      # exist: between the last block that writes a skip and the first one that
      # takes one lies the middle block.
      x, following = fetch(index, number + 1, x, skips)
      x, skips = work(index, number, x, skips, fetched)
      return (x, skips, following), None

    # The last block is not an iteration: during its work the weights of the
    # next stage's first block are copied, and those have other shapes.
    if last:
      carry = (x, skips, fetched)
      (x, skips, fetched), _ = lax.scan(step, carry, jnp.arange(last))
    following = None
    if index + 1 < len(stages):
      x, following = fetch(index + 1, 0, x, skips)
    x, skips = work(index, last, x, skips, fetched)
    fetched = following
  return x


def _firsts(
  stages: Sequence[dit_config.Stage],
) -> tuple[list[int], list[int]]:
  """Skips that were pushed, and taken, before each stage."""
  pushed, taken = [0], [0]
  for stage in stages:
    pushed.append(pushed[-1] + stage.num_blocks * stage.kind.pushes)
    taken.append(taken[-1] + stage.num_blocks * stage.kind.has_skip)
  return pushed, taken


def _layer(stack: Any, number: Array | int, on_host: bool) -> Any:
  """Parameters of a block of a stack, on the device."""
  params = _slice(stack, number)
  if on_host:
    params = to_device(params)
  return jax.tree.map(lambda p: jnp.squeeze(p, 0), params)


def _slice(stacks: Any, number: Array | int) -> Any:
  """One entry [1, ...] each; shapes change on the device, as a host's may not."""
  return jax.tree.map(
    lambda stack: lax.dynamic_slice_in_dim(stack, number, 1), stacks
  )


def _item(stack: Array, number: Array | int) -> Array:
  return lax.dynamic_index_in_dim(stack, number, keepdims=False)
