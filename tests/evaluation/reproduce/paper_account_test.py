import pytest

from configs import sculpt4d
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation.reproduce import paper_account
from sculpt4d_jax.training import preset as preset_lib

ACCOUNTS = paper_account.ACCOUNTS


@pytest.fixture(scope="module")
def sizes():
  model = preset_lib.from_config(sculpt4d.get_config()).model
  return cost.Sizes(model.dit, model.image_encoder, model.vae)


def test_the_papers_rows_leave_a_line(sizes):
  # 123.2 - 92.4, 425.7 - 369.4 and 1584.9 - 1477.7 by hand: a slope of 3.18.
  constant, a_frame = paper_account.paper_fit(sizes)
  assert constant == pytest.approx(5.4, abs=0.2)
  assert a_frame == pytest.approx(3.18, abs=0.01)


def test_ours_is_the_cost_table(sizes):
  found = paper_account.compare(sizes, paper_account.ACCOUNTS[0])
  assert found.a_frame == pytest.approx(10.4, abs=0.05)
  for frames, mode in ((8, 0), (32, 1)):
    whole = sum(sizes.call(frames, ("sparse", "full")[mode]).values())
    expected = cost.PAPER_CALLS * whole / 1e15
    assert found.rows[frames][mode] == pytest.approx(expected, rel=1e-9)


def test_linear_layers_without_experts_are_six_teraflops_a_frame(sizes):
  [account] = [
    a
    for a in paper_account.ACCOUNTS
    if a.name == "multiply-adds of linear layers without experts"
  ]
  found = paper_account.compare(sizes, account)
  assert found.a_frame * 1e15 / cost.PAPER_CALLS == pytest.approx(
    6.1e12, rel=0.02
  )
  assert found.worst > paper_account.TOLERANCE


def test_field_in_portions_computes_keys_and_values_anew(sizes):
  by_name = {a.name: paper_account.compare(sizes, a) for a in ACCOUNTS}
  whole = by_name[
    "linear layers without experts, and one frame's field on 513^3 points"
  ]
  portions = by_name[
    "linear layers without experts, and that field in portions of 8,000 points"
  ]
  # 513^3 / 8,000 portions, rounded up, of 4,096 latents x 1,024 x 2,048.
  extra = 16_876 * 2 * 4096 * 1024 * 2048 / 1e15
  assert portions.constant - whole.constant == pytest.approx(extra, rel=1e-6)
  assert portions.a_frame == pytest.approx(whole.a_frame)


def test_one_account_fits_and_its_figures_are_printed(sizes):
  best = min(
    (paper_account.compare(sizes, a) for a in ACCOUNTS), key=lambda f: f.worst
  )
  assert best.worst <= paper_account.TOLERANCE
  for frames, figures in best.rows.items():
    paper = cost.PAPER_TABLE_A2[frames][:2]
    assert figures == pytest.approx(paper, rel=paper_account.TOLERANCE)
  text = paper_account.report(sizes)
  assert f"{best.rows[32][1]:.1f} | 1584.9" in text
  assert text.count("multiply-adds") >= 4


def test_choices_of_parts_by_hand(sizes):
  # 31 PFLOPs for 8 frames besides the scores, 107 for 32: no line through 0.
  fitting, every, nearest = paper_account.choices(sizes, 0.0)
  assert (fitting, every) == (0, 1024)
  assert nearest > 0.02
  assert paper_account.choices(sizes, 5.4e15)[0] > 0
