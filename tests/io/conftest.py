"""Fixtures of the tests of the files."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture(name="tiny_disk")
def _tiny_disk(tmp_path):
  """A file system of 64 kB, where this system lets the test make one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
  if not hasattr(os, "geteuid") or os.geteuid() or not shutil.which("mount"):
    pytest.skip("mounting a small file system needs root and mount.")
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip("this system does not allow mounting a tmpfs.")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)
