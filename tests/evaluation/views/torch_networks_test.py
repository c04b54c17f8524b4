import pickle

import numpy as np
import pytest
from scipy import linalg

from sculpt4d_jax.evaluation.protocols.metrics import picture_networks
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


def test_fvd_of_a_random_network_equals_torch_and_scipy(tmp_path):
  torch = pytest.importorskip("torch", reason="needs the extra `views`")

  class Network(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.convolution = torch.nn.Conv3d(3, 8, (3, 16, 16), (1, 16, 16))
      self.linear = torch.nn.Linear(8, 400)

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
      return self.linear(torch.relu(self.convolution(x)).mean(dim=[2, 3, 4]))

  torch.manual_seed(0)
  network = Network().eval()
  torch.jit.script(network).save(str(tmp_path / "i3d.pt"))
  ours = torch_networks.I3d(tmp_path / "i3d.pt")
  rng = np.random.default_rng(0)
  size = torch_networks.I3D_SIZE
  scales = rng.uniform(0.2, 1.0, (2, 6, 1, 1, 1, 3))
  videos = (scales * rng.integers(0, 256, (2, 6, 4, size, size, 3))).astype(
    np.uint8
  )
  features = np.stack([ours(side) for side in videos])
  with torch.no_grad():
    values = torch.from_numpy(videos.astype(np.float32) / 127.5 - 1)
    expected = [
      network(side.permute(0, 4, 1, 2, 3), False, False, True).double().numpy()
      for side in values
    ]
  np.testing.assert_allclose(features, expected, atol=1e-5)
  found, note = picture_networks.video_distance([features])
  a, b = expected
  ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  # Singular matrices: the trace of the root is that of the eigenvalues' roots.
  roots = np.sqrt(linalg.eigvals(ca @ cb).real.clip(0)).sum()
  distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb)
  assert found == pytest.approx(distance - 2 * roots, rel=1e-4)
  assert note == "6 pieces, covariances of rank 5 at most"
