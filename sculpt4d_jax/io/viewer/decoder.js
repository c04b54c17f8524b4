'use strict';

/** Unpacks the page's meshes for drawing. */

/** Inverts mesh_packing.pack_mesh; normals are computed from the faces. */
async function decodeMesh(packed, {origin, step}) {
  const vertexCount = packed.vertices;
  const faceCount = packed.faces;
  if (!faceCount) return {vertexCount: 0, faceCount: 0};
  const bytes = await inflate(packed.data);
  const positions = new Float32Array(3 * vertexCount);
  for (let axis = 0; axis < 3; axis++) {
    const low = 2 * axis * vertexCount;
    const high = low + vertexCount;
    let whole = 0;
    for (let i = 0; i < vertexCount; i++) {
      whole = (whole + bytes[low + i] + 256 * bytes[high + i]) & 65535;
      positions[3 * i + axis] = origin[axis] + step * whole;
    }
  }
  const corners = new Uint32Array(3 * faceCount);
  const start = 6 * vertexCount;
  const count = corners.length;
  let corner = 0;
  for (let i = 0; i < count; i++) {
    const zigzag = (bytes[start + i] | bytes[start + count + i] << 8 |
        bytes[start + 2 * count + i] << 16 |
        bytes[start + 3 * count + i] << 24) >>> 0;
    corner += zigzag >>> 1 ^ -(zigzag & 1);
    corners[i] = corner;
  }
  const normals = vertexNormals(positions, corners);
  return {vertexCount, faceCount, positions, corners, normals};
}

async function inflate(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(
      new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Area-weighted normals as signed bytes, four per vertex. */
function vertexNormals(positions, corners) {
  const sums = new Float32Array(positions.length);
  for (let i = 0; i < corners.length; i += 3) {
    const a = 3 * corners[i];
    const b = 3 * corners[i + 1];
    const c = 3 * corners[i + 2];
    const ux = positions[b] - positions[a];
    const uy = positions[b + 1] - positions[a + 1];
    const uz = positions[b + 2] - positions[a + 2];
    const vx = positions[c] - positions[a];
    const vy = positions[c + 1] - positions[a + 1];
    const vz = positions[c + 2] - positions[a + 2];
    const nx = uy * vz - uz * vy;
    const ny = uz * vx - ux * vz;
    const nz = ux * vy - uy * vx;
    for (const vertex of [a, b, c]) {
      sums[vertex] += nx;
      sums[vertex + 1] += ny;
      sums[vertex + 2] += nz;
    }
  }
  const normals = new Int8Array(sums.length / 3 * 4);
  for (let i = 0, j = 0; i < sums.length; i += 3, j += 4) {
    const length = Math.hypot(sums[i], sums[i + 1], sums[i + 2]) || 1;
    normals[j] = Math.round(127 * sums[i] / length);
    normals[j + 1] = Math.round(127 * sums[i + 1] / length);
    normals[j + 2] = Math.round(127 * sums[i + 2] / length);
  }
  return normals;
}

/** The box around all frames, and a sphere around their points. */
function measure(meshes) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  for (const {positions = []} of meshes) {
    for (let i = 0; i < positions.length; i++) {
      const axis = i % 3;
      if (positions[i] < low[axis]) low[axis] = positions[i];
      if (positions[i] > high[axis]) high[axis] = positions[i];
    }
  }
  if (low[0] > high[0]) return {low: [-1, -1, -1], high: [1, 1, 1], radius: 1};
  const center = low.map((value, i) => (value + high[i]) / 2);
  let square = 0;
  for (const {positions = []} of meshes) {
    for (let i = 0; i < positions.length; i += 3) {
      square = Math.max(square, (positions[i] - center[0]) ** 2 +
          (positions[i + 1] - center[1]) ** 2 +
          (positions[i + 2] - center[2]) ** 2);
    }
  }
  return {low, high, radius: Math.sqrt(square) || 1};
}
