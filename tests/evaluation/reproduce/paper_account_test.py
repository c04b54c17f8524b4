import pytest

from configs import sculpt4d
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation.reproduce import paper_account
from sculpt4d_jax.training import preset as preset_lib


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


def test_report_says_whether_an_account_fits(sizes):
  text = paper_account.report(sizes)
  best = min(
    paper_account.compare(sizes, a).worst for a in paper_account.ACCOUNTS
  )
  assert ("None is within 1%" in text) == (best > paper_account.TOLERANCE)
  assert text.count("multiply-adds") >= 4
