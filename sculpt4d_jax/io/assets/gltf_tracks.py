"""The key frames of a glTF asset: what each channel says at given times.

A channel moves a node's translation, rotation or scale, or a mesh's morph
weights; KHR_animation_pointer says the same by a path, /nodes/3/rotation. Other
pointers change what is seen without moving it (colours, lights, cameras), or
are refused.

Source: Khronos glTF 2.0 specification, section 3.11 and appendix C; the
extension KHR_animation_pointer.
"""

from collections.abc import Callable
import dataclasses
import re
from typing import Any

import numpy as np

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container

AssetError = asset_files.AssetError

WIDTHS = {"translation": 3, "rotation": 4, "scale": 3}
_POINTER = re.compile(
  r"/(?P<list>nodes|meshes)/(?P<index>\d+)/(?P<path>translation|rotation|scale"
  r"|weights)"
)
# Pointers into these move no surface.
_HARMLESS = ("/materials/", "/cameras/", "/extensions/", "/textures/")


@dataclasses.dataclass(frozen=True)
class Clip:
  """One animation of an asset, or several that are played together.

  Attributes:
    index: Its number in the asset.
    name: Name in the asset.
    start: Time of the first key, seconds.
    end: Time of the last key.
    others: Numbers of the animations that are played with it.
  """

  index: int
  name: str
  start: float
  end: float
  others: tuple[int, ...] = ()


def list_clips(asset: gltf_container.GltfFile) -> list[Clip]:
  """All clips of an asset that move something.

  Blender writes one animation for each object and each set of shape keys.
  Animations of which no two move the same part of a node cannot be
  alternatives, and make one clip.

  Raises:
    AssetError: An animation is malformed.
  """
  clips, targets = [], []
  for index, animation in enumerate(asset.items("animations")):
    if not isinstance(animation, dict):
      raise AssetError(f"animations[{index}] must be an object.")
    times = []
    for sampler in gltf_container.rows(animation, "samplers"):
      keys = key_times(asset, sampler)
      times += [float(keys[0]), float(keys[-1])]
    channels = gltf_container.rows(animation, "channels")
    if times and channels:
      name = str(animation.get("name") or f"animation {index}")[:200]
      clips.append(Clip(index, name, min(times), max(times)))
      targets.append({_plain_target(channel) for channel in channels})
  # A pose of one moment may be of another scene, so it is not added to motion.
  moving = [k for k, clip in enumerate(clips) if clip.end > clip.start]
  every = set().union(*(targets[k] for k in moving))
  if len(moving) > 1 and None not in every:
    if len(every) == sum(len(targets[k]) for k in moving):
      return [_played_together([clips[k] for k in moving])]
  return clips


def animation_of(asset: gltf_container.GltfFile, clip: Clip) -> dict[str, Any]:
  """The animation of a clip; several are joined to one.

  Raises:
    AssetError: An animation is malformed.
  """
  first = asset.item("animations", clip.index)
  if not clip.others:
    return first
  samplers, channels = [], []
  for index in (clip.index, *clip.others):
    animation = asset.item("animations", index)
    own = gltf_container.rows(animation, "samplers")
    for channel in gltf_container.rows(animation, "channels"):
      number = channel.get("sampler")
      is_known = gltf_container.is_index(number) and number < len(own)
      # A number that is out of range stays so.
      moved = number + len(samplers) if is_known else -1
      channels.append({**channel, "sampler": moved})
    samplers += own
  return {"samplers": samplers, "channels": channels}


def _plain_target(channel: dict[str, Any]) -> tuple[int, str] | None:
  """Node and path of a channel; None if it moves anything else."""
  target = gltf_container.table(channel, "target")
  node, path = target.get("node"), target.get("path")
  if path not in (*WIDTHS, "weights") or not gltf_container.is_index(node):
    return None
  return node, path


def _played_together(clips: list[Clip]) -> Clip:
  return Clip(
    clips[0].index,
    " + ".join(clip.name for clip in clips)[:200],
    min(clip.start for clip in clips),
    max(clip.end for clip in clips),
    tuple(clip.index for clip in clips[1:]),
  )


def key_times(
  asset: gltf_container.GltfFile, sampler: dict[str, Any]
) -> np.ndarray:
  """Times of the keys of a sampler, seconds, float64 [K].

  Raises:
    AssetError: They are too many, not finite or decrease.
  """
  keys = asset.accessor(sampler.get("input"), "SCALAR")[:, 0]
  keys = keys.astype(np.float64)
  if not 1 <= len(keys) <= asset.limits.keys:
    raise AssetError(
      f"a channel has {len(keys):,} keys; expected 1 to {asset.limits.keys:,}."
    )
  if not np.isfinite(keys).all() or (np.diff(keys) < 0).any():
    raise AssetError("the times of a channel's keys do not increase.")
  return keys


def read_tracks(
  asset: gltf_container.GltfFile, animation: dict[str, Any], times: np.ndarray
) -> dict[tuple[int, str], np.ndarray]:
  """Values [F, width] of everything that an animation moves.

  Args:
    asset: The asset.
    animation: One of its animations.
    times: Seconds [F].

  Returns:
    By the node's number and the path, "translation" for instance.

  Raises:
    AssetError: A channel is malformed, or moves what is not supported.
  """
  tracks = {}
  samplers = gltf_container.rows(animation, "samplers")
  for channel in gltf_container.rows(animation, "channels"):
    target = gltf_container.table(channel, "target")
    nodes, path = _targets(asset, target)
    if not nodes:
      continue
    number = channel.get("sampler")
    if not gltf_container.is_index(number) or number >= len(samplers):
      raise AssetError(f"a channel of nodes[{nodes[0]}] has no sampler.")
    values = _sample(asset, samplers[number], path, times)
    for node in nodes:
      tracks[node, path] = values
  return tracks


def _targets(
  asset: gltf_container.GltfFile, target: dict[str, Any]
) -> tuple[list[int], str]:
  """The nodes that a channel moves, and what of them."""
  path = target.get("path")
  if path in (*WIDTHS, "weights"):
    node = target.get("node")
    return ([] if node is None else [node]), path
  extensions = gltf_container.table(target, "extensions")
  extension = gltf_container.table(extensions, "KHR_animation_pointer")
  pointer = str(extension.get("pointer", ""))
  match = _POINTER.fullmatch(pointer)
  if not match:
    if pointer and not pointer.startswith(_HARMLESS):
      raise AssetError(
        f"an animation moves {pointer[:80]!r}, which is not supported; bake it"
        " into the nodes' translation, rotation and scale."
      )
    return [], ""
  index = int(match["index"])
  if match["list"] == "nodes":
    return [index], match["path"]
  if match["path"] != "weights":
    raise AssetError(f"an animation moves {pointer[:80]!r}, which no mesh has.")
  # Nodes without weights use the weights of their mesh.
  nodes = [
    number
    for number, node in enumerate(asset.items("nodes"))
    if isinstance(node, dict)
    and node.get("mesh") == index
    and "weights" not in node
  ]
  return nodes, "weights"


def _sample(
  asset: gltf_container.GltfFile,
  sampler: dict[str, Any],
  path: str,
  times: np.ndarray,
) -> np.ndarray:
  """Values of one channel at times [F]: [F, width]."""
  keys = key_times(asset, sampler)
  mode = sampler.get("interpolation", "LINEAR")
  kind = "SCALAR" if path == "weights" else f"VEC{WIDTHS[path]}"
  output = asset.accessor(sampler.get("output"), kind).astype(np.float64)
  per_key = 3 if mode == "CUBICSPLINE" else 1
  if output.size == 0 or output.size % (len(keys) * per_key):
    raise AssetError(
      f"a channel has {len(keys)} keys and {len(output)} values."
    )
  values = output.reshape(len(keys), per_key, -1)
  if path != "weights" and values.shape[2] != WIDTHS[path]:
    raise AssetError(
      f"a channel has {len(keys)} keys and {len(output)} values."
    )
  if path == "rotation" and mode != "CUBICSPLINE":
    result = _interpolate(keys, values, times, mode, _slerp)
  else:
    result = _interpolate(keys, values, times, mode, _lerp)
  if not np.isfinite(result).all():
    raise AssetError(f"the {path} keys of a channel are not finite.")
  return result


def _interpolate(
  keys: np.ndarray,
  values: np.ndarray,
  times: np.ndarray,
  mode: str,
  between: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
  times = np.clip(times, keys[0], keys[-1])
  left = np.clip(
    np.searchsorted(keys, times, "right") - 1, 0, max(len(keys) - 2, 0)
  )
  right = np.minimum(left + 1, len(keys) - 1)
  span = np.maximum(keys[right] - keys[left], 1e-12)[:, None]
  u = (times - keys[left])[:, None] / span
  if mode == "STEP":
    return values[np.where(times >= keys[right], right, left), 0]
  if mode == "LINEAR":
    return between(values[left, 0], values[right, 0], np.clip(u, 0, 1))
  if mode != "CUBICSPLINE":
    raise AssetError(f"unknown interpolation {str(mode)[:20]!r}.")
  # A key holds its incoming tangent, its value and its outgoing tangent.
  start, leaving = values[left, 1], values[left, 2] * span
  end, arriving = values[right, 1], values[right, 0] * span
  return (
    (2 * u**3 - 3 * u**2 + 1) * start
    + (u**3 - 2 * u**2 + u) * leaving
    + (3 * u**2 - 2 * u**3) * end
    + (u**3 - u**2) * arriving
  )


def _lerp(a: np.ndarray, b: np.ndarray, u: np.ndarray) -> np.ndarray:
  return a * (1 - u) + b * u


def _slerp(a: np.ndarray, b: np.ndarray, u: np.ndarray) -> np.ndarray:
  """Between unit quaternions [F, 4] on the shorter arc."""
  cosine = np.sum(a * b, axis=1, keepdims=True)
  b = np.where(cosine < 0, -b, b)
  angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
  sine = np.sin(angle)
  far = sine > 1e-6
  safe = np.where(far, sine, 1)
  return np.where(
    far,
    (np.sin((1 - u) * angle) * a + np.sin(u * angle) * b) / safe,
    _lerp(a, b, u),
  )
