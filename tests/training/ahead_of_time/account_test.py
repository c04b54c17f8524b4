"""The account of a scheduled program, compared with hand calculations."""

import pytest

from sculpt4d_jax.training.ahead_of_time import account
from sculpt4d_jax.training.ahead_of_time import collectives

_CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
_GATHER = (
  "all-gather(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0},"
  ' frontend_attributes={chain_id="0"}'
)
# An all-gather of [8, 8] in bfloat16 in three fusions: its start, a product, its
# end. A chip receives half of its 128 bytes.
_PROGRAM = f"""
HloModule step, is_scheduled=true

%start_part (p: bf16[4,8]) -> (bf16[4,8], bf16[8,8]) {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %g = bf16[8,8]{{1,0:T(8,128)(2,1)}} {_GATHER}
  ROOT %s = (bf16[4,8]{{1,0:T(8,128)(2,1)S(1)}}, bf16[8,8]{{1,0}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%async_collective_fusion.1 (p: bf16[4,8], q: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %q = bf16[8,8]{{1,0}} parameter(1)
  %g.1 = bf16[8,8]{{1,0}} {_GATHER}
  ROOT %c = bf16[8,8]{{1,0}} convolution(%q, %q), dim_labels=bf_io->bf
}}

%done_part (p: bf16[4,8]) -> bf16[8,8] {{
  %p = bf16[4,8]{{1,0}} parameter(0)
  %g.2 = bf16[8,8]{{1,0}} {_GATHER}
  ROOT %d = bf16[8,8]{{1,0}} custom-call(%p, %g.2), custom_call_target="AsyncCollectiveDone"
}}

%inner (q: bf16[8,8]) -> bf16[8,8] {{
  %q = bf16[8,8]{{1,0}} parameter(0)
  ROOT %c.1 = bf16[8,8]{{1,0}} convolution(%q, %q), dim_labels=bf_io->bf
}}

%outer (q: bf16[8,8]) -> bf16[8,8] {{
  %q = bf16[8,8]{{1,0}} parameter(0)
  ROOT %f = bf16[8,8]{{1,0}} fusion(%q), kind=kOutput, calls=%inner
}}

%plain (q: bf16[8,8]) -> bf16[8,8] {{
  %q = bf16[8,8]{{1,0}} parameter(0)
  ROOT %t = bf16[8,8]{{1,0}} tanh(%q)
}}

%body (t: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %t = (s32[], bf16[8,8]{{1,0}}) parameter(0)
  %x = bf16[8,8]{{1,0}} get-tuple-element(%t), index=1
  %again = bf16[8,8]{{1,0}} fusion(%x), kind=kOutput, calls=%outer, metadata={{op_name="jit(step)/checkpoint/rematted_computation/dot_general"}}, {_CYCLES % 200}
  %normed = bf16[8,8]{{1,0}} fusion(%again), kind=kLoop, calls=%plain, metadata={{op_name="jit(step)/norm/rsqrt"}}, {_CYCLES % 50}
}}

%condition (t: (s32[], bf16[8,8])) -> pred[] {{
  %t = (s32[], bf16[8,8]{{1,0}}) parameter(0)
}}

ENTRY %main (a: bf16[4,8], b: bf16[8,8]) -> bf16[8,8] {{
  %a = bf16[4,8]{{1,0}} parameter(0)
  %b = bf16[8,8]{{1,0}} parameter(1)
  %begun = (bf16[4,8]{{1,0}}, bf16[8,8]{{1,0}}) fusion(%a), kind=kCustom, calls=%start_part
  %during = bf16[8,8]{{1,0}} fusion(%a, %b), kind=kOutput, calls=%async_collective_fusion.1, {_CYCLES % 400}
  %ended = bf16[8,8]{{1,0}} fusion(%a), kind=kCustom, calls=%done_part
  %loop = (s32[], bf16[8,8]{{1,0}}) while(%ended), condition=%condition, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %block_sparse_forward_1x4 = bf16[8,8]{{1,0}} custom-call(%b), custom_call_target="tpu_custom_call", backend_config={{"custom_call_config":{{"cost_estimate":{{"flops":"500","transcendentals":"7","bytes_accessed":"20"}}}}}}
  %grouped = bf16[8,8]{{1,0}} custom-call(%b), custom_call_target="tpu_custom_call", backend_config={{"custom_call_config":{{"cost_estimate":{{"flops":"10","bytes_accessed":"30"}}}}}}
  %moved = bf16[8,8]{{1,0}} collective-permute(%b), channel_id=2, source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %out = bf16[8,8]{{1,0}} fusion(%moved), kind=kLoop, calls=%plain, {_CYCLES % 70}
}}
"""
_RATES = account.Rates(
  clock=1000.0, flops=1000.0, memory=100.0, networks={"ICI": 64.0, "DCN": 8.0}
)


def test_every_class_by_hand():
  found = account.account(_PROGRAM, _RATES)
  assert found.seconds == pytest.approx(
    {
      # During the collective 0.4; three times 0.2; 30 bytes take longer than
      # 10 operations.
      "products": 0.4 + 3 * 0.2 + 0.3,
      "attention": 0.5,
      "norms": 3 * 0.05,
      "other": 0.07,
      # Of a second of the all-gather 0.4 are hidden; the permutation has 128
      # bytes.
      "collectives": 0.6 + 2.0,
    }
  )
  assert found.recomputed == pytest.approx(0.6)
  assert found.hidden == pytest.approx(0.4)
  assert found.total == pytest.approx(sum(found.seconds.values()))


_SPLASH = """HloModule splash

ENTRY %main (q: bf16[2,4,8,16], k: bf16[2,4,32,16]) -> bf16[2,4,8,16] {
  %q = bf16[2,4,8,16]{3,2,1,0} parameter(0)
  %k = bf16[2,4,32,16]{3,2,1,0} parameter(1)
  ROOT %splash_mha_NAME_segmented.1 = bf16[2,4,8,16]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,8,1]{2,1,0}, bf16[2,4,8,16]{3,2,1,0}, bf16[2,4,32,16]{3,2,1,0}, bf16[2,4,32,16]{3,2,1,0}}, frontend_attributes={kernel_metadata={}}
}
"""


# Two products forward, five backward, of 8 queries with 32 keys: 2 clips of 4
# heads, 16 wide, two operations a multiply-add.
@pytest.mark.parametrize("name, products", [("fwd", 2), ("dkv", 5)])
def test_splash_attention_is_counted_by_its_shapes(name, products):
  found = account.account(_SPLASH.replace("NAME", name), _RATES)
  operations = products * 2 * (2 * 4) * 8 * 32 * 16
  assert found.seconds["attention"] == pytest.approx(operations / 1000.0)
  assert found.total == found.seconds["attention"]


def test_collectives_between_slices_take_their_network():
  one, two = (
    account.account(_PROGRAM, _RATES, slices) for slices in ([0, 0], [0, 1])
  )
  assert one == account.account(_PROGRAM, _RATES)
  # 64 bytes in 8 seconds, 128 in 16.
  assert two.seconds["collectives"] == pytest.approx(8 - 0.4 + 16)


def test_a_collective_in_three_fusions_is_counted_once():
  found = collectives.count(_PROGRAM)
  assert [(c.kind, c.number, c.bytes) for c in found] == [
    ("collective-permute", 1, 128),
    ("all-gather", 1, 64),
  ]
