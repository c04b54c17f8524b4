'use strict';

/** The player: handles the controls and the time. */

const byId = (id) => document.getElementById(id);
const clip = JSON.parse(byId('clip-data').textContent);
const frameCount = clip.frames.length;
const duration = clip.edges[frameCount];  // Seconds.
const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const TURNTABLE_SPEED = 24;  // Degrees a second.

class Player {
  constructor(meshes, asset) {
    this.meshes = meshes;
    this.asset = asset;
    this.layers = {bones: false, onion: false, trails: false};
    this.bounds = measure(meshes);
    this.orbit = new Orbit(this.bounds);
    this.canvas = byId('mesh-canvas');
    this.frame = 0;
    this.time = 0;  // Seconds, from 0 to the duration.
    this.speed = 1;
    this.isPlaying = false;
    this.isLooping = true;
    this.isTurning = false;
    this.shading = 'clay';
    this.lastTick = null;
    this.isScheduled = false;
    this.isStale = false;
    this.pictures = clip.pictures.map((source) => {
      const picture = new Image();
      picture.src = source;  // Kept, so that it stays decoded.
      return picture;
    });
    this.connectControls();
    this.connectPointers();
    this.connectKeys();
    this.connectGraphics();
    connectLayers(asset, this.layers, () => this.invalidate());
    this.show(0);
    if (asset && asset.texture) this.setShading('texture');
  }

  /** Requests a redraw; several requests cause one. */
  invalidate() {
    this.isStale = true;
    this.schedule();
  }

  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    this.canvas.dataset.moving = '';  // For programs that take screenshots.
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.isScheduled = false;
    // Long gaps mean a hidden page, for which time is paused.
    const seconds = this.lastTick === null ?
        0 : Math.min(0.25, (now - this.lastTick) / 1000);
    this.lastTick = now;
    if (this.isPlaying) this.advance(seconds * this.speed);
    if (this.isTurning) this.orbit.rotate(-TURNTABLE_SPEED * seconds, 0);
    const isGliding = this.orbit.step(seconds);
    // Between two frames of the clip nothing changes: the GPU may rest.
    if (this.isStale || this.isTurning || isGliding) this.draw();
    this.isStale = false;
    if (this.isPlaying || this.isTurning || isGliding) {
      this.schedule();
    } else {
      this.lastTick = null;
      delete this.canvas.dataset.moving;
    }
  }

  advance(seconds) {
    this.time += seconds;
    if (this.time >= duration) {
      if (this.isLooping) {
        this.time %= duration;
      } else {
        this.time = duration;
        this.setPlaying(false);
      }
    }
    const frame = frameAt(this.time);
    if (frame !== this.frame) this.show(frame);
  }

  /** Goes to a frame and stays there. */
  seek(frame) {
    const shown = Math.min(frameCount - 1, Math.max(0, frame));
    this.time = clip.edges[shown];
    this.show(shown);
  }

  step(frames) {
    this.setPlaying(false);
    this.seek((this.frame + frames + frameCount) % frameCount);
  }

  show(frame) {
    this.frame = frame;
    const mesh = this.meshes[frame];
    const label = `${frame + 1} / ${frameCount}`;
    byId('frame-counter').textContent = label;
    const scrub = byId('scrub');
    scrub.value = frame;
    scrub.setAttribute('aria-valuetext', `Frame ${frame + 1} of ${frameCount}`);
    const share = frameCount > 1 ? frame / (frameCount - 1) : 0;
    scrub.style.setProperty('--share', `${100 * share}%`);
    byId('mesh-facts').textContent = mesh.faceCount ?
        `${mesh.faceCount.toLocaleString('en')} faces · ` +
        `${mesh.vertexCount.toLocaleString('en')} vertices` :
        'No surface in this frame';
    if (this.pictures.length) {
      const picture = byId('input-frame');
      picture.src = this.pictures[frame].src;
      picture.alt = `Input video, frame ${frame + 1} of ${frameCount}`;
    }
    this.invalidate();
  }

  setPlaying(isPlaying) {
    if (isPlaying && this.time >= duration) this.seek(0);
    this.isPlaying = isPlaying;
    const button = byId('play');
    button.classList.toggle('is-playing', isPlaying);
    button.setAttribute('aria-label', isPlaying ? 'Pause' : 'Play');
    this.invalidate();
  }

  setLooping(isLooping) {
    this.isLooping = isLooping;
    byId('loop').setAttribute('aria-pressed', isLooping);
  }

  setTurning(isTurning) {
    this.isTurning = isTurning;
    byId('turntable').setAttribute('aria-pressed', isTurning);
    this.invalidate();
  }

  setShading(shading) {
    this.shading = shading;
    for (const button of document.querySelectorAll('[data-shading]')) {
      button.setAttribute('aria-checked', button.dataset.shading === shading);
      button.tabIndex = button.dataset.shading === shading ? 0 : -1;
    }
    this.invalidate();
  }

  goTo(place) {
    this.setTurning(false);
    this.orbit.reset(place);
    this.invalidate();
  }

  connectControls() {
    const on = (id, action) => byId(id).addEventListener('click', action);
    on('play', () => this.setPlaying(!this.isPlaying));
    on('previous', () => this.step(-1));
    on('next', () => this.step(1));
    on('loop', () => this.setLooping(!this.isLooping));
    on('turntable', () => this.setTurning(!this.isTurning));
    on('front', () => this.goTo({azimuth: 0, elevation: 0}));
    on('home', () => this.goTo(HOME));
    on('fullscreen', () => toggleFullscreen());
    byId('fullscreen').hidden = !document.fullscreenEnabled;
    const scrub = byId('scrub');
    scrub.max = frameCount - 1;
    scrub.addEventListener('input', () => {
      this.setPlaying(false);
      this.seek(Number(scrub.value));
    });
    byId('speed').addEventListener('change', (event) => {
      this.speed = Number(event.target.value);
    });
    for (const button of document.querySelectorAll('[data-shading]')) {
      button.addEventListener(
          'click', () => this.setShading(button.dataset.shading));
    }
    for (const id of ['play', 'previous', 'next', 'scrub', 'speed', 'loop']) {
      byId(id).disabled = frameCount < 2;
    }
  }

  connectPointers() {
    const canvas = this.canvas;
    const pointers = new Map();
    const middle = (points) => [0, 1].map(
        (i) => points.reduce((sum, point) => sum + point[i], 0) /
            points.length);
    const spread = ([a, b]) => b ? Math.hypot(a[0] - b[0], a[1] - b[1]) : 0;
    const release = (event) => {
      pointers.delete(event.pointerId);
      canvas.classList.toggle('is-held', pointers.size > 0);
    };
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      canvas.classList.add('is-held');
    });
    canvas.addEventListener('pointermove', (event) => {
      if (!pointers.has(event.pointerId)) return;
      const before = [...pointers.values()];
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      const after = [...pointers.values()];
      const [x, y] = subtract(middle(after), middle(before));
      const height = canvas.clientHeight;
      const isPan = after.length > 1 || event.buttons & 6 || event.shiftKey;
      if (isPan) {
        this.orbit.pan(x / height, -y / height, this.aspect());
      } else {
        this.orbit.rotate(240 * x / height, 240 * y / height);
      }
      if (after.length === 2 && spread(before) > 0) {
        this.orbit.zoomBy(spread(after) / spread(before));
      }
      this.invalidate();
    });
    for (const kind of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      canvas.addEventListener(kind, release);
    }
    canvas.addEventListener('contextmenu', (event) => event.preventDefault());
    canvas.addEventListener('dblclick', () => this.goTo(HOME));
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      this.orbit.zoomBy(Math.exp(-0.0015 * lines * event.deltaY));
      this.invalidate();
    }, {passive: false});
  }

  connectKeys() {
    const turn = (right, up) => {
      this.orbit.rotate(right, up);
      this.invalidate();
    };
    const zoom = (factor) => {
      this.orbit.zoomBy(factor);
      this.invalidate();
    };
    const actions = {
      ' ': () => this.setPlaying(!this.isPlaying),
      'k': () => this.setPlaying(!this.isPlaying),
      'ArrowLeft': () => this.step(-1),
      'ArrowRight': () => this.step(1),
      'Home': () => this.seek(0),
      'End': () => this.seek(frameCount - 1),
      'shift+ArrowLeft': () => turn(-10, 0),
      'shift+ArrowRight': () => turn(10, 0),
      'shift+ArrowUp': () => turn(0, 10),
      'shift+ArrowDown': () => turn(0, -10),
      '+': () => zoom(1.15),
      '=': () => zoom(1.15),
      '-': () => zoom(1 / 1.15),
      '1': () => this.setShading('clay'),
      '2': () => this.setShading('normals'),
      '3': () => this.setShading('wireframe'),
      '4': () => pressIfShown('[data-shading=texture]'),
      '5': () => pressIfShown('[data-shading=heat]'),
      'b': () => pressIfShown('#bones'),
      'o': () => pressIfShown('#onion'),
      'p': () => pressIfShown('#trails'),
      'l': () => this.setLooping(!this.isLooping),
      't': () => this.setTurning(!this.isTurning),
      'f': () => this.goTo({azimuth: 0, elevation: 0}),
      'r': () => this.goTo(HOME),
    };
    document.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const {tagName} = event.target;
      const isArrow = event.key.startsWith('Arrow');
      if (tagName === 'SELECT' && (isArrow || event.key === ' ')) return;
      if (tagName === 'SUMMARY' && event.key === ' ') return;
      // Space presses a focused button; on #play that is the same thing.
      if (tagName === 'BUTTON' && event.key === ' ') return;
      const group = event.target.closest('[role=radiogroup]');
      if (group && isArrow && !event.shiftKey) {
        event.preventDefault();
        moveInGroup(group, event);
        return;
      }
      const prefix = event.shiftKey && isArrow ? 'shift+' : '';
      const key = event.key.length > 1 ? event.key : event.key.toLowerCase();
      const action = actions[prefix + key];
      const isPlayback = /^[ k]$|^(Arrow|Home|End)/.test(prefix + key);
      if (!action || isPlayback && frameCount < 2) return;
      event.preventDefault();
      action();
    });
  }

  connectGraphics() {
    if (!window.DecompressionStream) return;
    try {
      this.renderer = this.asset ?
          new AssetRenderer(this.canvas, this.bounds, this.meshes, this.asset,
              () => this.invalidate()) :
          new MeshRenderer(this.canvas, this.bounds);
    } catch (error) {
      showMessage('This page needs WebGL to show the mesh.',
          'Turn on hardware acceleration in the browser\'s settings, or open' +
          ' the page in another browser. The .glb and .ply files next to it' +
          ` hold the same meshes. (${error.message})`);
      return;
    }
    this.canvas.addEventListener('webglcontextlost', (event) => {
      event.preventDefault();
      this.isLost = true;
      showMessage('The graphics context was lost.',
          'It usually comes back by itself; if not, reload the page.');
    });
    this.canvas.addEventListener('webglcontextrestored', () => {
      this.renderer.initialize();
      this.isLost = false;
      showMessage(null);
      this.invalidate();
    });
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    prefersDark.addEventListener('change', () => this.invalidate());
    this.resize();
  }

  aspect() {
    return this.canvas.clientWidth / Math.max(1, this.canvas.clientHeight);
  }

  resize() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(this.canvas.clientHeight * ratio);
    this.canvas.width = Math.max(1, width);
    this.canvas.height = Math.max(1, height);
    this.draw();  // At once: a resized canvas is blank.
  }

  draw() {
    if (!this.renderer || this.isLost) return;
    const look = {
      shading: this.shading, isDark: prefersDark.matches, frame: this.frame,
      layers: this.layers,
    };
    const mesh = this.meshes[this.frame];
    this.renderer.draw(mesh, this.orbit.camera(this.aspect()), look);
  }
}

/** The frame that is seen at a time: each has its own length. */
function frameAt(time) {
  let frame = 0;
  while (frame < frameCount - 1 && clip.edges[frame + 1] <= time) frame += 1;
  return frame;
}

/** Arrow keys choose within a group of radio buttons. */
function moveInGroup(group, event) {
  const buttons = [...group.querySelectorAll('[role=radio]:not([hidden])')];
  const forward = event.key === 'ArrowRight' || event.key === 'ArrowDown';
  const index = buttons.indexOf(event.target) + (forward ? 1 : -1);
  const next = buttons[(index + buttons.length) % buttons.length];
  next.click();
  next.focus();
}

function pressIfShown(selector) {
  const button = document.querySelector(selector);
  if (!button.hidden) button.click();
}

function toggleFullscreen() {
  if (document.fullscreenElement) {
    document.exitFullscreen();
  } else {
    byId('stage').requestFullscreen();
  }
}

/** Covers the stage with a message; null takes it away. */
function showMessage(title, text = '') {
  byId('message').hidden = title === null;
  byId('message-title').textContent = title || '';
  byId('message-text').textContent = text;
}

async function main() {
  const faces = clip.frames.map((frame) => frame.faces);
  const [fewest, most] = [Math.min(...faces), Math.max(...faces)]
      .map((count) => count.toLocaleString('en'));
  const rate = Number(clip.fps.toFixed(2));
  byId('summary').textContent = [
    `${frameCount} ${frameCount === 1 ? 'frame' : 'frames'}`,
    clip.isEven ? `${rate} fps` : `${rate} fps on average, uneven`,
    `${duration.toFixed(2)} s`,
    fewest === most ? `${most} faces` : `${fewest}–${most} faces`,
  ].join(' · ');
  byId('input').hidden = !clip.pictures.length;
  byId('details').hidden = !byId('details').querySelector('dt');
  byId('side').hidden = byId('input').hidden && byId('details').hidden;
  // On a phone the details come after the mesh, folded.
  byId('details').open = !matchMedia('(max-width: 760px)').matches;
  if (!window.DecompressionStream) {
    showMessage('This browser is too old for the page.',
        'Any browser since 2023 opens it.');
    return;
  }
  const meshes = [];
  for (const packed of clip.frames) {
    meshes.push(await decodeMesh(packed, clip));
    const share = Math.round(100 * meshes.length / frameCount);
    byId('loading-share').style.width = `${share}%`;
  }
  const asset = await decodeAsset(clip.asset, meshes);
  byId('loading').hidden = true;
  new Player(meshes, asset);
}

main();
