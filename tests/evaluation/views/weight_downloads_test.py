"""Downloads with the libraries' functions replaced: no network is used."""

import sys
import types

import pytest

from sculpt4d_jax.evaluation.views import weight_downloads
from sculpt4d_jax.evaluation.views import weight_files

URL = "https://example.org/models/vgg16-397923af.pth"


@pytest.fixture(name="calls")
def _calls(monkeypatch):
  """Libraries that write small files in place of weights."""
  calls = []

  def from_url(url, path, hash_prefix):
    calls.append((url, hash_prefix))
    with open(path, "w") as file:
      file.write("trunk")

  def snapshot(repo, allow_patterns, local_dir):
    calls.append((repo, tuple(allow_patterns)))
    (local_dir / "config.json").write_text("{}")

  torch = types.ModuleType("torch")
  torch.hub = types.SimpleNamespace(download_url_to_file=from_url)
  vision = types.ModuleType("torchvision")
  weights = types.SimpleNamespace(IMAGENET1K_V1=types.SimpleNamespace(url=URL))
  vision.models = types.SimpleNamespace(VGG16_Weights=weights)
  hub = types.ModuleType("huggingface_hub")
  hub.snapshot_download = snapshot
  for module in (torch, vision, hub):
    monkeypatch.setitem(sys.modules, module.__name__, module)
  return calls


def test_only_missing_weights_are_downloaded(tmp_path, calls):
  folder = tmp_path / "weights"
  assert weight_downloads.download(folder) == ["vgg16", "clip_b32"]
  assert calls[0] == (URL, "397923af")
  assert calls[1][0] == "openai/clip-vit-base-patch32"
  assert weight_files.find(folder, "vgg16").read_text() == "trunk"
  assert (weight_files.find(folder, "clip_b32") / "config.json").is_file()
  assert weight_downloads.download(folder) == []
  assert len(calls) == 2
  assert sorted(path.name for path in folder.iterdir()) == [
    "clip-vit-base-patch32",
    "vgg16.pth",
  ]


def test_a_failed_download_leaves_nothing(tmp_path, calls, monkeypatch):
  def fail(*unused_arguments, **unused_options):
    raise OSError("no connection")

  monkeypatch.setattr(sys.modules["torch"].hub, "download_url_to_file", fail)
  with pytest.raises(ValueError, match="vgg16.* failed: no connection"):
    weight_downloads.download(tmp_path)
  assert not list(tmp_path.iterdir())
  (tmp_path / "vgg16.pth").write_text("trunk")
  monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fail)
  with pytest.raises(ValueError, match="patch32 failed: no connection"):
    weight_downloads.download(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["vgg16.pth"]


@pytest.mark.parametrize(
  ("module", "match"),
  [("torchvision", "torchvision"), ("huggingface_hub", "extra 'hub'")],
)
def test_a_missing_library_is_named(
  tmp_path, calls, monkeypatch, module, match
):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=match):
    weight_downloads.download(tmp_path)
