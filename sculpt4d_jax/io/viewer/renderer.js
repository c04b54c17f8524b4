'use strict';

/**
 * Draws one mesh of a clip with WebGL 2, or WebGL 1 as a fallback:
 * clay, normals or wireframe, over a soft shadow on the floor.
 *
 * World space is right-handed with y up. Matrices are column-major.
 */

const FIELD_OF_VIEW = 35 * Math.PI / 180;
const SHADOW_SIZE = 256;

const MESH_VERTEX_SHADER = `
  attribute vec3 position;
  attribute vec3 normal;
  uniform mat4 viewProjection;
  varying vec3 worldNormal;
  varying vec3 worldPosition;
  void main() {
    worldNormal = normal;
    worldPosition = position;
    gl_Position = viewProjection * vec4(position, 1.0);
  }`;

const MESH_FRAGMENT_SHADER = `
  precision highp float;
  varying vec3 worldNormal;
  varying vec3 worldPosition;
  uniform vec3 eye;
  uniform vec3 keyLight;
  uniform vec3 rimLight;
  uniform vec3 albedo;
  uniform float showNormals;
  void main() {
    vec3 n = normalize(worldNormal);
    vec3 v = normalize(eye - worldPosition);
    if (dot(n, v) < 0.0 && !gl_FrontFacing) n = -n;
    if (showNormals > 0.5) {
      gl_FragColor = vec4(n * 0.5 + 0.5, 1.0);
      return;
    }
    float key = clamp((dot(n, keyLight) + 0.25) / 1.25, 0.0, 1.0);
    float rim = clamp(dot(n, rimLight), 0.0, 1.0);
    float sky = 0.5 + 0.5 * n.y;
    float grazing = pow(1.0 - clamp(dot(n, v), 0.0, 1.0), 4.0);
    vec3 light = mix(vec3(0.11, 0.085, 0.075), vec3(0.21, 0.235, 0.275), sky)
        + vec3(1.0, 0.95, 0.88) * 0.86 * key
        + vec3(0.80, 0.88, 1.0) * 0.16 * rim;
    vec3 halfway = normalize(keyLight + v);
    float gloss = 0.06 * pow(clamp(dot(n, halfway), 0.0, 1.0), 22.0);
    vec3 color = albedo * light + gloss + 0.09 * grazing * (0.35 + 0.65 * sky);
    gl_FragColor = vec4(pow(color, vec3(1.0 / 2.2)), 1.0);
  }`;

const LINE_FRAGMENT_SHADER = `
  precision mediump float;
  uniform vec4 color;
  void main() { gl_FragColor = vec4(color.rgb * color.a, color.a); }`;

// Seen from below: the lower a surface, the darker its shadow.
const CAST_VERTEX_SHADER = `
  attribute vec3 position;
  uniform vec4 floorSquare;  // Centre x, floor y, centre z, half side.
  uniform float ceiling;
  varying float closeness;
  void main() {
    float height = (position.y - floorSquare.y) / ceiling;
    closeness = 1.0 - height;
    gl_Position = vec4((position.xz - floorSquare.xz) / floorSquare.w,
                       height * 1.9 - 0.95, 1.0);
  }`;

const CAST_FRAGMENT_SHADER = `
  precision mediump float;
  varying float closeness;
  void main() {
    float near = clamp(closeness, 0.0, 1.0);
    gl_FragColor = vec4(0.12 + 0.88 * near * near * near);
  }`;

const BLUR_VERTEX_SHADER = `
  attribute vec2 corner;
  varying vec2 place;
  void main() {
    place = corner * 0.5 + 0.5;
    gl_Position = vec4(corner, 0.0, 1.0);
  }`;

const BLUR_FRAGMENT_SHADER = `
  precision mediump float;
  varying vec2 place;
  uniform sampler2D image;
  uniform vec2 stride;
  void main() {
    float sum = 0.0;
    float total = 0.0;
    for (int i = -8; i <= 8; i++) {
      float weight = exp(-float(i * i) / 24.0);
      sum += weight * texture2D(image, place + stride * float(i)).a;
      total += weight;
    }
    gl_FragColor = vec4(sum / total);
  }`;

const FLOOR_VERTEX_SHADER = `
  attribute vec2 corner;
  uniform mat4 viewProjection;
  uniform vec4 floorSquare;
  varying vec2 place;
  void main() {
    place = corner * 0.5 + 0.5;
    vec2 xz = floorSquare.xz + corner * floorSquare.w;
    gl_Position = viewProjection * vec4(xz.x, floorSquare.y, xz.y, 1.0);
  }`;

const FLOOR_FRAGMENT_SHADER = `
  precision mediump float;
  varying vec2 place;
  uniform sampler2D image;
  uniform float strength;
  void main() {
    float alpha = strength * texture2D(image, place).a;
    gl_FragColor = vec4(0.0, 0.0, 0.0, alpha);
  }`;

/** The transform and the axes of a camera that looks from `eye` at `target`. */
function viewOf(eye, target) {
  const back = normalized(subtract(eye, target));
  const right = normalized(cross([0, 1, 0], back));
  const up = cross(back, right);
  const matrix = new Float32Array([
    right[0], up[0], back[0], 0,
    right[1], up[1], back[1], 0,
    right[2], up[2], back[2], 0,
    -dot(right, eye), -dot(up, eye), -dot(back, eye), 1,
  ]);
  return {matrix, right, up, back};
}

/** A perspective projection. */
function projectionOf(fieldOfView, aspect, near, far) {
  const scale = 1 / Math.tan(fieldOfView / 2);
  return new Float32Array([
    scale / aspect, 0, 0, 0,
    0, scale, 0, 0,
    0, 0, (far + near) / (near - far), -1,
    0, 0, 2 * far * near / (near - far), 0,
  ]);
}

function multiply(a, b) {
  const product = new Float32Array(16);
  for (let column = 0; column < 4; column++) {
    for (let row = 0; row < 4; row++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += a[k * 4 + row] * b[column * 4 + k];
      product[column * 4 + row] = sum;
    }
  }
  return product;
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const subtract = (a, b) => a.map((value, i) => value - b[i]);
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];
const normalized = (a) => {
  const length = Math.hypot(...a) || 1;
  return a.map((value) => value / length);
};

class MeshRenderer {
  /**
   * @param {HTMLCanvasElement} canvas Where to draw.
   * @param {{low: number[], high: number[]}} bounds The clip's box.
   * Throws an Error if the browser gives no WebGL context.
   */
  constructor(canvas, bounds) {
    const options = {antialias: true, alpha: true, premultipliedAlpha: true};
    this.canvas = canvas;
    this.gl = canvas.getContext('webgl2', options) ||
        canvas.getContext('webgl', options);
    if (!this.gl) throw new Error('no WebGL context');
    this.bounds = bounds;
    this.initialize();
  }

  /** Makes all resources; also after a lost context was restored. */
  initialize() {
    const gl = this.gl;
    this.hasWideIndices = 'drawBuffers' in gl ||
        Boolean(gl.getExtension('OES_element_index_uint'));
    this.programs = {
      mesh: this.makeProgram(MESH_VERTEX_SHADER, MESH_FRAGMENT_SHADER),
      line: this.makeProgram(MESH_VERTEX_SHADER, LINE_FRAGMENT_SHADER),
      cast: this.makeProgram(CAST_VERTEX_SHADER, CAST_FRAGMENT_SHADER),
      blur: this.makeProgram(BLUR_VERTEX_SHADER, BLUR_FRAGMENT_SHADER),
      floor: this.makeProgram(FLOOR_VERTEX_SHADER, FLOOR_FRAGMENT_SHADER),
    };
    this.square = this.makeBuffer(
        gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]));
    this.targets = [this.makeTarget(true), this.makeTarget(false)];
    this.uploads = new Map();
    this.shadowed = null;
    const {low, high} = this.bounds;
    const half = Math.max(high[0] - low[0], high[2] - low[2]) * 0.75;
    this.floorSquare = [
      (low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2, half || 1,
    ];
    this.ceiling = (high[1] - low[1]) || 1;
  }

  /**
   * Draws a frame.
   * @param {?Object} mesh From `decodeMesh`, or null for an empty frame.
   * @param {{eye: number[], target: number[], radius: number}} camera
   * @param {{shading: string, isDark: boolean}} look
   */
  draw(mesh, camera, look) {
    const gl = this.gl;
    const {width, height} = this.canvas;
    const view = viewOf(camera.eye, camera.target);
    const distance = Math.hypot(...subtract(camera.eye, camera.target));
    const near = Math.max(distance - 4 * camera.radius, distance / 100);
    const far = distance + 8 * camera.radius;
    const projection = projectionOf(FIELD_OF_VIEW, width / height, near, far);
    const viewProjection = multiply(projection, view.matrix);
    const upload = mesh && mesh.faceCount ? this.upload(mesh) : null;
    if (upload && this.shadowed !== mesh) this.castShadow(upload);
    this.shadowed = mesh;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!upload) return;
    this.drawFloor(viewProjection, camera, look);
    this.drawSurface(upload, viewProjection, view, camera, look);
    if (look.shading === 'wireframe') {
      this.drawLines(mesh, upload, viewProjection, look);
    }
  }

  drawSurface(upload, viewProjection, view, camera, look) {
    const gl = this.gl;
    const program = this.use('mesh');
    const fromView = (x, y, z) => normalized([0, 1, 2].map(
        (i) => x * view.right[i] + y * view.up[i] + z * view.back[i]));
    gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
    gl.uniform3fv(program.eye, camera.eye);
    gl.uniform3fv(program.keyLight, fromView(-0.5, 0.7, 0.9));
    gl.uniform3fv(program.rimLight, fromView(0.9, 0.15, -0.55));
    gl.uniform3fv(program.albedo, look.isDark ?
        [0.56, 0.49, 0.435] : [0.63, 0.56, 0.50]);
    gl.uniform1f(program.showNormals, look.shading === 'normals' ? 1 : 0);
    gl.enable(gl.DEPTH_TEST);
    // Depth offset for the lines only; otherwise back faces would show at the
    // outline, where the surface is steep.
    if (look.shading === 'wireframe') gl.enable(gl.POLYGON_OFFSET_FILL);
    gl.polygonOffset(0.6, 1);
    this.bindMesh(program, upload);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, upload.corners);
    gl.drawElements(gl.TRIANGLES, upload.cornerCount, upload.indexType, 0);
    gl.disable(gl.POLYGON_OFFSET_FILL);
    gl.disable(gl.DEPTH_TEST);
  }

  drawLines(mesh, upload, viewProjection, look) {
    const gl = this.gl;
    if (!upload.edges) {
      const edges = this.indexArray(uniqueEdges(mesh), mesh.vertexCount);
      upload.edges = this.makeBuffer(gl.ELEMENT_ARRAY_BUFFER, edges);
      upload.edgeCount = edges.length;
    }
    const program = this.use('line');
    // Fine meshes get fainter lines, which would otherwise hide the surface.
    const alpha =
        Math.min(0.75, Math.max(0.16, 22 / Math.sqrt(mesh.faceCount)));
    gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
    gl.uniform4fv(program.color, look.isDark ?
        [0.05, 0.04, 0.03, alpha] : [0.16, 0.09, 0.05, alpha]);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    this.enableBlending();
    this.bindMesh(program, upload);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, upload.edges);
    gl.drawElements(gl.LINES, upload.edgeCount, upload.indexType, 0);
    gl.disable(gl.BLEND);
    gl.disable(gl.DEPTH_TEST);
  }

  drawFloor(viewProjection, camera, look) {
    const gl = this.gl;
    const above = (camera.eye[1] - this.floorSquare[1]) / camera.radius;
    const fade = Math.min(1, Math.max(0, above * 2));
    if (!fade) return;
    const program = this.use('floor');
    gl.uniformMatrix4fv(program.viewProjection, false, viewProjection);
    gl.uniform4fv(program.floorSquare, this.floorSquare);
    gl.uniform1f(program.strength, fade * (look.isDark ? 0.7 : 0.36));
    gl.bindTexture(gl.TEXTURE_2D, this.targets[0].texture);
    this.enableBlending();
    this.drawSquare(program);
    gl.disable(gl.BLEND);
  }

  /** Renders the mesh from below into targets[0], and blurs it there. */
  castShadow(upload) {
    const gl = this.gl;
    const program = this.use('cast');
    gl.viewport(0, 0, SHADOW_SIZE, SHADOW_SIZE);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.targets[0].framebuffer);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform4fv(program.floorSquare, this.floorSquare);
    gl.uniform1f(program.ceiling, this.ceiling);
    gl.enable(gl.DEPTH_TEST);
    this.bindMesh(program, upload);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, upload.corners);
    gl.drawElements(gl.TRIANGLES, upload.cornerCount, upload.indexType, 0);
    gl.disable(gl.DEPTH_TEST);
    for (let pass = 0; pass < 4; pass++) {
      const step = (pass < 2 ? 1.0 : 1.6) / SHADOW_SIZE;
      const blur = this.use('blur');
      gl.bindFramebuffer(
          gl.FRAMEBUFFER, this.targets[1 - pass % 2].framebuffer);
      gl.bindTexture(gl.TEXTURE_2D, this.targets[pass % 2].texture);
      gl.uniform2fv(blur.stride, pass % 2 ? [0, step] : [step, 0]);
      this.drawSquare(blur);
    }
  }

  /** The GPU's copy of a mesh. */
  upload(mesh) {
    let upload = this.uploads.get(mesh);
    if (upload) return upload;
    const gl = this.gl;
    const isWide = mesh.vertexCount > 65535;
    if (isWide && !this.hasWideIndices) {
      throw new Error('this browser draws meshes of 65,535 vertices at most');
    }
    upload = {
      positions: this.makeBuffer(gl.ARRAY_BUFFER, mesh.positions),
      normals: this.makeBuffer(gl.ARRAY_BUFFER, mesh.normals),
      corners: this.makeBuffer(
          gl.ELEMENT_ARRAY_BUFFER,
          this.indexArray(mesh.corners, mesh.vertexCount)),
      cornerCount: mesh.corners.length,
      indexType: isWide ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT,
    };
    this.uploads.set(mesh, upload);
    return upload;
  }

  indexArray(indices, vertexCount) {
    return vertexCount > 65535 ? indices : Uint16Array.from(indices);
  }

  bindMesh(program, upload) {
    const gl = this.gl;
    this.bindAttribute(program.position, upload.positions, 3, gl.FLOAT, 0);
    if (program.normal >= 0) {
      this.bindAttribute(program.normal, upload.normals, 3, gl.BYTE, 4);
    }
  }

  bindAttribute(location, buffer, size, type, stride) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, type, type === gl.BYTE, stride, 0);
  }

  drawSquare(program) {
    const gl = this.gl;
    this.bindAttribute(program.corner, this.square, 2, gl.FLOAT, 0);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  enableBlending() {
    const gl = this.gl;
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);  // Premultiplied.
  }

  use(name) {
    const gl = this.gl;
    const program = this.programs[name];
    // An array still enabled by another program may be too short for this one.
    for (let i = 0; i < 4; i++) gl.disableVertexAttribArray(i);
    gl.useProgram(program.program);
    return program;
  }

  /** A program with the locations of its attributes and uniforms by name. */
  makeProgram(vertexSource, fragmentSource) {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [type, source] of [
      [gl.VERTEX_SHADER, vertexSource], [gl.FRAGMENT_SHADER, fragmentSource],
    ]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) &&
        !gl.isContextLost()) {
      throw new Error(`shaders do not link: ${gl.getProgramInfoLog(program)}`);
    }
    const places = {program, normal: -1};
    const count = (kind) => gl.getProgramParameter(program, kind) || 0;
    for (let i = 0; i < count(gl.ACTIVE_ATTRIBUTES); i++) {
      const {name} = gl.getActiveAttrib(program, i);
      places[name] = gl.getAttribLocation(program, name);
    }
    for (let i = 0; i < count(gl.ACTIVE_UNIFORMS); i++) {
      const {name} = gl.getActiveUniform(program, i);
      places[name] = gl.getUniformLocation(program, name);
    }
    return places;
  }

  makeBuffer(target, values) {
    const gl = this.gl;
    const buffer = gl.createBuffer();
    gl.bindBuffer(target, buffer);
    gl.bufferData(target, values, gl.STATIC_DRAW);
    return buffer;
  }

  /** A small texture to render into. */
  makeTarget(hasDepth) {
    const gl = this.gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, SHADOW_SIZE, SHADOW_SIZE, 0,
        gl.RGBA, gl.UNSIGNED_BYTE, null);
    for (const [name, value] of [
      [gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR],
      [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE],
      [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE],
    ]) {
      gl.texParameteri(gl.TEXTURE_2D, name, value);
    }
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0,
        gl.TEXTURE_2D, texture, 0);
    if (hasDepth) {
      const depth = gl.createRenderbuffer();
      gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT16,
          SHADOW_SIZE, SHADOW_SIZE);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT,
          gl.RENDERBUFFER, depth);
    }
    return {texture, framebuffer};
  }
}

/** The two ends of every edge, each edge once. */
function uniqueEdges({corners, vertexCount}) {
  const seen = new Set();
  const edges = [];
  for (let i = 0; i < corners.length; i++) {
    const a = corners[i];
    const b = corners[i % 3 === 2 ? i - 2 : i + 1];
    const key = Math.min(a, b) * vertexCount + Math.max(a, b);
    if (seen.has(key)) continue;
    seen.add(key);
    edges.push(a, b);
  }
  return Uint32Array.from(edges);
}
