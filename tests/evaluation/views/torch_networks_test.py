import pickle

import numpy as np
import pytest

from sculpt4d_jax.evaluation.views import torch_networks


def test_short_videos_go_back_and_forth():
  video = np.arange(5)
  [piece] = torch_networks.pieces(video, 12)
  np.testing.assert_array_equal(piece, [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3])
  assert torch_networks.pieces(np.arange(70), 32).shape == (2, 32)
  np.testing.assert_array_equal(
    torch_networks.pieces(np.arange(1), 3), [[0] * 3]
  )


def test_files_that_are_not_torchscript_are_refused(tmp_path):
  path = tmp_path / "i3d_torchscript.pt"
  path.write_bytes(pickle.dumps({"a": 1}))
  with pytest.raises(ValueError, match="is not a torchscript file"):
    torch_networks.I3d(path)


def test_scripted_module_stands_in_for_the_file(tmp_path):
  torch = pytest.importorskip("torch", reason="needs the extra `views`")

  class Network(torch.nn.Module):
    def __init__(self, width: int):
      super().__init__()
      self.linear = torch.nn.Linear(3, width)

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
      return self.linear(x.mean(dim=[2, 3, 4]))

  video = np.full((1, 4, 32, 32, 3), 255, np.uint8)
  for width in (400, 10):
    network = Network(width)
    torch.jit.script(network).save(str(tmp_path / "i3d.pt"))
    found = torch_networks.I3d(tmp_path / "i3d.pt")
    if width == 400:
      expected = network.linear(torch.ones(1, 3)).detach().numpy()
      np.testing.assert_allclose(found(video), expected, rtol=1e-5)
    else:
      with pytest.raises(ValueError, match=r"gives \(1, 10\) for one video"):
        found(video)
