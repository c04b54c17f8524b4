"""The Khronos glTF validator, where node and its module are installed.

The module (npm install gltf-validator) is looked for in $GLTF_VALIDATOR_DIR,
below the working folder, and among node's global modules.
"""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

_SCRIPT = """
const validator = require(process.argv[1]);
const bytes = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validator.validateBytes(bytes).then(
    (report) => console.log(JSON.stringify(report)));
"""


def validate(path: pathlib.Path) -> dict:
  """The validator's report on a file; skips the test if there is none."""
  module = _find_module()
  if module is None:
    pytest.skip(
      "the Khronos glTF validator is not installed: npm install"
      " gltf-validator, here or in the folder GLTF_VALIDATOR_DIR names."
    )
  result = subprocess.run(
    ["node", "-e", _SCRIPT, str(module.resolve()), str(path)],
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(result.stdout)


def _find_module() -> pathlib.Path | None:
  if not shutil.which("node"):
    return None
  roots = [pathlib.Path("node_modules")]
  if folder := os.environ.get("GLTF_VALIDATOR_DIR"):
    roots += [pathlib.Path(folder), pathlib.Path(folder) / "node_modules"]
  if shutil.which("npm"):
    answer = subprocess.run(
      ["npm", "root", "-g"], capture_output=True, text=True, check=False
    )
    roots.append(pathlib.Path(answer.stdout.strip() or "node_modules"))
  modules = [root / "gltf-validator" for root in roots]
  return next((m for m in modules if (m / "package.json").is_file()), None)
