"""The whole way from assets to batches, small."""

import importlib.machinery
import json
import pathlib
import sys
import types

import numpy as np
from PIL import Image
import pytest
import trimesh

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.preparation import isolation
from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import run as preparation_run
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.data.records import card as dataset_card
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import summary_page
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.io.meshes import ply_obj

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")

_SETTINGS = prepare.PreparationSettings(
  num_frames=3,
  num_uniform=64,
  num_sharp=64,
  num_parts=2,
  num_queries=8,
  downsample_ratio=4,
  num_near=64,
  num_volume=32,
  num_views=2,
  image_size=32,
  supersampling=1,
  surface=watertight.WatertightSettings(resolution=24, test_points=500),
)
_RUN = preparation_run.RunSettings(num_workers=2, clips_per_unit=2)


def _sequence(folder, shifts):
  box = trimesh.creation.box([1.0, 0.8, 0.6])
  ply_obj.write_mesh_sequence(
    folder,
    [
      mesh_lib.TriangleMesh(box.vertices + [x, 0, 0], box.faces) for x in shifts
    ],
  )


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
  """Assets good and bad, prepared: (folder of assets, data set)."""
  root = tmp_path_factory.mktemp("prepared")
  assets = root / "assets"
  _sequence(assets / "moving", [0.0, 0.2, 0.4])
  _sequence(assets / "still", [0.0, 0.0, 0.0])
  (assets / "broken.glb").write_bytes(b"glTF and nothing more")
  (assets / "sources.json").write_text(
    json.dumps([{"files": "mov*", "licence": "CC0-1.0", "source": "a test"}])
  )
  output = str(preparation_run.open_output(root / "out", _SETTINGS))
  _run(assets, output)
  verdicts = dataset_index.read_verdicts(output)
  dataset_index.write_index(output, verdicts, 0.0)
  return assets, pathlib.Path(output)


def _run(assets, output):
  units = asset_units.find_assets([assets])
  units += asset_units.procedural_units(0, 3, 2)
  return preparation_run.run_locally(units, _SETTINGS, _RUN, output)


def test_good_clips_are_kept_and_bad_ones_say_why(data_set):
  _, output = data_set
  verdicts = {v["asset_name"]: v for v in dataset_index.read_verdicts(output)}
  assert verdicts["moving"]["clips"][0]["accepted"]
  assert "nothing moves" in verdicts["still"]["clips"][0]["reasons"][0]
  for name in ("moving", "still"):
    preview = output / verdicts[name]["clips"][0]["preview"]
    with Image.open(preview) as strip:
      assert strip.size == (3 * 144, 144)
      assert np.asarray(strip).std() > 10  # Not an empty page.
  assert "GLB" in verdicts["broken.glb"]["error"]
  index = dataset_index.read_index(output)
  moving = [
    c
    for c in index.splits["train"]
    if c.shard and c.details["asset_name"] == "moving"
  ]
  assert moving[0].details["licence"] == "CC0-1.0"
  assert {k: len(v) for k, v in moving[0].entries.items()} == {
    "geometry": 2,
    "queries": 1,
    "view": 2,
    "buffers": 2,
  }


def test_second_run_does_nothing_and_shards_repeat(data_set, tmp_path):
  assets, output = data_set
  assert _run(assets, str(output)) == []
  again = preparation_run.open_output(tmp_path / "again", _SETTINGS)
  [unit] = [u for u in asset_units.find_assets([assets]) if u.name == "moving"]
  preparation_run.run_locally([unit], _SETTINGS, _RUN, str(again))
  [shard] = (again / "shards").iterdir()
  assert shard.read_bytes() == (output / "shards" / shard.name).read_bytes()


def test_other_settings_are_refused(data_set):
  _, output = data_set
  other = prepare.PreparationSettings()
  with pytest.raises(ValueError, match="other settings.*num_frames"):
    preparation_run.open_output(output, other)


def test_pages_name_everything(data_set):
  _, output = data_set
  verdicts = dataset_index.read_verdicts(output)
  page = summary_page.write_summary(output, verdicts).read_text()
  for text in ("moving", "nothing moves", "broken.glb", "previews/"):
    assert text in page
  card = dataset_card.write_card(
    dataset_index.read_index(output), verdicts, "the command"
  ).read_text()
  assert "CC0-1.0" in card and "the command" in card and "broken.glb" in card


def _config(**changes):
  example = dict(
    contents=("geometry", "queries", "images", "depth"),
    num_frames=2,
    image_size=16,
  )
  return record_loader.LoaderConfig(
    batch_size=2,
    seed=5,
    example=record_examples.ExampleConfig(**(example | changes)),
  )


def _equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_batches_go_on_where_they_stopped(data_set):
  _, output = data_set
  iterator = record_loader.make_iterator(output, "train", _config())
  first = [next(iterator) for _ in range(2)]
  state = json.loads(json.dumps(iterator.get_state()))
  expected = [next(iterator) for _ in range(3)]
  resumed = record_loader.make_iterator(output, "train", _config())
  resumed.set_state(state)
  assert all(_equal(next(resumed), batch) for batch in expected)
  assert first[0]["surface"].shape == (2, 2, 64, 7)
  assert first[0]["images"].shape == (2, 2, 16, 16, 3)
  assert first[0]["normal"].shape == (2, 2, 16, 16, 3)


def test_two_processes_share_the_batches_of_one(data_set):
  _, output = data_set
  alone = record_loader.make_iterator(output, "train", _config())
  shares = [
    record_loader.make_iterator(
      output, "train", _config(), process_index=i, process_count=2
    )
    for i in range(2)
  ]
  for _ in range(3):
    batch, parts = next(alone), [next(share) for share in shares]
    assert _equal(
      batch, {k: np.concatenate([p[k] for p in parts]) for k in batch}
    )


def test_an_epoch_holds_every_clip_once(data_set):
  _, output = data_set
  iterator = record_loader.make_iterator(output, "train", _config())
  rows = [next(iterator)["clip"] for _ in range(2)]
  assert sorted(np.concatenate(rows).tolist()) == [0, 1, 2, 3]


def test_augmentation_is_the_same_in_all_frames(data_set):
  _, output = data_set
  index = dataset_index.read_index(output)
  plain = record_examples.ExampleReader(
    index,
    "train",
    record_examples.ExampleConfig(
      contents=("geometry", "images"),
      num_frames=3,
      num_parts=0,
      image_size=16,
      mirror=False,
      reverse_time=False,
    ),
  )
  mirrored = record_examples.ExampleReader(
    index,
    "train",
    record_examples.ExampleConfig(
      contents=("geometry", "images"),
      num_frames=3,
      num_parts=0,
      image_size=16,
    ),
  )
  seen = set()
  for seed in range(12):
    a = plain.read(0, np.random.default_rng(seed))
    b = mirrored.read(0, np.random.default_rng(seed))
    flip = not np.allclose(
      np.sort(a["surface"][..., 0].ravel()),
      np.sort(b["surface"][..., 0].ravel()),
    )
    back = b["frames"][0] > b["frames"][-1]
    seen.add((flip, bool(back)))
    surface, images = b["surface"], b["images"]
    if flip:
      surface = surface * np.array([-1, 1, 1, -1, 1, 1, 1])
      images = images[:, :, ::-1]
    step = -1 if back else 1
    np.testing.assert_array_equal(surface[::step], a["surface"])
    np.testing.assert_array_equal(images[::step], a["images"])
  assert len(seen) == 4


def test_schema_refuses_what_it_does_not_declare():
  arrays = dict(
    surface=np.zeros((2, 5, 6), np.float16), is_sharp=np.zeros(5, np.uint8)
  )
  content = schema.encode("queries", "a", arrays)
  np.testing.assert_array_equal(
    schema.decode(content, "queries")["surface"], arrays["surface"]
  )
  with pytest.raises(schema.RecordError, match="expected an entry"):
    schema.decode(content, "view")
  with pytest.raises(schema.RecordError, match="float16"):
    schema.encode("queries", "a", arrays | {"surface": np.zeros((2, 5, 6))})
  with pytest.raises(schema.RecordError, match="N ="):
    schema.encode("queries", "a", arrays | {"is_sharp": np.zeros(4, np.uint8)})


_SLEEP = 60.0


def _too_long():
  import time

  time.sleep(_SLEEP)


def _too_much():
  return len(bytearray(64 << 30))


def _crash():
  import os

  os.abort()


@pytest.mark.parametrize(
  "function,message",
  [(_too_long, "longer than"), (_too_much, "memory"), (_crash, "SIGABRT")],
)
def test_bad_work_is_ended_and_named(function, message):
  outcome = isolation.run(function, memory_bytes=8 << 30, seconds=6.0)
  assert message in outcome.error and outcome.value is None
  assert outcome.seconds < _SLEEP / 2  # Ended, not waited for.


def _name_of_the_program():
  return sys.modules["__main__"].__name__  # "__mp_main__" if it was imported.


def test_work_does_not_import_the_program_that_runs(monkeypatch):
  program = types.ModuleType("__main__")
  program.__spec__ = importlib.machinery.ModuleSpec("this", loader=None)
  monkeypatch.setitem(sys.modules, "__main__", program)
  outcome = isolation.run(
    _name_of_the_program, memory_bytes=8 << 30, seconds=60.0
  )
  assert (outcome.value, outcome.error) == ("__main__", "")
  assert sys.modules["__main__"] is program


@pytest.mark.slow
def test_beam_does_the_same_work(data_set, tmp_path):
  pytest.importorskip("apache_beam", reason="needs the extra `beam`")
  from sculpt4d_jax.data.preparation import beam

  assets, output = data_set
  again = preparation_run.open_output(tmp_path / "beam", _SETTINGS)
  units = asset_units.find_assets([assets])
  units += asset_units.procedural_units(0, 3, 2)
  beam.run(units, _SETTINGS, _RUN, str(again))
  names = sorted(path.name for path in (output / "shards").iterdir())
  assert names == sorted(p.name for p in (again / "shards").iterdir())
  for name in names:
    assert (again / "shards" / name).read_bytes() == (
      output / "shards" / name
    ).read_bytes()


def test_objects_take_turns():
  def unit(name, content, first):
    credit = asset_units.Credit(object=name)
    return asset_units.Unit(name, content, content, first, 1, credit)

  units = [unit("fish", f"fish {i % 3}", i) for i in range(9)]
  units += [unit("fox", "fox", i) for i in range(2)]
  units += [unit("", "alone", 0)]
  ordered = preparation_run.in_turns(units)
  assert sorted(u.id for u in ordered) == sorted(u.id for u in units)
  names = [u.name for u in ordered]
  assert sorted(names[:3]) == ["", "fish", "fox"]
  assert sorted(names[3:5]) == ["fish", "fox"]
  assert preparation_run.in_turns(units[::-1]) == ordered


def test_a_run_that_resumes_does_not_open_assets_again(data_set, monkeypatch):
  assets, output = data_set
  monkeypatch.setattr(isolation, "run", lambda *_, **__: pytest.fail("opened"))
  for asset in asset_units.find_assets([assets]):
    units = preparation_run.plan(asset, _SETTINGS, _RUN, str(output))
    expected = [] if asset.name == "broken.glb" else [(0, 1)]
    assert [(unit.first, unit.count) for unit in units] == expected
