'use strict';

/**
 * What the page shows of an asset of one topology, besides its surface: the
 * texture, a heat map of errors, bones, neighbouring frames, trails of points.
 *
 * `clip.asset` has them; a clip of changing meshes has none.
 */

const SHOWN_GHOSTS = [-2, -1, 1, 2];  // Frames of the onion skin.

const LAYER_VERTEX_SHADER = `
  attribute vec3 position;
  attribute vec3 normal;
  attribute vec2 uv;
  attribute float heat;
  uniform mat4 viewProjection;
  varying vec3 worldNormal;
  varying vec2 place;
  varying float warmth;
  void main() {
    worldNormal = normal;
    place = uv;
    warmth = heat;
    gl_Position = viewProjection * vec4(position, 1.0);
  }`;

const TEXTURE_FRAGMENT_SHADER = `
  precision highp float;
  varying vec3 worldNormal;
  varying vec2 place;
  uniform sampler2D image;
  uniform vec3 keyLight;
  uniform float lit;
  void main() {
    vec3 color = texture2D(image, place).rgb;
    float key = clamp((dot(normalize(worldNormal), keyLight) + 0.4) / 1.4,
                      0.0, 1.0);
    gl_FragColor = vec4(color * mix(1.0, pow(0.25 + 0.75 * key, 0.4545), lit),
                        1.0);
  }`;

// A colour map from blue over green and yellow to red.
const HEAT_FRAGMENT_SHADER = `
  precision highp float;
  varying vec3 worldNormal;
  varying float warmth;
  uniform vec3 keyLight;
  void main() {
    float t = clamp(warmth, 0.0, 1.0);
    vec3 color = clamp(vec3(1.5) - abs(4.0 * t - vec3(3.0, 2.0, 1.0)),
                       0.0, 1.0);
    float key = clamp((dot(normalize(worldNormal), keyLight) + 1.0) / 2.0,
                      0.0, 1.0);
    gl_FragColor = vec4(color * (0.55 + 0.45 * key), 1.0);
  }`;

const GHOST_FRAGMENT_SHADER = `
  precision mediump float;
  varying vec3 worldNormal;
  uniform vec4 color;
  uniform vec3 toEye;
  void main() {
    float rim = 1.0 - abs(dot(normalize(worldNormal), toEye));
    float alpha = color.a * (0.25 + 0.75 * rim);
    gl_FragColor = vec4(color.rgb * alpha, alpha);
  }`;

/** A renderer with the layers of an asset. */
class AssetRenderer extends MeshRenderer {
  constructor(canvas, bounds, meshes, asset, onReady) {
    super(canvas, bounds);
    this.meshes = meshes;
    this.asset = asset;
    if (asset.texture) {
      this.picture = new Image();
      this.picture.onload = () => {
        this.texture = null;
        onReady();
      };
      this.picture.src = asset.texture;
    }
  }

  initialize() {
    super.initialize();
    const make = (shader) => this.makeProgram(LAYER_VERTEX_SHADER, shader);
    this.programs.texture = make(TEXTURE_FRAGMENT_SHADER);
    this.programs.heat = make(HEAT_FRAGMENT_SHADER);
    this.programs.ghost = make(GHOST_FRAGMENT_SHADER);
    this.texture = null;
    this.fixed = {};
  }

  draw(mesh, camera, look) {
    super.draw(mesh, camera, look);
    const {width, height} = this.canvas;
    const view = viewOf(camera.eye, camera.target);
    const distance = Math.hypot(...subtract(camera.eye, camera.target));
    const near = Math.max(distance - 4 * camera.radius, distance / 100);
    const matrix = multiply(
        projectionOf(FIELD_OF_VIEW, width / height, near,
            distance + 8 * camera.radius),
        view.matrix);
    if (look.layers.onion) this.drawGhosts(matrix, view, look);
    if (look.layers.trails) this.drawTrails(matrix, look);
    if (look.layers.bones) this.drawBones(matrix, look);
  }

  drawSurface(upload, viewProjection, view, camera, look) {
    const isReady = look.shading === 'heat' ||
        look.shading === 'texture' && this.picture && this.picture.complete;
    if (!isReady) {
      super.drawSurface(upload, viewProjection, view, camera, look);
      return;
    }
    const gl = this.gl;
    const program = this.use(look.shading);
    const keyLight = normalized([0, 1, 2].map((i) => -0.4 * view.right[i] +
        0.6 * view.up[i] + 0.9 * view.back[i]));
    gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
    gl.uniform3fv(program.keyLight, keyLight);
    this.bindMesh(program, upload);
    if (look.shading === 'texture') {
      gl.uniform1f(program.lit, this.asset.isLit ? 1 : 0);
      gl.bindTexture(gl.TEXTURE_2D, this.uploadTexture());
      const places = this.fixedBuffer('uv', () => this.asset.places);
      this.bindAttribute(program.uv, places, 2, gl.FLOAT, 0);
    } else {
      const heat = this.fixedBuffer(
          `heat ${look.frame}`, () => this.asset.heat[look.frame]);
      this.bindAttribute(program.heat, heat, 1, gl.FLOAT, 0);
    }
    gl.enable(gl.DEPTH_TEST);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, upload.corners);
    gl.drawElements(gl.TRIANGLES, upload.cornerCount, upload.indexType, 0);
    gl.disable(gl.DEPTH_TEST);
  }

  /** Neighbouring frames: earlier ones cool, later ones warm. */
  drawGhosts(viewProjection, view, look) {
    const gl = this.gl;
    for (const offset of SHOWN_GHOSTS) {
      const mesh = this.meshes[look.frame + offset];
      if (!mesh || !mesh.faceCount) continue;
      const upload = this.upload(mesh);
      const program = this.use('ghost');
      const alpha = 0.5 / Math.abs(offset);
      gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
      gl.uniform3fv(program.toEye, view.back);
      gl.uniform4fv(program.color, offset < 0 ?
          [0.2, 0.45, 0.85, alpha] : [0.9, 0.45, 0.15, alpha]);
      gl.enable(gl.DEPTH_TEST);
      gl.depthMask(false);
      this.enableBlending();
      this.bindMesh(program, upload);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, upload.corners);
      gl.drawElements(gl.TRIANGLES, upload.cornerCount, upload.indexType, 0);
      gl.depthMask(true);
      gl.disable(gl.BLEND);
      gl.disable(gl.DEPTH_TEST);
    }
  }

  /** The paths of some points up to the shown frame. */
  drawTrails(viewProjection, look) {
    const ends = [];
    for (const id of this.asset.trails) {
      for (let frame = 0; frame < look.frame; frame++) {
        for (const mesh of [this.meshes[frame], this.meshes[frame + 1]]) {
          ends.push(...mesh.positions.subarray(3 * id, 3 * id + 3));
        }
      }
    }
    this.drawSegments(ends, viewProjection, [0.85, 0.25, 0.1, 0.85]);
  }

  /** Bones as thin octahedra over the surface, joints at their heads. */
  drawBones(viewProjection, look) {
    const ends = [];
    const {bones} = this.asset;
    const places = bones.frames[look.frame];
    const at = (list, i) => list.slice(3 * i, 3 * i + 3);
    for (let bone = 0; bone < bones.parents.length; bone++) {
      const head = at(places, bone);
      const tip = at(bones.tips[look.frame], bone);
      const way = subtract(tip, head);
      const length = Math.hypot(...way) || 1;
      const helper = Math.abs(way[1]) < 0.9 * length ? [0, 1, 0] : [1, 0, 0];
      const side = normalized(cross(way, helper));
      const other = normalized(cross(way, side));
      const ring = [side, other, side.map((x) => -x), other.map((x) => -x)]
          .map((direction) => head.map((value, i) =>
            value + 0.2 * way[i] + 0.08 * length * direction[i]));
      for (let i = 0; i < 4; i++) {
        ends.push(...head, ...ring[i], ...ring[i], ...tip,
            ...ring[i], ...ring[(i + 1) % 4]);
      }
      const parent = bones.parents[bone];
      if (parent >= 0) ends.push(...at(places, parent), ...head);
    }
    this.drawSegments(ends, viewProjection,
        look.isDark ? [0.95, 0.9, 0.5, 0.95] : [0.1, 0.25, 0.55, 0.95]);
  }

  drawSegments(ends, viewProjection, color) {
    if (!ends.length) return;
    const gl = this.gl;
    const program = this.use('line');
    const buffer = this.makeBuffer(gl.ARRAY_BUFFER, new Float32Array(ends));
    gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
    gl.uniform4fv(program.color, color);
    this.enableBlending();
    this.bindAttribute(program.position, buffer, 3, gl.FLOAT, 0);
    gl.drawArrays(gl.LINES, 0, ends.length / 3);
    gl.disable(gl.BLEND);
    gl.deleteBuffer(buffer);
  }

  fixedBuffer(name, values) {
    if (!this.fixed[name]) {
      this.fixed[name] = this.makeBuffer(this.gl.ARRAY_BUFFER, values());
    }
    return this.fixed[name];
  }

  uploadTexture() {
    if (this.texture) return this.texture;
    const gl = this.gl;
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(
        gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, this.picture);
    for (const [name, value] of [
      [gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR],
      [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
      [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
    ]) {
      gl.texParameteri(gl.TEXTURE_2D, name, value);
    }
    return this.texture;
  }
}

/** Unpacks the layers, and gives seam vertices the unsplit mesh's normals. */
async function decodeAsset(packed, meshes) {
  if (!packed) return null;
  const asset = {...packed};
  const numbers = async (text, kind) => new kind(
      (await inflate(text)).buffer);
  if (packed.uv) {
    asset.places = Float32Array.from(
        await numbers(packed.uv, Uint16Array), (value) => value / 65535);
    const same = await numbers(packed.welds, Uint32Array);
    for (const mesh of meshes) weldNormals(mesh, same);
  }
  if (packed.errors) {
    asset.heat = [];
    for (const text of packed.errors) {
      asset.heat.push(Float32Array.from(
          await inflate(text), (value) => value / 255));
    }
  }
  return asset;
}

/** `same` has one common vertex for all vertices at a position. */
function weldNormals(mesh, same) {
  const corners = mesh.corners.map((corner) => same[corner]);
  const normals = vertexNormals(mesh.positions, corners);
  mesh.normals = new Int8Array(normals.length);
  for (let i = 0; i < same.length; i++) {
    mesh.normals.set(normals.subarray(4 * same[i], 4 * same[i] + 4), 4 * i);
  }
}

/** Shows the controls of an asset's layers; calls back when one is used. */
function connectLayers(asset, layers, onChange) {
  const has = {
    'bones': asset && asset.bones,
    'onion': asset && frameCount > 1,
    'trails': asset && asset.trails && asset.trails.length && frameCount > 1,
  };
  byId('layers').hidden = !Object.values(has).some(Boolean);
  for (const [name, isThere] of Object.entries(has)) {
    const button = byId(name);
    button.hidden = !isThere;
    button.addEventListener('click', () => {
      layers[name] = !layers[name];
      button.setAttribute('aria-pressed', layers[name]);
      onChange();
    });
  }
  const shading = (name) => document.querySelector(`[data-shading=${name}]`);
  shading('texture').hidden = !(asset && asset.texture);
  shading('heat').hidden = !(asset && asset.heat);
  if (asset && asset.heat) {
    shading('heat').title =
        `Error; red is ${asset.errorLimit.toPrecision(2)} of the size (5)`;
  }
}
