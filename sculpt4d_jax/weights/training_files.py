"""What trainers put into their files besides the weights, and around names.

Wrappers of modules (torch.compile, FSDP, activation checkpointing, DDP) leave a
word in the names of what they wrap, at any depth. Trainers write the state of
the optimizer and of the run next to the weights. Two kinds of sharded files
hold no tensor that could be taken: those of DeepSpeed's ZeRO-3 and FSDP's
flattened ones.
"""

from collections import Counter
import re

from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import views

CheckpointError = tensor_file.CheckpointError

WRAPPERS = frozenset(
  {
    "_orig_mod",  # torch.compile
    "_fsdp_wrapped_module",
    "_fpw_module",  # FSDP before PyTorch 2.0.
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning around DeepSpeed
    "module",  # DDP; also the weights' key in DeepSpeed's files.
  }
)
# First words of names that are no weights.
_STATE = re.compile(
  r"(optimizer|optimizers|optimizer_states?|optimizer_state_dict|optim"
  r"|optim_state_dict|lr_schedulers?|schedulers?|lr_scheduler_states?|loops"
  r"|callbacks|scaler|grad_scaler|amp|MixedPrecision|MixedPrecisionPlugin"
  r"|native_amp_scaling_state|\w*rng_states?|rng_state_dict|param_groups"
  r"|sampler_state|global_step|epoch|step|n_averaged)(\..*)?"
)
# The state of an optimizer that is saved alone.
_MOMENTS = re.compile(
  r"state\.\d+\.(step|exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer"
  r"|square_avg|sum)"
)
_FLAT_GROUPS = "fp32_flat_groups"
_FLAT_PARAMETERS = ("_flat_param", "flat_param")


def without_wrappers(name: str) -> str:
  """A name without the words of wrappers."""
  return ".".join(w for w in name.split(".") if w not in WRAPPERS)


def unwrap(file: tensor_file.TensorFile) -> tensor_file.TensorFile:
  """The file without wrappers' words in its names.

  Names that would become equal keep theirs: a file may hold a network twice,
  wrapped and not.
  """
  names = {name: without_wrappers(name) for name in file.tensors}
  if all(old == new for old, new in names.items()):
    return file
  counts = Counter(names.values())
  return views.renamed(
    file,
    {new if counts[new] == 1 else old: old for old, new in names.items()},
  )


def drop_state(
  file: tensor_file.TensorFile,
) -> tuple[tensor_file.TensorFile, list[str]]:
  """The file without the state of a training run.

  Returns:
    The file, and what was left out, a sentence each.
  """
  state = {name for name in file.tensors if _is_state(name)}
  if not state:
    return file, []
  words = Counter(name.partition(".")[0] for name in state)
  listed = ", ".join(f"{word} ({count})" for word, count in words.items())
  note = (
    f"{len(state)} tensors in {file.path} are the state of a training run and"
    f" were left out: {listed}"
  )
  kept = {name: name for name in file.tensors if name not in state}
  return views.renamed(file, kept), [note]


def refuse_partitioned(file: tensor_file.TensorFile) -> None:
  """Refuses files whose tensors were cut into pieces.

  Raises:
    CheckpointError: The message names the tool that joins them.
  """
  words = {word for name in file.tensors for word in name.split(".")}
  empty = sum(0 in info.shape for info in file.tensors.values())
  if _FLAT_GROUPS in words or (empty and 2 * empty > len(file.tensors)):
    raise CheckpointError(tensor_file.partitioned_by_zero3(file.path))
  if words.intersection(_FLAT_PARAMETERS):
    raise CheckpointError(
      f"{file.path} holds parameters that FSDP flattened and cut into shards;"
      " save the model with StateDictType.FULL_STATE_DICT and convert that"
      " file."
    )


def _is_state(name: str) -> bool:
  return bool(_STATE.fullmatch(name) or _MOMENTS.fullmatch(name))
