"""Collectives are counted as often as they run."""

import pytest

from sculpt4d_jax.training.ahead_of_time import account
from sculpt4d_jax.training.ahead_of_time import collectives

# Hand-checked on 8 devices, a mesh of data=2 and model=4. In float32:
#   five turns of a loop: all-gather over model of [8, 16] to [32, 16], 2048 B,
#     of which 3/4 come from others: 1536; all-reduce over data of one [16]:
#     2 * 64 * 1/2 = 64;
#   after it, once: all-to-all over model of [8, 16], 512 * 3/4 = 384; a
#     permutation of [8, 16]: 512; reduce-scatter over all 8 of [32, 16] to
#     [4, 16]: 256 * 7 = 1792.
_PROGRAM = """
import jax, jax.numpy as jnp
from jax import lax
from sculpt4d_jax.training.ahead_of_time import collectives
mesh = jax.make_mesh((2, 4), ("data", "model"),
                     axis_types=(jax.sharding.AxisType.Auto,) * 2)
P = jax.sharding.PartitionSpec

def local(x):  # [8, 16]
  def turn(x, _):
    whole = lax.all_gather(x, "model", axis=0, tiled=True)
    row = lax.psum(x[0] * 2, "data")
    return jnp.tanh(whole[8:16] + row), None
  x, _ = lax.scan(turn, x, None, length=5)
  x = lax.all_to_all(x, "model", 0, 1, tiled=True).reshape(8, 16)
  x = lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)])
  x = jnp.concatenate([x, x + 1, x * 2, x - 3])
  return lax.psum_scatter(x, ("data", "model"), scatter_dimension=0, tiled=True)

run = jax.jit(jax.shard_map(
    local, mesh=mesh, in_specs=P(("data", "model")),
    out_specs=P(("data", "model")), check_vma=False))
text = run.lower(jnp.ones((64, 16))).compile().as_text()
for c in collectives.count(text):
  print(c.kind, c.group_size, c.number, c.bytes, c.unknown_loops)
"""


_TWO_SLICES = """
# Two slices of four devices, along data: what goes over data leaves the slice,
# and so does the reduce-scatter over all.
for c in collectives.count(text, [0] * 4 + [1] * 4):
  print(c.kind, c.network, c.number, c.bytes)
"""


def test_collectives_of_two_slices_are_counted_by_network(run_on_devices):
  program = _PROGRAM[: _PROGRAM.index("for c in")] + _TWO_SLICES
  lines = run_on_devices(8, program).split("\n")
  assert sorted(filter(None, lines)) == [
    "all-gather ICI 5 7680",
    "all-reduce DCN 5 320",
    "all-to-all ICI 1 384",
    "collective-permute ICI 1 512",
    "reduce-scatter DCN 1 1792",
  ]


@pytest.mark.parametrize(
  "groups, slices, network",
  [
    ("replica_groups={{0,1},{2,3}}", [0, 0, 1, 1], "ICI"),
    ("replica_groups={{0,2},{1,3}}", [0, 0, 1, 1], "DCN"),
    ("replica_groups=[2,2]<=[4]", [0, 0, 1, 1], "ICI"),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [0, 0, 1, 1], "DCN"),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [0, 0, 1, 1], "ICI"),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [0, 0, 1, 1], "DCN"),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [0, 0, 1, 1], "ICI"),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [0, 0, 1, 1], "DCN"),
    ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [0, 0, 1, 1], "ICI"),
    ("source_target_pairs={{0,1},{1,2}}", [0, 0, 1, 1], "DCN"),
    ("channel_id=1", [0, 0, 1, 1], "DCN"),
    ("channel_id=1", [0, 0, 0, 0], "ICI"),
  ],
)
def test_the_network_of_every_form_of_groups(groups, slices, network):
  text = f"""ENTRY %main (p: f32[8]) -> f32[8] {{
  ROOT %x = f32[8] collective-permute(%p), {groups}
}}"""
  # The kind makes no difference to how groups are read.
  if "replica_groups" in groups:
    text = text.replace("collective-permute", "all-reduce")
  [found] = collectives.count(text, slices)
  assert found.network == network


# What libtpu makes of the sum of a gradient over two slices of four chips.
BETWEEN_SLICES = """
ENTRY %main (x: f32[256,1024]) -> f32[256,8,128] {
  %x = f32[256,1024] parameter(0)
  %bitcast = f32[256,8,128] bitcast(%x)
  %after-all = token[] after-all()
  %send = (f32[256,8,128], u32[], token[]) send(%bitcast, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[256,8,128], u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[256,8,128], token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %result = f32[256,8,128] get-tuple-element(%recv-done), index=0
}
"""


def test_exchanges_by_the_hosts_of_slices_are_counted():
  slices = [0] * 4 + [1] * 4
  [found] = collectives.count(BETWEEN_SLICES, slices)
  # 1 MB of each, of which half goes to the other slice, and its sum comes back.
  assert found == collectives.Collective(
    "all-reduce", 2, 1, 256 * 1024 * 4, network="DCN"
  )
  four = BETWEEN_SLICES.replace("{1,2}x", "{1,3:5}x")
  [found] = collectives.count(four, [0, 1, 2, 3])
  assert (found.group_size, found.bytes) == (4, 256 * 1024 * 4 * 6 // 4)


def test_exchanges_by_the_hosts_take_time_on_their_network():
  rates = account.Rates(1e9, 1e12, 1e9, {"ICI": 1e9, "DCN": 1e6})
  found = account.account(BETWEEN_SLICES, rates, [0] * 4 + [1] * 4)
  assert found.seconds["collectives"] == pytest.approx(256 * 1024 * 4 / 1e6)


def test_a_program_worked_by_hand(run_on_devices):
  lines = run_on_devices(8, _PROGRAM).split("\n")
  assert sorted(filter(None, lines)) == [
    "all-gather 4 5 7680 0",
    "all-reduce 2 5 320 0",
    "all-to-all 4 1 384 0",
    "collective-permute 2 1 512 0",
    "reduce-scatter 8 1 1792 0",
  ]


_TEXT = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %all-reduce.7 = bf16[64,8]{1,0} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = bf16[16,8]{1,0} dynamic-slice(%all-reduce.7)
}

%exchange (p: bf16[4,4]) -> bf16[4,4] {
  %p = bf16[4,4]{1,0} parameter(0)
  ROOT %all-to-all.1 = bf16[4,4]{1,0} all-to-all(%p), replica_groups={{0,1},{2,3}}
}

%condition (state: (s32[], bf16[16,8])) -> pred[] {
  %state = (s32[], bf16[16,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(7), backend_config={"a":[]}
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%body (state: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %state = (s32[], bf16[16,8]{1,0}) parameter(0)
  %x = bf16[16,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %all-gather-start.1 = (bf16[16,8]{1,0:T(8,128)(2,1)}, bf16[64,8]{1,0:T(8,128)(2,1)}) all-gather-start(%x), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %all-gather-done.1 = bf16[64,8]{1,0} all-gather-done(%all-gather-start.1)
  %y = bf16[16,8]{1,0} fusion(%all-gather-done.1), kind=kCustom, calls=%all-reduce-scatter.1
  %nothing = f32[8] all-reduce(%y), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %next = (s32[], bf16[16,8]{1,0}) tuple(%x, %y)
}

ENTRY %main (p: bf16[16,8]) -> bf16[16,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  %all-to-all-start = ((bf16[4,4]{1,0}), bf16[4,4]{1,0}) async-start(%p), calls=%exchange
  %all-to-all-done = bf16[4,4]{1,0} async-done(%all-to-all-start), calls=%exchange
  %loop = (s32[], bf16[16,8]{1,0}) while(%p), condition=%condition, body=%body
  ROOT %out = bf16[16,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_pairs_loops_and_fusions_of_a_tpu_program():
  # Seven turns: a gather of 1024 B among 4, 768 from others; a reduce-scatter
  # to 256 B among 4, 768. Once, asynchronously: an exchange of 32 B among 2.
  expected = {
    ("all-gather", 4): (7, 7 * 768),
    ("reduce-scatter", 4): (7, 7 * 768),
    ("all-to-all", 2): (1, 16),
  }
  found = collectives.count(_TEXT)
  assert {
    (c.kind, c.group_size): (c.number, c.bytes) for c in found
  } == expected
  assert not any(c.unknown_loops for c in found)


def test_loops_without_known_turns_are_said_to_be_so():
  text = _TEXT.replace("direction=LT", "direction=NE")
  found = {c.kind: c for c in collectives.count(text)}
  assert found["all-gather"].number == 1
  assert found["all-gather"].unknown_loops == 1


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    collectives.count("nothing of that kind")
