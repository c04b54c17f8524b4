import json
import re

import numpy as np
import pytest

from sculpt4d_jax.io.viewer import asset_layers
from tests.io import chromium
from tests.io import clips
from tests.io.meshes import textured_assets

FPS = textured_assets.FPS


def _page(kind="textured", **options):
  part = textured_assets.asset(kind)
  rig = textured_assets.bending_bar()[2]
  errors = np.linspace(0, 0.01, part.mesh.vertices[..., 0].size)
  errors = errors.reshape(part.mesh.vertices.shape[:2])
  options = {"rig": rig, "errors": errors, **options}
  return asset_layers.asset_page(part, FPS, clips.coloured_video(5), **options)


def _data(text):
  pattern = r'<script type="application/json" id="clip-data">(.*?)</script>'
  return json.loads(re.search(pattern, text, re.DOTALL)[1])


def test_the_page_holds_the_layers():
  asset = _data(_page())["asset"]
  assert asset["texture"].startswith("data:image/jpeg;base64,")
  assert asset["bones"]["parents"] == [-1, 0]
  assert len(asset["bones"]["frames"]) == len(asset["errors"]) == 5
  assert asset["errorLimit"] == pytest.approx(0.0099, rel=0.01)
  assert len(set(asset["trails"])) == asset_layers.NUM_TRAILS


def test_what_an_asset_lacks_is_left_out():
  asset = _data(_page("plain", rig=None, errors=None))["asset"]
  assert set(asset) == {"isLit", "trails"}


def test_errors_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"errors must be \[5, "):
    _page(errors=np.zeros((4, 7)))


@pytest.fixture(name="browser", scope="module")
def _browser(tmp_path_factory):
  executable = chromium.find_chromium()
  if executable is None:
    pytest.skip("no Chromium found: install the package chromium.")
  profile = tmp_path_factory.mktemp("profile")
  with chromium.Page(executable, profile, width=800, height=480) as page:
    yield page


def _shot(page):
  page.wait_for("!document.querySelector('#mesh-canvas[data-moving]')")
  left, top, width, height = map(round, page.rectangle("#mesh-canvas"))
  shot = page.screenshot()[top : top + height, left : left + width]
  return shot[60 : height - 60, 8:-8].astype(int)


def test_every_layer_changes_the_picture(browser, tmp_path):
  path = tmp_path / "asset.html"
  path.write_text(_page(), "utf-8")
  browser.problems.clear()
  browser.open(path)
  browser.wait_for("document.querySelector('#loading').hidden")
  browser.evaluate(
    "(() => { const scrub = document.querySelector('#scrub'); scrub.value = 2;"
    " scrub.dispatchEvent(new Event('input')); })()"
  )
  checked = "document.querySelector('[aria-checked=true]').dataset.shading"
  assert browser.evaluate(checked) == "texture"
  pictures = [_shot(browser)]
  for selector in ("#bones", "#onion", "#trails", "[data-shading=heat]"):
    browser.click(selector)
    pictures.append(_shot(browser))
    changed = np.abs(pictures[-1] - pictures[-2]).max(-1) > 24
    assert changed.mean() > 0.0005, selector
  browser.press("1", text="1")
  assert browser.evaluate(checked) == "clay"
  # Seam vertices carry the normals of the whole mesh.
  part = textured_assets.asset("textured")
  shown = browser.evaluate(
    "decodeMesh(clip.frames[0], clip).then(async (mesh) => {"
    " await decodeAsset(clip.asset, [mesh]); return [...mesh.normals]; })"
  )
  normals = np.reshape(shown, (-1, 4))[:, :3] / 127
  wanted = part.mesh.frame(0).vertex_normals()[part.vertex_map]
  np.testing.assert_allclose(normals, wanted, atol=0.03)
  assert not browser.problems
