"""The page: what it says without Gradio, its work, and all of it in a browser."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.cli import main as cli
from tests.io import chromium

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIP = ROOT / "demo" / "clip.mp4"
HAS_GRADIO = importlib.util.find_spec("gradio") is not None

needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason="needs gradio.")


@pytest.mark.skipif(HAS_GRADIO, reason="gradio is installed.")
def test_without_gradio_the_extra_is_named():
  with pytest.raises(ImportError, match=r"sculpt4d-jax\[app\]"):
    cli._run(["app"])


@pytest.fixture(scope="module")
def app_page():
  from sculpt4d_jax.cli import app_page

  return app_page


@pytest.fixture
def studio(app_page):
  return app_page.Studio()


@needs_gradio
def test_sliders_get_the_length_of_a_video_and_hide_for_pictures(
  studio, tmp_path
):
  Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
  start, end = studio.measure([str(CLIP)])
  assert end["value"] == end["maximum"] == pytest.approx(1.25, abs=0.02)
  assert start["value"] == 0 and start["visible"]
  assert not studio.measure([str(tmp_path / "one.png")])[0]["visible"]
  assert not studio.measure(None)[1]["visible"]


@needs_gradio
def test_the_cutout_is_shown_before_the_long_work(studio):
  sheet, said = studio.look([str(CLIP)], "tiny", 8, 0.0, 1.25, "auto")
  assert sheet.dtype == np.uint8 and sheet.ndim == 3
  assert "8 frames, cut out by **plain**" in said
  _, trimmed = studio.look([str(CLIP)], "tiny", 8, 0.0, 0.3, "auto")
  assert re.match(r"[2-5] frames", trimmed)
  assert studio.look(None, "tiny", 8, 0.0, 0.0, "auto") == (None, "")


@needs_gradio
def test_what_a_user_can_mend_is_told(studio, tmp_path):
  import gradio as gr

  path = tmp_path / "notes.mp4"
  path.write_text("no video")
  with pytest.raises(gr.Error, match="notes"):
    studio.look([str(path)], "tiny", 8, 0.0, 0.0, "auto")
  with pytest.raises(gr.Error, match="upload one"):
    studio.make(None, "tiny", 8, 0, 0, "auto", "draft", 0, 0, 0)


@needs_gradio
def test_pictures_are_taken_in_the_order_of_their_numbers(app_page):
  names = ["a/frame10.png", "b/frame2.png", "c/frame1.png"]
  ordered = sorted(names, key=app_page._natural)
  assert ordered == ["c/frame1.png", "b/frame2.png", "a/frame10.png"]


@needs_gradio
def test_only_the_last_results_are_kept(studio, app_page):
  folders = [studio._new_folder() for _ in range(app_page._KEPT_RUNS + 2)]
  assert [folder.exists() for folder in folders[:3]] == [False, False, True]


@pytest.fixture
def address(tmp_path):
  """The address of a page that is served by the command."""
  with subprocess.Popen(
    [sys.executable, "-m", "sculpt4d_jax", "app"],
    cwd=tmp_path,
    env={
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "PYTHONUNBUFFERED": "1",
    },
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
          yield found[0]
          return
      pytest.fail("The page was not served.")
    finally:
      process.terminate()


@needs_gradio
@pytest.mark.slow  # Samples a clip: a minute.
@pytest.mark.skipif(
  chromium.find_chromium() is None, reason="needs Chromium or Chrome."
)
def test_from_upload_to_a_played_mesh(address, tmp_path):
  executable = chromium.find_chromium()
  with chromium.Page(executable, tmp_path / "profile", timeout=500) as page:
    page.call("Page.navigate", url=address)
    page.wait_for("!!document.querySelector('#clip input[type=file]')")
    document = page.call("DOM.getDocument")["root"]
    field = page.call(
      "DOM.querySelector",
      nodeId=document["nodeId"],
      selector="#clip input[type=file]",
    )
    page.call(
      "DOM.setFileInputFiles", nodeId=field["nodeId"], files=[str(CLIP)]
    )
    page.wait_for(
      "document.querySelector('#said').innerText.includes('cut out by')"
      " && !!document.querySelector('#cutout img')"
    )
    page.evaluate("document.querySelector('#make').click()")
    page.wait_for("!!document.querySelector('#viewer iframe')")
    inside = "document.querySelector('#viewer iframe').contentDocument"
    page.wait_for(
      f"/faces/.test({inside}.querySelector('#mesh-facts')?.textContent)"
    )
    page.evaluate(f"{inside}.querySelector('#play').click()")
    page.wait_for(
      f"{inside}.querySelector('#frame-counter').textContent.startsWith('4 ')"
    )
    link = "document.querySelector('#results a')"
    page.wait_for(f"!!{link}")
    archive = page.evaluate(f"{link}.href")
    content = page.evaluate(
      f"fetch({archive!r}).then((answer) => answer.arrayBuffer())"
      ".then((bytes) => Array.from(new Uint8Array(bytes)))"
    )
    elsewhere = [p for p in page.problems if re.search("the page asked", p)]
    assert not [p for p in elsewhere if address not in p and "ws:" not in p]
  path = tmp_path / "results.zip"
  path.write_bytes(bytes(content))
  names = zipfile.ZipFile(path).namelist()
  assert {"viewer.html", "animation.glb", "run.json"} <= set(names)
