"""DINOv2 in the names of torch.hub: the same encoder as in transformers'."""

import dataclasses

import numpy as np
import pytest

from sculpt4d_jax.weights import checkpoint_sizes
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights.tensor_files import open_file
from tests.weights import hunyuan_checkpoints as checkpoints
from tests.weights import pretrained_test as sizes
from tests.weights import training_files_test as files

CONFIG = sizes.CONFIGS["image_encoder"]


def torch_hub(tensors):
  """Transformers' tensors as dinov2_vitl14_pretrain.pth has them."""
  renamed, fused = {}, {}
  for name, array in tensors.items():
    for old, new in (
      ("embeddings.position_embeddings", "pos_embed"),
      ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
      ("embeddings.", ""),
      ("encoder.layer.", "blocks."),
      ("attention.output.dense", "attn.proj"),
      ("layer_scale1.lambda1", "ls1.gamma"),
      ("layer_scale2.lambda1", "ls2.gamma"),
      ("layernorm.", "norm."),
    ):
      name = name.replace(old, new)
    block, found, rest = name.partition(".attention.attention.")
    if found:
      kind = rest.rpartition(".")[2]
      fused.setdefault(f"{block}.attn.qkv.{kind}", []).append(array)
    else:
      renamed[name] = array
  # Query, key and value, as the file's order has them.
  return renamed | {n: np.concatenate(parts) for n, parts in fused.items()}


def arrays_of(folder, tensors):
  folder.mkdir()
  path = files.write(folder / "dinov2.pth", tensors)
  conversion = pretrained.plan_conversion(
    [open_file.open_file(path)], {"image_encoder": CONFIG}
  )
  pretrained.write(conversion, folder / "out", dtype="float32")
  part = model_folders.open_parts(folder / "out")["image_encoder"]
  return {name: part.read(name) for name in part.shapes}


def test_names_of_torch_hub(tmp_path):
  tensors = checkpoints.state(checkpoints.vit_shapes(sizes.VIT), 3, "float32")
  hub = torch_hub(tensors)
  assert {"cls_token", "pos_embed", "blocks.1.attn.qkv.weight"} <= hub.keys()
  files.assert_same(
    arrays_of(tmp_path / "hub", hub), arrays_of(tmp_path / "own", tensors)
  )
  infos = {n: np.broadcast_to(0, a.shape) for n, a in hub.items()}
  assert checkpoint_sizes.differences("image_encoder", infos, CONFIG) == ""
  deeper = dataclasses.replace(CONFIG, num_layers=3)
  hint = checkpoint_sizes.differences("image_encoder", infos, deeper)
  assert "model.image_encoder.num_layers=2" in hint


def test_other_kinds_of_dinov2_are_named(tmp_path):
  shapes = checkpoints.vit_shapes(sizes.VIT)
  hub = torch_hub(checkpoints.state(shapes, 0, "float32"))
  hub["register_tokens"] = np.zeros((1, 4, 12), np.float32)
  with pytest.raises(ValueError, match="registers"):
    arrays_of(tmp_path / "reg", hub)
