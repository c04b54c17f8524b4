"""The command `sculpt4d`: help, messages, exit codes and every subcommand."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

import sculpt4d_jax
from sculpt4d_jax import preset_files
from sculpt4d_jax.cli import info
from sculpt4d_jax.cli import main as cli
from sculpt4d_jax.cli import train
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.training.stages import runner
from tests import small_models
from tests.integration import micro
from tests.io import clips

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESET = str(ROOT / "tests" / "integration" / "micro.py")
# A field without training has its surface somewhere near its median.
SURFACE = ("--set", "surface.level=0.2", "--set", "surface.band=3")


def start(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, "-m", "sculpt4d_jax", *arguments],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.fixture
def run(monkeypatch, tmp_path):
  """Runs the command in this process and in an empty folder."""
  monkeypatch.chdir(tmp_path)
  return lambda *arguments: cli._run(list(arguments))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return str(
    small_models.write(tmp_path_factory.mktemp("w"), micro.get_config())
  )


def test_help_of_the_command_lists_all_and_imports_nothing():
  code = (
    "import sys; from sculpt4d_jax.cli import main\n"
    "try: main.main(['--help'])\n"
    "except SystemExit as end: assert not end.code\n"
    "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
  )
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  for name in cli.COMMANDS:
    assert re.search(rf"^ +{name} ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_subcommand_teaches_by_example(name, run, capsys):
  with pytest.raises(SystemExit) as end:
    run(name, "--help")
  assert end.value.code == 0
  text = capsys.readouterr().out
  assert text.count(f"sculpt4d {name}") >= 2  # Usage, and an example at least.


@pytest.mark.parametrize("name", ("sample", "demo", "train", "evaluate"))
def test_all_commands_have_one_default_model(name):
  """So that what `train` makes fits the others without --preset."""
  arguments = [name, "clip.mp4"] if name == "sample" else [name]
  assert cli._parser(name).parse_args(arguments).preset == "small"


def test_train_runs_all_stages_of_a_preset():
  assert train.STAGES == runner.STAGES
  args = cli._parser("train").parse_args(["train"])
  assert tuple(args.stages) == runner.STAGES


def test_sampling_imports_nothing_that_only_others_need():
  slow = {
    "igl",
    "jax.experimental.pallas.tpu",
    "orbax.checkpoint",
    "scipy.cluster",
    "scipy.spatial",
    "scipy.stats",
    "sculpt4d_jax.evaluation.held_out",
    "sculpt4d_jax.inference.registering",
    "sculpt4d_jax.io.assets.gltf_animation",
    "sculpt4d_jax.training.loop",
    "tensorboardX",
    "trimesh",
  }
  code = (
    "import sys, sculpt4d_jax.api, sculpt4d_jax.inference.outputs\n"
    f"found = {slow} & {{*sys.modules}}\n"
    "assert not found, found"
  )
  subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    check=True,
  )


def test_every_preset_field_of_an_example_exists():
  config = preset_files.read("sculpt4d")
  for name, (module, _) in cli.COMMANDS.items():
    text = (ROOT / "sculpt4d_jax" / "cli" / f"{module}.py").read_text()
    for field in re.findall(r"--set ([a-z_.]+)=", text):
      section = config
      for part in field.split("."):
        assert part in section, f"{name}: {field}"
        section = section[part]


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("sample", "nothing.mp4", "-o", "out"), "nothing.mp4 does not exist"),
    (("sample",), "CLIP"),
    (("sample", "a.mp4", "--formats", "stl"), "expected some of ply, obj"),
    (("smaple",), "invalid choice"),
    (("sample", "a.mp4", "--set", "x=1"), "no field 'x'"),
  ],
)
def test_what_a_user_can_mend_ends_with_two_and_a_sentence(
  arguments, message, tmp_path
):
  result = start(*arguments, cwd=tmp_path)
  assert result.returncode == 2, result.stderr
  assert message in result.stderr and "Traceback" not in result.stderr
  assert not os.listdir(tmp_path)


@pytest.fixture
def clip(tmp_path):
  folder = tmp_path / "frames"
  folder.mkdir()
  for frame in range(3):
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[12:36, 8 + 4 * frame : 32 + 4 * frame] = 40
    Image.fromarray(picture).save(folder / f"{frame}.png")
  return str(folder)


def test_sample_writes_what_it_was_asked_for(run, clip, weights, capsys):
  run(
    *("sample", clip, "-o", "out", "--preset", PRESET, "--weights", weights),
    *("--seed", "4", "--steps", "2", "--quiet", *SURFACE),
  )
  said = json.loads(pathlib.Path("out/run.json").read_text())
  assert said["seed"] == 4 and said["sampling"]["num_steps"] == 2
  assert pathlib.Path("out/viewer.html").exists()
  printed = capsys.readouterr()
  assert printed.out == "Open out/viewer.html in a browser.\n"
  assert printed.err == ""


def test_sample_makes_a_folder_of_clips_and_skips_what_is_done(
  run, clip, weights, capsys
):
  os.makedirs("clips")
  shutil.move(clip, "clips/moving")
  pathlib.Path("clips/broken.mp4").write_bytes(b"x")
  arguments = (
    *("sample", "clips", "--batch", "-o", "out", "--preset", PRESET),
    *("--weights", weights, "--steps", "2", "--quiet", *SURFACE),
  )
  assert run(*arguments) == 2  # One clip cannot be read, and is named.
  assert "broken.mp4" in capsys.readouterr().out
  made = pathlib.Path("out/moving/run.json")
  before = made.stat().st_mtime_ns
  os.remove("clips/broken.mp4")
  assert run(*arguments) == 0
  assert made.stat().st_mtime_ns == before
  with pytest.raises(UserError, match="--known is of one clip"):
    run(*arguments, "--known", "0:a.ply")


def test_sample_takes_known_frames_of_an_earlier_run(run, clip, weights):
  arguments = (
    *("sample", clip, "--preset", PRESET, "--weights", weights),
    *("--steps", "2", "--quiet", "--save_latents", *SURFACE),
  )
  run(*arguments, "-o", "one", "--seed", "1")
  run(*arguments, "-o", "two", "--known", "0:one/latents.npz")
  one, two = (
    np.load(f"{name}/latents.npz")["latents"] for name in ("one", "two")
  )
  np.testing.assert_array_equal(one[0], two[0])
  assert not np.array_equal(one[1], two[1])


def test_sample_cuts_a_long_clip_into_windows(run, clip, weights):
  run(
    *("sample", clip, "-o", "out", "--preset", PRESET, "--weights", weights),
    *("--steps", "2", "--quiet", *SURFACE),
    *("--all_frames", "--window", "2", "--overlap", "1"),
  )
  assert len(list(pathlib.Path("out").glob("frame_*.ply"))) == 3
  assert not pathlib.Path("out/windows").exists()
  with pytest.raises(UserError, match="--overlap is of windows"):
    run("sample", clip, "-o", "out", "--preset", PRESET, "--overlap", "1")


def test_a_preview_of_the_cutout_stops_before_the_long_work(run, clip, capsys):
  run("sample", clip, "--preview_cutout", "-o", "out", "--preset", PRESET)
  assert [n for n in os.listdir("out") if n.endswith(".png")] == ["cutout.png"]
  assert not [n for n in os.listdir("out") if n.endswith((".ply", ".json"))]
  # The object is in the picture, and so is white ground.
  shown = np.asarray(Image.open("out/cutout.png"))
  assert (shown == 40).all(-1).any() and (shown == 255).all(-1).any()
  assert "cutout.png" in capsys.readouterr().out


def test_plan_and_info_print_what_they_say(run, capsys):
  run("plan", "--preset", "sculpt4d")
  assert "| DiT weights | 6.34 |" in capsys.readouterr().out
  run("info")
  text = capsys.readouterr().out
  for part in ("jax ", "devices", "optional packages", "usd-core", "xla is"):
    assert part in text
  assert "pallas_tpu is not: " in text and "pallas_gpu is not: " in text


def test_info_names_extras_that_exist():
  import tomllib

  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  for name, extra, _ in (*info._OPTIONAL, *info._PLUGINS):
    listed = " ".join(extras[extra])
    assert name in listed or f"jax[{extra}]" in listed


def test_convert_lists_names_and_writes_nothing_without_an_output(
  run, tmp_path, capsys
):
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty"):
    run("convert", "empty", "--preset", "tiny")
  assert os.listdir(tmp_path) == ["empty"]


def test_evaluate_compares_two_folders(run, weights, clip, capsys):
  run(
    *("sample", clip, "-o", "out", "--preset", PRESET, "--weights", weights),
    *("--quiet", *SURFACE),
  )
  compare = ("evaluate", "out", "out", "--protocol", "motion324", "--quiet")
  run(*compare, "-o", "scores.json")
  assert "Conventions: motion324: 50,000 points" in capsys.readouterr().out
  document = json.loads(pathlib.Path("scores.json").read_text())
  estimates = document["methods"]["prediction"]["estimates"]
  # The same numbers as the function's.
  report = sculpt4d_jax.evaluate("out", "out", "motion324", progress=False)
  for name, estimate in report.estimates.items():
    assert estimates[name]["mean"] == estimate.mean
  with pytest.raises(ValueError, match="predicted and the true one"):
    run("evaluate", "out")
  with pytest.raises(ValueError, match="no protocol 'fid'; choose one of"):
    run("evaluate", "out", "out", "--protocol", "fid")


def test_figure_draws_sequences_below_one_another(run, clip, capsys, tmp_path):
  meshes = clips.changing_clip(4)
  ply_obj.write_mesh_sequence(tmp_path / "one", meshes)
  glb.write_animated_glb(tmp_path / "two.glb", meshes, 8)
  arguments = ("--columns", "3", "--size", "32", "--quiet")
  run("figure", "one", *arguments)
  assert "figure.png" in capsys.readouterr().out
  run("figure", "one", "two.glb", *arguments, "-o", "both.png")
  one, both = (np.asarray(Image.open(f)) for f in ("figure.png", "both.png"))
  assert both.shape == (2 * one.shape[0], *one.shape[1:])
  np.testing.assert_array_equal(both[: len(one)], both[len(one) :])
  # Three times and, with gaps, two views.
  assert one.shape[1] == 3 * (32 + 2) + 2 and one.shape[0] == 2 * (32 + 2) + 2
  views = ("--views", "0,0 90,0 180,0")
  run("figure", "one", *arguments, *views, "-o", "three.png")
  assert np.asarray(Image.open("three.png")).shape[0] == 3 * (32 + 2) + 2


@pytest.mark.parametrize(
  "arguments, reason",
  [
    (("--columns", "0"), "1 to 64"),
    (("--views", "3"), "AZIMUTH,ELEVATION"),
    (("--views", "nan,1"), "AZIMUTH,ELEVATION"),
    (("--output", "a.jpg"), "ending in .png"),
  ],
)
def test_figure_says_what_it_expected(run, arguments, reason, tmp_path):
  ply_obj.write_mesh_sequence(tmp_path / "one", clips.changing_clip(2))
  with pytest.raises(UserError, match=reason):
    run("figure", "one", "--quiet", *arguments)


def test_reproduce_prints_what_is_known_without_weights(run, capsys):
  run("reproduce", "--table", "A2", "-o", "a2")
  text = capsys.readouterr().out
  assert "186.3" in text  # The paper's PFLOPs of 16 frames.
  assert "186.3" in pathlib.Path("a2/report.md").read_text()
  assert "sculpt4d reproduce" in pathlib.Path("a2/report.html").read_text()
  for arguments in (("--table", "B1"), ("--table", "A1", "--seeds", "1,x")):
    with pytest.raises(UserError, match="choose A1|whole numbers"):
      run("reproduce", *arguments)


def test_evaluate_describes_every_protocol(run, capsys):
  run("evaluate", "--describe")
  text = capsys.readouterr().out
  for name in protocol_table.PROTOCOLS:
    assert f"{name}: " in text


def test_no_text_of_the_library_advises_programs_that_a_wheel_lacks():
  advice = re.compile(
    r"""["'][^"'\n]*(python -m launch|launch\.[a-z]|--config)"""
  )
  for path in (ROOT / "sculpt4d_jax").rglob("*.py"):
    for line in path.read_text().splitlines():
      if not line.lstrip().startswith(("#", '"""', 'r"""')):
        assert not advice.search(line), f"{path}: {line}"


def test_one_interrupt_ends_the_command_with_one_line(tmp_path):
  with subprocess.Popen(
    [sys.executable, "-m", "sculpt4d_jax", "demo", "--quiet"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    stderr=subprocess.PIPE,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    text=True,
  ) as process:
    time.sleep(2)  # It imports, or compiles.
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
  assert (process.returncode, stderr) == (130, "sculpt4d demo: Interrupted.\n")
  assert not os.listdir(tmp_path)
