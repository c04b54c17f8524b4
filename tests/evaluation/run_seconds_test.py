import json

import pytest

from sculpt4d_jax.evaluation import run_seconds
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores
from sculpt4d_jax.io.meshes import ply_obj
from tests.evaluation import shapes


def write_run(folder, device="cpu", frames=2, **stages):
  document = {
    "device": device,
    "input": {"frames": frames},
    "stages": [{"name": n, "seconds": s} for n, s in stages.items()],
  }
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "run.json").write_text(json.dumps(document))


def test_means_are_of_equal_devices_and_frames(tmp_path):
  write_run(tmp_path / "a", denoise=1.0, decode=2.0)
  write_run(tmp_path / "b", denoise=3.0)
  write_run(tmp_path / "c", device="TPU v5e", denoise=0.5)
  write_run(tmp_path / "d", frames=16, denoise=9.0)
  runs = [run_seconds.read(tmp_path / name) for name in "abcd"]
  assert run_seconds.describe(runs) == [
    "seconds a clip from run.json, cpu, 2 frames, 2 clips: denoise 2.00,"
    " decode 1.00; in all 3.00",
    "seconds a clip from run.json, TPU v5e, 2 frames, 1 clip: denoise 0.50;"
    " in all 0.50",
    "seconds a clip from run.json, cpu, 16 frames, 1 clip: denoise 9.00; in all"
    " 9.00",
  ]


def test_report_and_json_hold_the_seconds_of_the_run(tmp_path):
  truth = [shapes.sphere(subdivisions=1)] * 2
  for folder in ("truth/a", "truth/b", "mine/a", "mine/b"):
    ply_obj.write_mesh_sequence(tmp_path / folder, truth)
  write_run(tmp_path / "mine" / "a", denoise=1.5)
  protocol = protocol_table.find("motion324").with_conventions(num_points=200)
  report = evaluate.evaluate(
    tmp_path / "mine", tmp_path / "truth", protocol, progress=False
  )
  assert "2 frames, 1 clip: denoise 1.50; in all 1.50" in scores.format_report(
    {"mine": report}
  )
  clips = scores.to_json({"mine": report})["methods"]["mine"]["clips"]
  assert clips[0]["run"]["stages"] == {"denoise": 1.5}
  assert clips[1]["run"] is None


def test_a_single_file_has_the_record_next_to_it(tmp_path):
  assert run_seconds.read(tmp_path / "animation.glb") is None
  write_run(tmp_path, denoise=1.0)
  found = run_seconds.read(tmp_path / "animation.glb")
  assert found == run_seconds.RunSeconds("cpu", 2, {"denoise": 1.0})


@pytest.mark.parametrize("text", ["{", "[]", '{"device": "cpu"}'])
def test_damaged_records_are_refused(tmp_path, text):
  (tmp_path / "run.json").write_text(text)
  with pytest.raises(ValueError, match="run.json is not a record of a run"):
    run_seconds.read(tmp_path)
