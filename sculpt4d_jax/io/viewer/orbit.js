'use strict';

const HOME = {azimuth: 28, elevation: 14};  // Degrees.

/** A camera around a point; the shown view smoothly follows the asked one. */
class Orbit {
  constructor(bounds) {
    this.center = bounds.low.map((value, i) => (value + bounds.high[i]) / 2);
    this.radius = bounds.radius;
    this.reset(HOME);
    this.shown = this.copy(this.asked);
  }

  /** Distance at which the complete clip fits into a picture of this shape. */
  fit(aspect) {
    const half = Math.tan(FIELD_OF_VIEW / 2) * Math.min(1, aspect);
    return 1.06 * this.radius / Math.sin(Math.atan(half));
  }

  reset({azimuth, elevation}) {
    let nearest = azimuth;
    if (this.asked) {
      // The shorter rotation from the turntable's current angle.
      const turns = Math.round((this.asked.azimuth - azimuth) / 360);
      nearest += 360 * turns;
    }
    this.asked =
        {azimuth: nearest, elevation, zoom: 1, target: [...this.center]};
  }

  rotate(right, up) {
    this.asked.azimuth -= right;
    this.asked.elevation =
        Math.min(89, Math.max(-89, this.asked.elevation + up));
  }

  zoomBy(factor) {
    this.asked.zoom = Math.min(12, Math.max(0.35, this.asked.zoom * factor));
  }

  /** Moves the target by shares of the picture's height. */
  pan(right, up, aspect) {
    const camera = this.camera(aspect);
    const view = viewOf(camera.eye, camera.target);
    const span = 2 * Math.tan(FIELD_OF_VIEW / 2) * this.fit(aspect) /
        this.asked.zoom;
    this.asked.target = this.asked.target.map((value, i) => {
      const moved =
          value - span * (right * view.right[i] + up * view.up[i]);
      const limit = 2 * this.radius;
      return Math.min(this.center[i] + limit,
          Math.max(this.center[i] - limit, moved));
    });
  }

  /** Advances the motion; returns whether the picture still changes. */
  step(seconds) {
    const share = 1 - Math.exp(-seconds * 16);
    const {asked, shown} = this;
    const gap = Math.abs(asked.azimuth - shown.azimuth) +
        Math.abs(asked.elevation - shown.elevation) +
        100 * Math.abs(Math.log(asked.zoom / shown.zoom)) +
        100 * Math.hypot(...subtract(asked.target, shown.target));
    if (gap < 0.02) {
      this.shown = this.copy(asked);
      return gap > 0;
    }
    shown.azimuth += share * (asked.azimuth - shown.azimuth);
    shown.elevation += share * (asked.elevation - shown.elevation);
    shown.zoom *= (asked.zoom / shown.zoom) ** share;
    shown.target = shown.target.map(
        (value, i) => value + share * (asked.target[i] - value));
    return true;
  }

  camera(aspect) {
    const azimuth = this.shown.azimuth * Math.PI / 180;
    const elevation = this.shown.elevation * Math.PI / 180;
    const distance = this.fit(aspect) / this.shown.zoom;
    const direction = [
      Math.cos(elevation) * Math.sin(azimuth),
      Math.sin(elevation),
      Math.cos(elevation) * Math.cos(azimuth),
    ];
    const eye =
        this.shown.target.map((value, i) => value + distance * direction[i]);
    return {eye, target: this.shown.target, radius: this.radius};
  }

  copy(state) {
    return {...state, target: [...state.target]};
  }
}
