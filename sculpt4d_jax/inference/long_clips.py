"""Samples clips of any length, one window after the other.

The last frames that a window shares with earlier windows are blended: it samples
them again, and at every call of the network their velocity is partly its own and
partly towards the earlier windows' latents. Shared frames before these are known.
Only one window is kept in memory. Finished windows are files in a folder, one
per window, and hold the complete state: an interrupted run reads them and
resumes with bit-identical results. The noise of a frame depends only on the seed
and the frame's number, so neither the length nor the windows have to be known in
advance, and frames can be read from an endless stream.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import hashlib
import io
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import known_frames as known_frames_lib
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.io import atomic

Array = array_types.Array
Float = array_types.Float
UInt8 = array_types.UInt8

_IDENTITY = "windows.json"


class Stretch(NamedTuple):
  """Frames of a clip: the number of the first, latents [frames, N, C]."""

  first: int
  latents: np.ndarray


class WindowFolder:
  """Finished windows on disk, `window_000000.npz` and so on."""

  def __init__(self, folder: str | pathlib.Path, identity: Mapping[str, Any]):
    """Opens a folder, or makes it.

    Args:
      folder: Folder of the windows.
      identity: Everything that determines the latents; JSON.

    Raises:
      ValueError: The folder holds windows that were made with other settings.
    """
    self.folder = pathlib.Path(folder)
    self._identity = identity
    path = self.folder / _IDENTITY
    # As JSON returns it: tuples become lists.
    wanted = json.loads(json.dumps(identity))
    if path.is_file():
      found = json.loads(path.read_text())
      if found != wanted:
        names = sorted(
          key
          for key in found.keys() | wanted.keys()
          if found.get(key) != wanted.get(key)
        )
        raise UserError(
          f"{self.folder} holds windows of a run with other settings"
          f" ({', '.join(names)}); repeat that run's command, delete the folder"
          " or choose another output."
        )
    else:
      with atomic.output_errors(self.folder):
        self.folder.mkdir(parents=True, exist_ok=True)
      atomic.write_bytes(path, json.dumps(wanted, indent=1).encode())

  def of_mirror(self) -> "WindowFolder":
    """The folder in it for the windows of the mirrored clip."""
    return WindowFolder(self.folder / "mirrored", self._identity)

  def read(self, number: int) -> Stretch | None:
    """A finished window's blended and new frames; None if not finished."""
    path = self._path(number)
    if not path.is_file():
      return None
    try:
      with np.load(path, allow_pickle=False) as content:
        return Stretch(int(content["first"]), content["latents"])
    except Exception as error:  # NumPy and zipfile raise many types.
      raise UserError(
        f"{path} is damaged ({type(error).__name__}: {error}); delete it and"
        " all later windows, and repeat the command."
      ) from error

  def write(self, number: int, stretch: Stretch) -> None:
    """Writes a window's blended and new frames atomically."""
    content = io.BytesIO()
    np.savez(content, first=np.int64(stretch.first), latents=stretch.latents)
    atomic.write_bytes(self._path(number), content.getvalue())

  def _path(self, number: int) -> pathlib.Path:
    return self.folder / f"window_{number:06d}.npz"


def identity(
  config: model_lib.SamplingConfig,
  windows: windows_lib.Windows,
  images: UInt8[np.ndarray, "F S S 3"],
) -> dict[str, Any]:
  """Everything that determines a clip's latents, for `WindowFolder`."""
  result = {f"sampling.{k}": v for k, v in vars(config).items()}
  result |= {f"windows.{k}": v for k, v in vars(windows).items()}
  result["pictures"] = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
  return result


def open_folder(
  folder: str | pathlib.Path | None,
  config: model_lib.SamplingConfig,
  windows: windows_lib.Windows | None,
  images: UInt8[np.ndarray, "F S S 3"],
  details: Mapping[str, Any],
) -> WindowFolder | None:
  """The folder of a clip's windows; None if windows are not kept.

  Args:
    folder: Folder of kept windows; None keeps none.
    config: Settings of the sampler.
    windows: Windows of the clip.
    images: All pictures.
    details: Further values that determine the latents.
  """
  if folder is None or windows is None or windows.kind != "sequential":
    return None
  wanted = identity(config, windows, images)
  return WindowFolder(folder, wanted | dict(details))


def sample(
  model: model_lib.Sculpt4D,
  images: UInt8[np.ndarray, "F S S 3"],
  config: model_lib.SamplingConfig,
  windows: windows_lib.Windows,
  *,
  folder: WindowFolder | None = None,
  known_frames: Mapping[int, np.ndarray] | None = None,
  masks: UInt8[np.ndarray, "F S S"] | None = None,
  on_window: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "F N C"]:
  """Samples a clip window by window.

  Args:
    model: The networks.
    images: All pictures.
    config: Steps, guidance, seed.
    windows: Their size and overlap.
    folder: Folder that finished windows are written to and resumed from.
    known_frames: Latents of frames that are given, by their index.
    masks: Coverage of all pictures; see `Sculpt4D.sample`. Each window predicts
      its own view.
    on_window: Called with the number of finished windows.

  Raises:
    ValueError: A known frame is not of this clip, or the folder's windows do
      not fit it.
  """
  outside = [i for i in known_frames or () if not 0 <= i < len(images)]
  if outside:
    raise UserError(
      f"Known frames {outside} are not among the clip's {len(images)} frames,"
      f" which are 0 to {len(images) - 1}."
    )
  stretches = stream(
    model,
    images,
    config,
    windows,
    folder=folder,
    known_frames=known_frames,
    masks=masks,
  )
  parts = []
  num_windows = len(windows.starts(len(images)))
  for number, stretch in enumerate(stretches, 1):
    parts.append(stretch.latents)
    # Frames held back for a blend can be one stretch more.
    if on_window is not None and number <= num_windows:
      on_window(number)
  return np.concatenate(parts)


def stream(
  model: model_lib.Sculpt4D,
  images: Iterable[UInt8[np.ndarray, "S S 3"]],
  config: model_lib.SamplingConfig,
  windows: windows_lib.Windows,
  *,
  folder: WindowFolder | None = None,
  known_frames: Mapping[int, np.ndarray] | None = None,
  masks: Iterable[UInt8[np.ndarray, "S S"]] | None = None,
) -> Iterator[Stretch]:
  """Yields the latents of final frames, window by window.

  Pictures are read when they are needed; the sequence may be endless. If it
  ends within a window, that window is moved back to end with it. The last
  `windows.blend` frames of a window are final after the next one, or at the
  end. Arguments are those of `sample`.

  Raises:
    ValueError: There are no pictures, or the folder's windows do not fit them.
  """
  # Pictures with their masks, if any.
  source = ((x, None) for x in images)
  if masks is not None:
    source = zip(images, masks, strict=True)
  given = dict(known_frames or {})
  # Pictures and latents of the last frames.
  shown: list[tuple[np.ndarray, np.ndarray | None]] = []
  done: list[np.ndarray] = []
  end = 0  # Number of sampled frames.
  for number in itertools.count():
    new = windows.size if not number else windows.stride
    fresh = list(itertools.islice(source, new))
    if not fresh:
      break
    held = min(windows.blend, len(done))  # Sampled, but not final.
    stretch = None if folder is None else folder.read(number)
    if stretch is not None:
      _check_next(stretch, number, end - held, held + len(fresh), folder)
    if stretch is None:
      # The last window is moved back, at most to the first frame.
      shared = min(windows.size - len(fresh), len(done))
      latents = _sample_window(
        model,
        [*shown[len(shown) - shared :], *fresh],
        config,
        end - shared,
        done[len(done) - shared :],
        given,
        windows.new_weights[:held],
      )[shared - held :]
      stretch = Stretch(end - held, latents)
      if folder is not None:
        folder.write(number, stretch)
    final = max(len(stretch.latents) - windows.blend, 0)
    if final:
      yield Stretch(stretch.first, stretch.latents[:final])
    shown = [*shown, *fresh][-windows.size :]
    done = [*done[: len(done) - held], *stretch.latents][-windows.size :]
    end += len(fresh)
  if not end:
    raise UserError("There are no pictures to sample from.")
  held = min(windows.blend, len(done))
  if held:
    yield Stretch(end - held, np.stack(done[-held:]))


def _check_next(
  stretch: Stretch,
  number: int,
  first: int,
  num_frames: int,
  folder: WindowFolder,
) -> None:
  """Raises UserError if a window on disk does not hold the wanted frames."""
  found = len(stretch.latents)
  if (stretch.first, found) != (first, num_frames):
    raise UserError(
      f"Window {number} in {folder.folder} has frames {stretch.first} to"
      f" {stretch.first + found - 1}, but {first} to"
      f" {first + num_frames - 1} are next; delete the folder."
    )


def _sample_window(
  model: model_lib.Sculpt4D,
  shown: Sequence[tuple[np.ndarray, np.ndarray | None]],
  config: model_lib.SamplingConfig,
  first: int,
  done: Sequence[np.ndarray],
  given: Mapping[int, np.ndarray],
  new_weights: Float[np.ndarray, " blend"],
) -> np.ndarray:
  """Latents of a window's frames.

  Args:
    model: The networks.
    shown: The window's pictures and masks.
    config: Steps, guidance, seed.
    first: Number of its first frame.
    done: Latents of its first frames from earlier windows.
    given: Latents of the clip's known frames.
    new_weights: Weight of this window's velocity in the last frames of `done`, which
      are blended; those before are known.
  """
  images, masks = zip(*shown)
  noise = frame_noise(model, config, range(first, first + len(images)))
  num_blended = len(new_weights)
  is_known = np.zeros(len(images), bool)
  is_known[: len(done) - num_blended] = True
  share = np.zeros(len(images), np.float32)
  share[len(done) - num_blended : len(done)] = 1 - new_weights
  data = np.zeros(noise.shape, np.float32)
  data[: len(done)] = np.reshape(done, (-1, *noise.shape[1:]))
  for index in range(len(images)):
    if first + index in given:
      is_known[index], share[index] = True, 0
      data[index] = given[first + index]
  # With shares also where all are 0, so that one program serves all windows.
  known = known_frames_lib.KnownFrames(is_known[None], data[None], share[None])
  context = model.encode(np.stack(images))[None]
  masks = None if masks[0] is None else np.stack(masks)
  outlines = model.outlines(context, masks, config)
  return np.array(
    model.denoise(context, noise[None], config, known=known, outlines=outlines)[
      0
    ]
  )


def frame_noise(
  model: model_lib.Sculpt4D,
  config: model_lib.SamplingConfig,
  frames: Iterable[int],
) -> Float[np.ndarray, "W N C"]:
  """Noise of frames by their numbers in the clip, as `config.noise` says."""
  vae = model.vae_config
  frames = np.array(list(frames), np.uint32)
  if config.noise == "shared":
    frames = 0 * frames
  key = jax.random.key(config.seed)
  return np.asarray(_noise(key, frames, vae.num_latents, vae.latent_channels))


def _draw(
  key: jax.Array, frames: jax.Array, num_latents: int, channels: int
) -> jax.Array:
  keys = jax.vmap(lambda frame: jax.random.fold_in(key, frame))(frames)
  draw = lambda key: jax.random.normal(key, (num_latents, channels))
  return jax.vmap(draw)(keys)


_noise = jax.jit(_draw, static_argnums=(2, 3))
