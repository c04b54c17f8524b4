"""Pages that play a GLB in three.js, Babylon and model-viewer.

Each page has a function `pose(seconds)` that answers with the world positions of
all vertices as the viewer itself computes them, `{node name: [x, y, z, ...]}`. The
packages come from a folder of npm; nothing is taken from a network.
"""

import base64
import pathlib

# Packages of npm that a viewer needs.
PACKAGES = {
  "three.js": ("three",),
  "Babylon": ("babylonjs", "babylonjs-loaders"),
  "model-viewer": ("@google/model-viewer",),
}

_BYTES = """
const glb = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
"""

# The vertices of every mesh below a node of three.js, posed and in the world.
_THREE_VERTICES = """
function verticesBelow(root) {
  root.updateMatrixWorld(true);
  const found = {};
  root.traverse((mesh) => {
    const position = mesh.geometry?.attributes?.position;
    if (!mesh.isMesh || !position) return;
    for (let node = mesh; node; node = node.parent)
      if (!node.visible || Math.abs(node.scale.x) < 1e-6) return;
    const flat = [], at = mesh.position.clone();
    for (let index = 0; index < position.count; ++index) {
      mesh.getVertexPosition(index, at);
      at.applyMatrix4(mesh.matrixWorld);
      flat.push(at.x, at.y, at.z);
    }
    found[mesh.name] = flat;
  });
  return found;
}
"""

_THREE = """
<script type="importmap">{"imports": {"three": "%(folder)s/three/build/three.module.js",
  "three/addons/": "%(folder)s/three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import {GLTFLoader} from "three/addons/loaders/GLTFLoader.js";
%(bytes)s
%(vertices)s
const gltf = await new GLTFLoader().parseAsync(glb.buffer, "");
const mixer = new THREE.AnimationMixer(gltf.scene);
mixer.clipAction(gltf.animations[0]).play();
window.pose = (seconds) => {
  mixer.setTime(seconds);
  return verticesBelow(gltf.scene);
};
</script>
"""

_BABYLON = """
<canvas id="canvas" width="64" height="64"></canvas>
<script src="%(folder)s/babylonjs/babylon.js"></script>
<script src="%(folder)s/babylonjs-loaders/babylonjs.loaders.min.js"></script>
<script type="module">
%(bytes)s
const engine = new BABYLON.Engine(document.getElementById("canvas"));
const scene = new BABYLON.Scene(engine);
scene.useRightHandedSystem = true;
new BABYLON.FreeCamera("camera", new BABYLON.Vector3(0, 0, 5), scene);
const file = new File([glb], "asset.glb");
const loaded = await BABYLON.SceneLoader.ImportMeshAsync("", "", file, scene);
const group = loaded.animationGroups[0];
group.start(true);
group.pause();
window.pose = (seconds) => {
  // Loaded at 60 frames a second, Babylon's own unit of animation time.
  group.goToFrame(seconds * 60);
  scene.render();
  const found = {};
  for (const mesh of loaded.meshes) {
    if (!mesh.getTotalVertices()) continue;
    mesh.skeleton?.prepare(true);
    const world = mesh.computeWorldMatrix(true);
    if (Math.abs(world.determinant()) < 1e-12) continue;
    const flat = [];
    const data = mesh.getPositionData(true, true);
    for (let at = 0; at < data.length; at += 3) {
      const point = BABYLON.Vector3.TransformCoordinates(
        new BABYLON.Vector3(data[at], data[at + 1], data[at + 2]), world);
      flat.push(point.x, point.y, point.z);
    }
    found[mesh.name] = flat;
  }
  return found;
};
</script>
"""

_MODEL_VIEWER = """
<script src="%(folder)s/@google/model-viewer/dist/model-viewer-umd.min.js"></script>
<model-viewer id="viewer" style="width: 200px; height: 200px"></model-viewer>
<script type="module">
%(bytes)s
%(vertices)s
const viewer = document.getElementById("viewer");
const loaded = new Promise((done) => viewer.addEventListener("load", done));
viewer.src = URL.createObjectURL(new Blob([glb], {type: "model/gltf-binary"}));
await loaded;
viewer.animationName = viewer.availableAnimations[0];
await viewer.updateComplete;
viewer.play();
viewer.pause();
const scene = viewer[Object.getOwnPropertySymbols(viewer).find(
  (symbol) => symbol.description === "scene")];
window.pose = async (seconds) => {
  viewer.currentTime = seconds;
  await new Promise((done) => requestAnimationFrame(done));
  return verticesBelow(scene.model);
};
</script>
"""

_TEMPLATES = {
  "three.js": _THREE,
  "Babylon": _BABYLON,
  "model-viewer": _MODEL_VIEWER,
}


def missing(viewer: str, packages: pathlib.Path) -> list[str]:
  """The viewer's packages that a folder `node_modules` lacks."""
  return [
    name
    for name in PACKAGES[viewer]
    if not (packages / name / "package.json").is_file()
  ]


def page(viewer: str, glb: pathlib.Path, packages: pathlib.Path) -> str:
  """The page that plays a GLB.

  Args:
    viewer: A key of `PACKAGES`.
    glb: The file, embedded in the page.
    packages: A folder `node_modules`.

  Returns:
    HTML. To be opened from a file with `--allow-file-access-from-files`, as
    three.js consists of modules.
  """
  data = base64.b64encode(glb.read_bytes()).decode()
  body = _TEMPLATES[viewer] % {
    "folder": packages.resolve().as_uri(),
    "bytes": _BYTES % data,
    "vertices": _THREE_VERTICES,
  }
  return f"<!doctype html><meta charset=utf-8><body>{body}</body>"
