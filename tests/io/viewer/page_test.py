import html.parser
import json
import os
import re

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import viewer
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.viewer import mesh_packing
from tests.io import chromium
from tests.io import clips
from tests.io.viewer import unpacking

TITLE = "A <b>bold</b> clip & {{data}} </script>"


def _written(tmp_path, name="clip.html", **options):
  path = tmp_path / name
  options = {"meshes": clips.changing_clip(4), "fps": 8, **options}
  viewer.write_viewer(path, **options)
  return path


def _data(path):
  text = path.read_text("utf-8")
  pattern = r'<script type="application/json" id="clip-data">(.*?)</script>'
  return json.loads(re.search(pattern, text, re.DOTALL)[1])


class _Parser(html.parser.HTMLParser):
  """Collects the tags, and the text outside of scripts and styles."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts = [], []
    self._hidden = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._hidden = tag in ("script", "style")

  def handle_endtag(self, tag):
    self._hidden = False

  def handle_data(self, data):
    if not self._hidden and data.strip():
      self.texts.append(data.strip())


# Packing.


def test_packed_meshes_keep_faces_and_round_positions():
  meshes = clips.changing_clip(4)
  quantization = mesh_packing.clip_quantization(meshes)
  for mesh in meshes:
    packed = mesh_packing.pack_mesh(mesh, quantization)
    shown = unpacking.unpack_mesh(packed, quantization)
    np.testing.assert_array_equal(shown.faces, mesh.faces)
    np.testing.assert_allclose(
      shown.vertices, mesh.vertices, atol=0.51 * quantization.step
    )


def test_the_cube_of_a_clip_by_hand():
  low = clips.TriangleMesh([[-1, 0, 0], [0, 0.5, 0], [0, 0, 0.25]], [[0, 1, 2]])
  quantization = mesh_packing.clip_quantization(
    [clips.TRIANGLE, ply_obj.empty_mesh(), low]
  )
  assert quantization.origin == (-1, 0, 0)
  assert quantization.step == pytest.approx(2 / 65535)


def test_packing_halves_the_arrays():
  mesh = clips.bumpy_sphere(0.0, 4)
  packed = mesh_packing.pack_mesh(mesh, mesh_packing.clip_quantization([mesh]))
  assert len(packed["data"]) < 0.5 * (mesh.vertices.nbytes + mesh.faces.nbytes)


# The file.


def test_the_page_needs_nothing_but_itself(tmp_path):
  path = _written(tmp_path, video_frames=clips.coloured_video(4))
  text = path.read_text("utf-8")
  for tag, attributes in _Parser(text).tags:
    assert tag not in ("iframe", "object", "embed", "base"), tag
    assert not (tag == "script" and "src" in attributes)
    if "href" in attributes:
      assert attributes["href"].startswith("data:")
  assert "default-src 'none'" in text
  assert not re.search(r"@import|url\((?!\"data:)", text)
  assert os.listdir(tmp_path) == ["clip.html"]


def test_titles_and_details_are_text_not_markup(tmp_path):
  details = {"input": "</script><img src=x>.mp4", "half": 0.5, "sparse": True}
  path = _written(tmp_path, title=TITLE, details=details)
  parser = _Parser(path.read_text("utf-8"))
  assert parser.texts.count(TITLE) == 2  # In <title> and <h1>.
  start = parser.texts.index("input")
  assert parser.texts[start : start + 6] == [
    "input",
    "</script><img src=x>.mp4",
    "half",
    "0.5",
    "sparse",
    "yes",
  ]
  assert _data(path)["fps"] == 8


def test_the_page_holds_every_frame(tmp_path):
  data = _data(_written(tmp_path, video_frames=clips.coloured_video(4)))
  assert [frame["faces"] for frame in data["frames"]] == [320, 1280, 0, 1280]
  assert len(data["pictures"]) == 4
  assert data["pictures"][0].startswith("data:image/jpeg;base64,")


def test_large_frames_are_simplified_for_the_page(tmp_path):
  meshes = [clips.bumpy_sphere(0.0, 4)]
  data = _data(_written(tmp_path, meshes=meshes, max_faces=600))
  assert 400 <= data["frames"][0]["faces"] <= 600
  data = _data(_written(tmp_path, meshes=meshes, max_faces=None))
  assert data["frames"][0]["faces"] == meshes[0].num_faces


def test_the_same_input_gives_the_same_page(tmp_path):
  video = clips.coloured_video(4)
  pages = [
    _written(tmp_path, name, video_frames=video).read_bytes()
    for name in ("a.html", "b.html")
  ]
  assert pages[0] == pages[1]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"video_frames": clips.coloured_video(3)}, "4 meshes but 3 video"),
    ({"video_frames": np.zeros((4, 8, 8, 3))}, "must be uint8"),
    ({"video_frames": np.zeros((4, 8, 8, 4), "u1")}, r"\[F, h, w, 3\]"),
    ({"meshes": []}, "at least one frame"),
    ({"fps": -1}, "fps must be a positive number"),
    ({"name": "clip.txt"}, "ending in .html or .htm"),
    ({"max_faces": 0}, "max_faces must be 4 or more"),
  ],
)
def test_bad_input_is_refused(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    _written(tmp_path, **options)
  assert not os.listdir(tmp_path)


def test_a_full_disk_leaves_nothing(tiny_disk):
  with pytest.raises(atomic.OutputError, match="clip.html: No space left"):
    _written(tiny_disk, meshes=[clips.bumpy_sphere(0.0, 5)] * 4)
  assert not os.listdir(tiny_disk)


# The page in a browser.


@pytest.fixture(name="browser", scope="module")
def _browser(tmp_path_factory):
  executable = chromium.find_chromium()
  if executable is None:
    pytest.skip(
      "no Chromium found: install the package chromium, or set CHROMIUM to"
      " the path of a Chromium or Chrome."
    )
  profile = tmp_path_factory.mktemp("profile")
  with chromium.Page(executable, profile, width=800, height=480) as page:
    yield page


@pytest.fixture(name="page")
def _page(browser, tmp_path):
  """The page of a clip whose third frame is empty, with a video."""
  _open(browser, _written(tmp_path, video_frames=clips.coloured_video(4)))
  yield browser
  assert not browser.problems
  browser.resize(800, 480)


def _open(browser, path):
  browser.problems.clear()
  browser.open(path)
  browser.wait_for("document.querySelector('#loading').hidden")


def _text(page, selector):
  return page.evaluate(f"document.querySelector('{selector}').textContent")


def _stage(page, rest=True):
  """The picture of the mesh once it has come to rest, without the buttons."""
  if rest:
    page.wait_for("!document.querySelector('#mesh-canvas[data-moving]')")
  left, top, width, height = map(round, page.rectangle("#mesh-canvas"))
  shot = page.screenshot()[top : top + height, left : left + width]
  return shot[60 : height - 40, 8:-8].astype(int)


def _changed(first, second):
  """The share of pixels in which two pictures differ visibly."""
  return (np.abs(first - second).max(axis=-1) > 24).mean()


def _seek(page, frame):
  page.evaluate(
    f"(() => {{ const scrub = document.querySelector('#scrub');"
    f" scrub.value = {frame}; scrub.dispatchEvent(new Event('input')); }})()"
  )


def test_play_runs_through_the_frames_beside_the_video(page):
  assert _text(page, "#frame-counter") == "1 / 4"
  pictures = page.evaluate("clip.pictures")
  source = "document.querySelector('#input-frame').src"
  assert page.evaluate(source) == pictures[0]
  page.evaluate(
    "window.seen = []; new MutationObserver(() => seen.push("
    "document.querySelector('#frame-counter').textContent)).observe("
    "document.querySelector('#frame-counter'), {childList: true})"
  )
  page.click("#play")
  page.wait_for("new Set(seen).size === 4")  # And round again to the first.
  page.click("#play")
  frame = int(_text(page, "#frame-counter").split()[0]) - 1
  assert page.evaluate(source) == pictures[frame]
  assert page.evaluate("document.querySelector('#scrub').valueAsNumber") == (
    frame
  )
  paused = _text(page, "#frame-counter")
  page.wait_for("new Promise((done) => setTimeout(() => done(true), 400))")
  assert _text(page, "#frame-counter") == paused


def test_each_frame_is_played_for_its_own_time(page, tmp_path):
  even = page.evaluate("clip.edges")
  assert even == [0, 0.125, 0.25, 0.375, 0.5]
  data = _data(_written(tmp_path, times=[0, 0.1, 2, 3]))
  assert data["edges"] == [0, 0.1, 2, 3, 4] and not data["isEven"]
  shown = page.evaluate(
    f"(() => {{ const even = clip.edges; clip.edges = {data['edges']};"
    " const shown = [0.05, 0.1, 1.9, 2.5, 3.5].map(frameAt);"
    " clip.edges = even; return shown; })()"
  )
  assert shown == [0, 1, 1, 2, 3]


def test_the_mesh_is_visible_in_a_screenshot(page, tmp_path):
  pictures = {}
  for frame in range(4):
    _seek(page, frame)
    pictures[frame] = _stage(page)
  Image.fromarray(page.screenshot()).save(tmp_path / "screenshot.png")
  for frame in (0, 1, 3):  # Frame 2 has no surface: it is the background.
    assert 0.1 < _changed(pictures[frame], pictures[2]) < 0.9
  assert _changed(pictures[0], pictures[1]) > 0.01
  assert "No surface" not in _text(page, "#mesh-facts")
  _seek(page, 2)
  assert _text(page, "#mesh-facts") == "No surface in this frame"


def test_the_page_unpacks_what_was_packed(page):
  meshes = clips.changing_clip(4)
  quantization = mesh_packing.clip_quantization(meshes)
  for index in (0, 1):
    packed = mesh_packing.pack_mesh(meshes[index], quantization)
    wanted = unpacking.unpack_mesh(packed, quantization)
    shown = page.evaluate(
      f"decodeMesh(clip.frames[{index}], clip).then((mesh) => ({{"
      "positions: [...mesh.positions], corners: [...mesh.corners],"
      " normals: [...mesh.normals]}))"
    )
    np.testing.assert_array_equal(shown["corners"], wanted.faces.reshape(-1))
    np.testing.assert_allclose(
      shown["positions"], wanted.vertices.reshape(-1), atol=1e-6
    )
    normals = np.reshape(shown["normals"], (-1, 4))[:, :3] / 127
    np.testing.assert_allclose(normals, wanted.vertex_normals(), atol=0.02)


def test_mouse_wheel_and_keys_move_the_view(page):
  home = _stage(page)
  left, top, width, height = page.rectangle("#mesh-canvas")
  middle = (left + width / 2, top + height / 2)
  page.drag(middle, (120, 40))
  turned = _stage(page)
  assert _changed(home, turned) > 0.02
  page.drag(middle, (90, 0), button="right")
  moved = _stage(page)
  assert _changed(turned, moved) > 0.05
  page.call(
    "Input.dispatchMouseEvent",
    type="mouseWheel",
    x=middle[0],
    y=middle[1],
    deltaX=0,
    deltaY=600,
  )
  assert _changed(moved, _stage(page)) > 0.05
  page.press("r", text="r")
  assert _changed(home, _stage(page)) < 0.005
  page.press("ArrowRight", "ArrowRight")
  assert _text(page, "#frame-counter") == "2 / 4"
  page.press("End", "End")
  assert _text(page, "#frame-counter") == "4 / 4"
  page.press(" ", "Space", text=" ")
  page.wait_for("document.querySelector('#play').ariaLabel === 'Pause'")


def test_shadings_differ_and_the_turntable_turns(page):
  clay = _stage(page)
  for name in ("normals", "wireframe"):
    page.click(f"[data-shading={name}]")
    assert _changed(clay, _stage(page)) > 0.05
    assert (
      page.evaluate(
        f"document.querySelector('[data-shading={name}]').ariaChecked"
      )
      == "true"
    )
  page.click("[data-shading=clay]")
  page.click("#turntable")
  first = _stage(page, rest=False)
  page.wait_for("new Promise((done) => setTimeout(() => done(true), 400))")
  assert _changed(first, _stage(page, rest=False)) > 0.01


def test_without_loop_the_clip_ends_on_its_last_frame(page):
  page.click("#loop")
  page.click("#play")
  page.wait_for("document.querySelector('#play').ariaLabel === 'Play'")
  assert _text(page, "#frame-counter") == "4 / 4"
  page.click("#play")
  page.wait_for(
    "document.querySelector('#frame-counter').textContent !== '4 / 4'"
  )


def test_the_video_is_beside_the_mesh_and_above_it_on_a_phone(page):
  video, mesh = page.rectangle("#input-frame"), page.rectangle("#mesh-canvas")
  assert video[0] + video[2] <= mesh[0]
  page.resize(390, 844)
  page.wait_for("document.querySelector('#mesh-canvas').clientWidth < 390")
  video, mesh = page.rectangle("#input-frame"), page.rectangle("#mesh-canvas")
  controls = page.rectangle("#transport")
  assert video[1] + video[3] <= mesh[1] and mesh[1] + mesh[3] <= controls[1]
  assert mesh[2] > 340 and mesh[3] > 250
  assert controls[1] + controls[3] <= 844
  assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_every_control_has_a_name(page):
  names = page.evaluate(
    "[...document.querySelectorAll('button, input, select, canvas, img')]"
    ".map((e) => (e.ariaLabel || e.alt || e.textContent || '').trim())"
  )
  assert len(names) > 12 and all(names)


def test_a_lost_context_is_said_and_comes_back(page):
  home = _stage(page)
  page.evaluate(
    "window.loser = document.querySelector('#mesh-canvas')"
    ".getContext('webgl2').getExtension('WEBGL_lose_context');"
    " loser.loseContext()"
  )
  page.wait_for("!document.querySelector('#message').hidden")
  assert "lost" in _text(page, "#message-title")
  page.evaluate("loser.restoreContext()")
  page.wait_for("document.querySelector('#message').hidden")
  assert _changed(home, _stage(page)) < 0.005
  # Chromium notes the loss that the test asked for.
  page.problems[:] = [p for p in page.problems if "CONTEXT_LOST" not in p]


@pytest.fixture(name="before_load")
def _before_load(browser):
  """Runs a script in each new page of the test before the page's own."""
  added = []

  def add(script):
    added.append(
      browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    )

  yield add
  for script in added:
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)


_WITHOUT = (
  "const get = HTMLCanvasElement.prototype.getContext;"
  "HTMLCanvasElement.prototype.getContext = function(kind, options) {"
  " return %s.includes(kind) ? null : get.call(this, kind, options); }"
)


def test_webgl_1_is_enough(browser, before_load, tmp_path):
  before_load(_WITHOUT % "['webgl2']")
  meshes = [clips.bumpy_sphere(0.0, 3), ply_obj.empty_mesh()]
  _open(browser, _written(tmp_path, meshes=meshes))
  full = _stage(browser)
  _seek(browser, 1)
  assert _changed(full, _stage(browser)) > 0.1
  assert not browser.problems


def test_a_browser_without_webgl_says_so(browser, before_load, tmp_path):
  before_load(_WITHOUT % "['webgl2', 'webgl']")
  _open(browser, _written(tmp_path, video_frames=clips.coloured_video(4)))
  assert "needs WebGL" in _text(browser, "#message-title")
  browser.click("#next")  # The video can still be stepped through.
  assert _text(browser, "#frame-counter") == "2 / 4"
  assert not browser.problems


def test_a_single_picture_has_no_playback(browser, tmp_path):
  path = _written(tmp_path, meshes=[clips.bumpy_sphere(0.0, 3)])
  _open(browser, path)
  assert _text(browser, "#frame-counter") == "1 / 1"
  assert browser.evaluate("document.querySelector('#play').disabled")
  assert browser.evaluate("document.querySelector('#side').hidden")
  assert "1 frame ·" in _text(browser, "#summary")
  assert not browser.problems
