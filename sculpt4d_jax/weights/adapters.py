"""LoRA adapters in PEFT's, diffusers' and kohya's names, folded into weights.

An adapter of a linear layer is two narrow matrices; the layer computes with
W + s B A, where s is alpha / r for a rank r (with rank-stabilised LoRA
alpha / sqrt(r)). An adapter's names, after the layer's:

    lora_A.weight, lora_B.weight                  PEFT, saved alone; diffusers
    lora_A.NAME.weight, lora_B.NAME.weight        PEFT, saved with the base,
                                                  which is base_layer.weight
    lora.down.weight, lora.up.weight              diffusers before 0.22
    lora_down.weight, lora_up.weight              kohya, the layer's dots written
                                                  as underscores

Where alpha is: `NAME.alpha` in the file, adapter_config.json next to it (PEFT),
or the file's own metadata (diffusers). Without any of these diffusers and kohya
take s = 1. PEFT's default is another, and the number cannot be guessed from the
file: it is asked for.

Sources: PEFT, `tuners/lora/layer.py` and `utils/save_and_load.py`; diffusers,
`loaders/lora_conversion_utils.py`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import fnmatch
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import views

CheckpointError = tensor_file.CheckpointError

CONFIG = "adapter_config.json"

_HALF = re.compile(
  r"(?P<layer>.+)\.(?:lora\.|lora_)(?P<half>A|B|down|up)"
  r"(?:\.(?P<name>\w+))?\.weight"
)
# What other kinds of adapters write; so do LoRA's variants.
_OTHER_KINDS = re.compile(
  r".*(lora_magnitude_vector|dora_scale|lora_embedding_[AB]|lora_[AB]\.\w*\.?bias"
  r"|hada_w[12]|lokr_w[12]|oft_[RS]\b|oft_blocks|\.ia3_l|\.vera_|\.boft_).*"
)
_KOHYA = re.compile(r"lora_[a-z0-9]+_(?P<layer>.+)")


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Two narrow matrices that change a layer.

  Attributes:
    file: Holds them.
    layer: Name of the layer, with what the file puts in front of it.
    down: Name of A, [r, in, ...].
    up: Name of B, [out, r, ...].
    scale: Factor of their product.
  """

  file: tensor_file.TensorFile
  layer: str
  down: str
  up: str
  scale: float

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the weight that it fits."""
    infos = self.file.tensors
    return infos[self.up].shape[:1] + infos[self.down].shape[1:]

  def difference(self) -> np.ndarray:
    """The addition to the weight, in float32."""
    down, up = (
      self.file.read(name).astype(np.float32) for name in (self.down, self.up)
    )
    product = up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
    return (self.scale * product).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class AdapterFile:
  """The adapters of a file.

  Attributes:
    file: The file.
    adapters: One a layer.
    replacements: Names of tensors that stand for the base's: biases and whole
      layers that were trained together with the adapters.
    has_base: Whether the file holds the base as well.
  """

  file: tensor_file.TensorFile
  adapters: tuple[Adapter, ...]
  replacements: tuple[str, ...] = ()
  has_base: bool = False


def find(
  file: tensor_file.TensorFile, alpha: float | None = None
) -> tuple[tensor_file.TensorFile, AdapterFile | None]:
  """Parts a file into weights and adapters.

  Args:
    file: A checkpoint.
    alpha: Numerator of the scale, for files that do not say it.

  Returns:
    The file's weights under the names they have without adapters, and the
    adapters; a file of adapters alone has no weights.

  Raises:
    CheckpointError: The adapters are of a kind that is not folded in, or their
      scale is not known.
  """
  halves: dict[str, dict[str, str]] = {}
  adapter_names = set()
  for name in file.tensors:
    if _OTHER_KINDS.fullmatch(name):
      raise _refusal(file.path, f"an adapter of another kind ({name})")
    match = _HALF.fullmatch(name)
    if match:
      half = {"A": "down", "B": "up"}.get(match["half"], match["half"])
      layer = match["layer"].removesuffix(".processor")
      halves.setdefault(layer, {})[half] = name
      adapter_names.add(match["name"])
  if not halves:
    return file, None
  if len(adapter_names) > 1:
    raise _refusal(
      file.path, f"several adapters, {', '.join(map(str, adapter_names))}"
    )
  odd = [layer for layer, found in halves.items() if len(found) != 2]
  if odd:
    raise CheckpointError(
      f"{file.path} has one half of an adapter and not the other for"
      f" {', '.join(odd[:5])}."
    )
  scales = _Scales(file, alpha, adapter_names)
  made = tuple(
    Adapter(
      file, layer, found["down"], found["up"], scales.of(layer, found["down"])
    )
    for layer, found in halves.items()
  )
  taken = {name for found in halves.values() for name in found.values()}
  taken |= {f"{layer}.alpha" for layer in halves}
  weights = _weights(file, taken)
  if any(".base_layer." in name for name in file.tensors):
    has_base = views.renamed(file, weights)
    return has_base, AdapterFile(file, made, has_base=True)
  kept = views.renamed(file, weights)
  return views.renamed(file, {}), AdapterFile(kept, made, tuple(weights))


def fold(
  parts: Mapping[str, checkpoint_parts.Part],
  adapter_files: Sequence[AdapterFile],
) -> tuple[dict[str, checkpoint_parts.Part], list[str]]:
  """The networks with adapters in their weights.

  Args:
    parts: The networks by name.
    adapter_files: Adapters; those of several files add up.

  Returns:
    The networks, and what was folded in, a sentence each.

  Raises:
    CheckpointError: A layer is in none of the networks, or has another shape.
  """
  changes: dict[tuple[str, str], list[Adapter]] = {}
  replaced: dict[tuple[str, str], tuple[AdapterFile, str]] = {}
  places = _Places(parts)
  notes = []
  for found in adapter_files:
    homeless = []
    for adapter in found.adapters:
      place = places.find(adapter.layer)
      if place is None:
        homeless.append(adapter.layer)
        continue
      shape = adapter.shape
      _check_shape(found, adapter.layer, shape, parts[place[0]], place[1])
      changes.setdefault(place, []).append(adapter)
    for name in found.replacements:
      place = places.find(name, suffix="")
      if place is None:
        homeless.append(name)
        continue
      shape = found.file.tensors[name].shape
      _check_shape(found, name, shape, parts[place[0]], place[1])
      replaced[place] = found, name
    if found.has_base:
      # Layers of a network that is not wanted.
      homeless = []
    _check_homes(found, homeless)
    folded = len(found.adapters) + len(found.replacements) - len(homeless)
    if folded:
      notes.append(_note(found))
  return {
    name: _changed_part(name, part, changes, replaced)
    for name, part in parts.items()
  }, notes


class _Scales:
  """Where a file says what its adapters are multiplied by."""

  def __init__(
    self,
    file: tensor_file.TensorFile,
    alpha: float | None,
    names: set[str | None],
  ):
    self._file = file
    self._alpha = alpha
    self._config = _read_config(file)
    # PEFT's own names: its config file is needed.
    self._needs_config = names != {None} or any(
      name.startswith("base_model.") or ".base_layer." in name
      for name in file.tensors
    )

  def of(self, layer: str, down: str) -> float:
    rank = self._file.tensors[down].shape[0]
    stored = f"{layer}.alpha"
    if not rank:
      raise CheckpointError(f"{self._file.path}: {down!r} has the rank 0.")
    if stored in self._file.tensors:
      return float(np.asarray(self._file.read(stored)).reshape(())) / rank
    if self._config is not None:
      alpha = _by_layer(self._config, "alpha_pattern", layer)
      if alpha is None:
        alpha = self._config.get("lora_alpha", 8)
      is_stable = self._config.get("use_rslora")
      return float(alpha) / (math.sqrt(rank) if is_stable else rank)
    if self._alpha is not None:
      return self._alpha / rank
    if self._needs_config:
      raise CheckpointError(
        f"{self._file.path} holds LoRA adapters of rank {rank}, but not their"
        f" alpha: put PEFT's {CONFIG} next to it, or say the number with"
        " --adapter_alpha."
      )
    return 1.0


def _read_config(file: tensor_file.TensorFile) -> dict[str, Any] | None:
  """Settings of PEFT, next to the file or in its metadata."""
  path = file.path.parent / CONFIG
  try:
    if path.is_file():
      config = json.loads(path.read_text())
    elif "lora_adapter_metadata" in file.metadata:
      path = file.path
      config = json.loads(file.metadata["lora_adapter_metadata"])
      # "transformer.lora_alpha": one network's settings.
      config = {key.rpartition(".")[2]: v for key, v in config.items()}
    else:
      return None
    if not isinstance(config, dict):
      raise ValueError("expected an object")
    float(config.get("lora_alpha", 8))
  except (ValueError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f"{path} does not describe an adapter: {error}."
    ) from error
  kind = config.get("peft_type", "LORA")
  if kind != "LORA" or config.get("use_dora"):
    raise _refusal(path, f"the kind {'DoRA' if kind == 'LORA' else kind}")
  if config.get("fan_in_fan_out"):
    raise _refusal(path, "transposed weights (fan_in_fan_out)")
  return config


def _by_layer(config: Mapping[str, Any], field: str, layer: str) -> Any:
  """The value of a pattern that fits a layer, as PEFT compares them."""
  for pattern, value in (config.get(field) or {}).items():
    try:
      is_match = re.match(rf"(.*\.)?({pattern})$", layer)
    except re.error:
      is_match = fnmatch.fnmatchcase(layer, pattern)
    if is_match:
      return value
  return None


def _weights(file: tensor_file.TensorFile, taken: set[str]) -> dict[str, str]:
  """Names of the weights without PEFT's words, and the file's."""
  weights = {}
  for name in file.tensors:
    if name in taken or ".original_module." in name:
      continue
    plain = name.replace(".base_layer.", ".")
    weights[re.sub(r"\.modules_to_save\.\w+\.", ".", plain)] = name
  return weights


class _Places:
  """Finds a layer in networks whose names have other words in front."""

  def __init__(self, parts: Mapping[str, checkpoint_parts.Part]):
    self._names = {
      part: frozenset(found.names) for part, found in parts.items()
    }
    self._flat = {
      (part, name.removesuffix(".weight").replace(".", "_")): name
      for part, names in self._names.items()
      for name in names
      if name.endswith(".weight")
    }

  def find(self, layer: str, suffix: str = ".weight") -> tuple[str, str] | None:
    """The part and the name there, the longest that fits."""
    kohya = _KOHYA.fullmatch(layer)
    if kohya and "." not in layer:
      found = [
        (part, name)
        for (part, flat), name in self._flat.items()
        if flat == kohya["layer"]
      ]
      return found[0] if len(found) == 1 else None
    words = layer.split(".")
    for start in range(len(words)):
      name = ".".join(words[start:]) + suffix
      found = [part for part, names in self._names.items() if name in names]
      if found:
        return (found[0], name) if len(found) == 1 else None
    return None


def _check_shape(
  found: AdapterFile,
  layer: str,
  shape: tuple[int, ...],
  part: checkpoint_parts.Part,
  name: str,
) -> None:
  expected = part.tensors[name].shape
  if shape != expected:
    raise CheckpointError(
      f"{found.file.path}: what it has for {layer} fits a weight of the shape"
      f" {shape}, and {name} has {expected}; it was trained on another"
      " network."
    )


def _check_homes(found: AdapterFile, homeless: Sequence[str]) -> None:
  if not homeless:
    return
  count = len(found.adapters) + len(found.replacements)
  shown = ", ".join(homeless[:3]) + (", ..." if len(homeless) > 3 else "")
  if len(homeless) == count:
    raise CheckpointError(
      f"{found.file.path} holds adapters alone (LoRA), and no network here has"
      f" the layers that they change ({shown}). Give the weights that they were"
      " trained on as well: --source=WEIGHTS,ADAPTERS."
    )
  raise CheckpointError(
    f"{found.file.path} changes {len(homeless)} of {count} layers that no"
    f" network here has: {shown}. It was trained on another network."
  )


def _note(found: AdapterFile) -> str:
  ranks = sorted({a.file.tensors[a.down].shape[0] for a in found.adapters})
  scales = sorted({round(a.scale, 6) for a in found.adapters})
  line = (
    f"the adapters of {len(found.adapters)} layers in {found.file.path} (rank"
    f" {', '.join(map(str, ranks))}, scale {', '.join(map(str, scales))}) were"
    " folded into the weights"
  )
  if found.replacements:
    line += f", and {len(found.replacements)} tensors replaced"
  return line


def _changed_part(
  name: str,
  part: checkpoint_parts.Part,
  changes: Mapping[tuple[str, str], Sequence[Adapter]],
  replaced: Mapping[tuple[str, str], tuple[AdapterFile, str]],
) -> checkpoint_parts.Part:
  made = {}
  for (home, tensor), adapters in changes.items():
    if home == name:
      made[part.prefix + tensor] = _adder(adapters)
  for (home, tensor), (found, source) in replaced.items():
    if home == name:
      made[part.prefix + tensor] = _replacer(found.file, source)
  if not made:
    return part
  return dataclasses.replace(part, file=views.changed(part.file, made))


def _adder(adapters: Sequence[Adapter]) -> views.Change:
  def change(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) + sum(a.difference() for a in adapters)

  return change


def _replacer(file: tensor_file.TensorFile, name: str) -> views.Change:
  return lambda array: file.read(name)


def _refusal(path: pathlib.Path, what: str) -> CheckpointError:
  return CheckpointError(
    f"{path} has {what}, which is not folded into weights here. Merge it where"
    " it was made (PEFT: model.merge_and_unload()), and convert the result."
  )
