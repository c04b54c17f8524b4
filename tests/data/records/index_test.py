"""Which side of the split an asset is on."""

import dataclasses
import json

import pytest

from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import shards

pytest.importorskip("array_record", reason="needs the extra `data`")


def test_assets_of_one_object_are_on_one_side(tmp_path):
  """Ten files of one fox, ten of nothing in common."""
  (tmp_path / "settings.json").write_text("{}")
  for folder in ("shards", "verdicts"):
    (tmp_path / folder).mkdir()
  for number in range(20):
    name = "fox" if number < 10 else ""
    credit = asset_units.Credit(licence="CC0-1.0", object=name)
    details = {"asset": f"asset {number}"} | dataclasses.asdict(credit)
    shard = f"{number}{shards.SUFFIX}"
    shards.write_shard(
      tmp_path / "shards" / shard,
      [(f"clip {number}", "view", 0, b"x")],
      {f"clip {number}": details},
    )
    verdict = {"shard": shard, "asset_name": shard, "unit": str(number)}
    (tmp_path / "verdicts" / f"{number}.json").write_text(json.dumps(verdict))
  index = dataset_index.write_index(
    tmp_path, dataset_index.read_verdicts(tmp_path), 0.5
  )
  sides = [
    {clip.details["object"] for clip in clips}
    for clips in index.splits.values()
  ]
  assert sum("fox" in side for side in sides) == 1
  assert all("" in side for side in sides)


def test_credits_name_the_object(tmp_path):
  (tmp_path / "sources.json").write_text(
    json.dumps(
      [{"files": "a/*", "licence": "CC0-1.0", "object": "fox"}, {"files": "*"}]
    )
  )
  credits = asset_units.read_credits(tmp_path)
  assert asset_units.credit_of("a/fox.glb", credits).object == "fox"
  assert asset_units.credit_of("b.glb", credits) == asset_units.Credit()


def test_objects_are_held_out_by_name(tmp_path):
  (tmp_path / "settings.json").write_text("{}")
  for folder in ("shards", "verdicts"):
    (tmp_path / folder).mkdir()
  for number, name in enumerate(("fox", "fish", "")):
    details = {"asset": f"asset {number}", "object": name}
    shard = f"{number}{shards.SUFFIX}"
    shards.write_shard(
      tmp_path / "shards" / shard,
      [(f"clip {number}", "view", 0, b"x")],
      {f"clip {number}": details},
    )
    verdict = {"shard": shard, "asset_name": shard, "unit": str(number)}
    (tmp_path / "verdicts" / f"{number}.json").write_text(json.dumps(verdict))
  listed = tmp_path / "held_out.json"
  listed.write_text('{"held_out": ["fox"]}')
  held_out = dataset_index.read_held_out(listed)
  index = dataset_index.write_index(
    tmp_path, dataset_index.read_verdicts(tmp_path), 0.0, held_out
  )
  assert [c.details["object"] for c in index.splits["test"]] == ["fox"]
  assert {c.details["object"] for c in index.splits["train"]} == {"fish", ""}


@pytest.mark.parametrize("text", ["", "[]", '{"held_out": "fox"}'])
def test_malformed_list_of_held_out_objects_is_refused(text, tmp_path):
  path = tmp_path / "held_out.json"
  path.write_text(text)
  with pytest.raises(ValueError, match="list of objects"):
    dataset_index.read_held_out(path)
