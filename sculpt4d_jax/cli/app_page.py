"""A page that makes meshes of clips: upload, look at the cut-out, make, play.

`sculpt4d app` serves it to this machine alone. The same file works as a Space
of Hugging Face: copy it to app.py and name sculpt4d-jax[app] in
requirements.txt; the Space's environment says where to serve.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import threading
from typing import Any

import gradio as gr
import numpy as np

from sculpt4d_jax import api
from sculpt4d_jax import preset_files
from sculpt4d_jax import shipped
from sculpt4d_jax.cli import exits
from sculpt4d_jax.inference import cutout_preview
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io.video import reader

TITLE = "Sculpt4D"
_ABOUT = """\
# Sculpt4D
A clip of one moving object goes in, a mesh for every frame comes out. Look at
the cut-out first: meshes can only be as good as it is. The shipped model is
small and knows procedural solids seen from the front.
"""
_MATTES = ("auto", "alpha", "plain", "motion", "colour", "none")
_EMPTY = (
  '<div style="display: grid; place-items: center; height: 560px; opacity: .6">'
  "The meshes appear here.</div>"
)
_MAX_SECONDS = 600.0  # Range of the trimming sliders before an upload.
_SHOWN_FRAMES = 4  # Frames in the picture of the cut-out.
_KEPT_RUNS = 8  # Number of folders of results that are kept on disk.
_MAX_UPLOAD = "200mb"
_MAX_WAITING = 16
# System fonts, so that the page works offline.
_THEME = gr.themes.Soft(
  primary_hue="orange",
  font=["system-ui", "sans-serif"],
  font_mono=["ui-monospace", "monospace"],
)

Update = dict[str, Any]


class Studio:
  """Functions of the page, apart from its layout.

  Models are loaded on first use and kept.
  """

  def __init__(self, weights: str | None = None):
    self._weights = weights
    self._models: dict[str, api.Model] = {}
    self._loading = threading.Lock()
    self._folder = tempfile.TemporaryDirectory(prefix="sculpt4d-app-")
    self._runs: list[pathlib.Path] = []

  def measure(self, files: list[str] | None) -> tuple[Update, Update]:
    """Sets the trimming sliders to the length of an upload."""
    seconds = 0.0
    if files and len(files) == 1:
      with _told():
        found = reader.read_frames(files[0], num_frames=2, max_side=64)
        seconds = float(found.timestamps[-1])
    step = max(round(seconds / 100, 3), 0.001)
    sliders = {"maximum": max(seconds, step), "step": step}
    show = seconds > 0
    return (
      gr.update(value=0.0, visible=show, **sliders),
      gr.update(value=max(seconds, step), visible=show, **sliders),
    )

  def look(
    self,
    files: list[str] | None,
    preset: str,
    num_frames: int,
    start: float,
    end: float,
    matte: str,
  ) -> tuple[np.ndarray | None, str]:
    """A picture of the cut-out, and remarks about it."""
    if not files:
      return None, ""
    clip = self._read(files, preset, num_frames, start, end, matte, False)
    return cutout_preview.draw(clip, _SHOWN_FRAMES), _describe(clip)

  def make(
    self,
    files: list[str] | None,
    preset: str,
    num_frames: int,
    start: float,
    end: float,
    matte: str,
    quality: str,
    num_steps: int,
    seed: int,
    resolution: int,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio's rule.
  ) -> tuple[str, list[str], str]:
    """Runs the model; returns the viewer, the files and the time."""
    if not files:
      raise gr.Error("There is no clip yet: upload one, or take the example.")

    def report(step: run_log.Progress) -> None:
      progress((step.done, step.total), desc=step.stage, unit="steps")

    clip = self._read(files, preset, num_frames, start, end, matte, report)
    with _told():
      result = self._model(preset, report).generate(
        clip,
        num_frames=int(num_frames),
        quality=quality,
        num_steps=int(num_steps) or None,
        seed=int(seed),
        resolution=int(resolution) or None,
        progress=report,
      )
      folder = self._new_folder() / (result.clip.source.name or "meshes")
      result.save(folder, progress=report)
    archive = shutil.make_archive(str(folder), "zip", folder)
    seconds = sum(stage.seconds for stage in result.stages)
    said = f"{len(result)} meshes in {seconds:.0f} s, seed {int(seed)}."
    return result._repr_html_(), [archive, str(folder / outputs.GLB)], said

  def _read(
    self,
    files: list[str],
    preset: str,
    num_frames: int,
    start: float,
    end: float,
    matte: str,
    progress: run_log.ProgressOption,
  ) -> pipeline.Clip:
    """Reads an upload: a video, a picture, or pictures sorted by name."""
    one = len(files) == 1
    with _told():
      return api.read_clip(
        files[0] if one else sorted(files, key=_natural),
        preset,
        num_frames=int(num_frames),
        matte=matte,
        start=start if one and start > 0 else None,
        end=end if one and end > start else None,
        progress=progress,
      )

  def _model(
    self, preset: str, progress: Callable[[run_log.Progress], None]
  ) -> api.Model:
    with self._loading:
      if preset not in self._models:
        self._models[preset] = api.load(
          preset, self._weights, progress=progress
        )
      return self._models[preset]

  def _new_folder(self) -> pathlib.Path:
    """Makes a folder for one run and removes old ones."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder.name))
    self._runs.append(folder)
    while len(self._runs) > _KEPT_RUNS:
      shutil.rmtree(self._runs.pop(0), ignore_errors=True)
    return folder


def build(preset: str | None = None, weights: str | None = None) -> gr.Blocks:
  """Builds the page.

  Args:
    preset: Initial preset; None takes the first with shipped weights.
    weights: Folder of its weights; None takes the shipped ones.
  """
  names = [preset] if preset else shipped.weight_names()
  studio = Studio(weights)
  defaults = preset_files.read(names[0])
  with gr.Blocks(
    title=TITLE,
    fill_width=True,
    analytics_enabled=False,
    delete_cache=(3600, 86400),
  ) as page:
    gr.Markdown(_ABOUT)
    with gr.Row():
      with gr.Column(scale=2, min_width=320):
        files = gr.File(
          label="Clip: a video, or pictures",
          file_count="multiple",
          file_types=["video", "image"],
          elem_id="clip",
        )
        with gr.Row():
          start = _seconds("Start (s)", 0.0)
          end = _seconds("End (s)", _MAX_SECONDS)
        matte = gr.Dropdown(_MATTES, value="auto", label="Cut-out")
        cutout = gr.Image(
          label="Input, and what the model would see of it",
          show_label=False,
          buttons=["fullscreen"],
          interactive=False,
          elem_id="cutout",
        )
        said = gr.Markdown(elem_id="said")
        with gr.Row():
          model = gr.Dropdown(names, value=names[0], label="Model")
          quality = gr.Dropdown(
            list(sampling_lib.PRESETS), value="fast", label="Sampler"
          )
        with gr.Row():
          frames = gr.Slider(
            1, 64, defaults.sampling.num_frames, step=1, label="Frames"
          )
          seed = gr.Number(0, precision=0, minimum=0, label="Seed")
        with gr.Accordion("More", open=False), gr.Row():
          steps = gr.Number(
            0, precision=0, minimum=0, label="Steps (0: the sampler's)"
          )
          resolution = gr.Slider(
            32,
            384,
            defaults.surface.resolution,
            step=16,
            label="Cells of the surface's grid",
          )
        button = gr.Button("Make meshes", variant="primary", elem_id="make")
      with gr.Column(scale=3, min_width=400):
        viewer = gr.HTML(_EMPTY, elem_id="viewer")
        took = gr.Markdown(elem_id="took")
        results = gr.File(
          label="Results: everything, and the animation",
          interactive=False,
          elem_id="results",
        )
    settings = [files, model, frames, start, end, matte]
    gr.Examples([[[str(shipped.demo_clip())]]], [files], label="Example")
    files.change(studio.measure, files, [start, end]).then(
      studio.look, settings, [cutout, said]
    )
    gr.on(
      [start.release, end.release, frames.release, matte.change, model.change],
      studio.look,
      settings,
      [cutout, said],
      trigger_mode="always_last",
    )
    button.click(
      studio.make,
      [*settings, quality, steps, seed, resolution],
      [viewer, results, took],
      concurrency_limit=1,
      show_progress_on=viewer,
    )
  page.queue(max_size=_MAX_WAITING)
  return page


def serve(
  page: gr.Blocks,
  *,
  host: str | None = None,
  port: int | None = None,
  open_browser: bool = False,
) -> None:
  """Serves the page until it is interrupted.

  Args:
    page: Page returned by `build`.
    host: Address to listen on; None is the environment's GRADIO_SERVER_NAME, or
      loopback.
    port: Port; None takes the environment's, or the first free one from 7860.
    open_browser: Whether a browser is opened.
  """
  page.launch(
    server_name=host,
    server_port=port,
    inbrowser=open_browser,
    share=False,
    show_error=False,
    max_file_size=_MAX_UPLOAD,
    theme=_THEME,
    footer_links=[],
    ssr_mode=False,
  )


def _seconds(label: str, value: float) -> gr.Slider:
  return gr.Slider(
    0.0, _MAX_SECONDS, value, step=0.01, label=label, visible=False
  )


def _describe(clip: pipeline.Clip) -> str:
  found = clip.foreground
  lines = [
    f"{clip.source.num_frames} frames, cut out by **{found.method}**,"
    f" confidence {found.confidence:.2f}.",
    *found.warnings,
  ]
  return "\n\n".join(lines)


def _natural(path: str) -> list[Any]:
  """Orders frame2 before frame10."""
  parts = re.split(r"(\d+)", os.path.basename(path))
  return [int(part) if part.isdigit() else part for part in parts]


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """Shows errors that the user can fix; other errors are bugs and propagate."""
  try:
    yield
  except Exception as error:
    message = exits.user_message(error)
    if message is None or isinstance(error, gr.Error):
      raise
    raise gr.Error(message) from error


if __name__ == "__main__":
  serve(build())
