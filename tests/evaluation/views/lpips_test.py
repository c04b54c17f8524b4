import numpy as np
import pytest

from sculpt4d_jax.evaluation.views import lpips

_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def random_weights(seed=0):
  """Tensors by the names of torchvision and lpips."""
  rng = np.random.default_rng(seed)
  trunk, heads, inputs = {}, {}, 3
  for stage, channels in zip(_STAGES, lpips.CHANNELS):
    for number in stage:
      scale = np.sqrt(2 / (9 * inputs))
      kernel = rng.normal(scale=scale, size=(channels, inputs, 3, 3))
      trunk[f"features.{number}.weight"] = kernel.astype(np.float32)
      bias = rng.normal(scale=0.1, size=channels)
      trunk[f"features.{number}.bias"] = bias.astype(np.float32)
      inputs = channels
  for i, channels in enumerate(lpips.CHANNELS):
    head = rng.uniform(0, 1, (1, channels, 1, 1))
    heads[f"lin{i}.model.1.weight"] = head.astype(np.float32)
  return trunk, heads


def noise(count, size=32, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def features(trunk, picture):
  """VGG16 in NumPy, channels first."""
  x = picture.astype(np.float64).transpose(2, 0, 1) / 127.5 - 1
  shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
  x = (x - shift) / np.array([0.458, 0.448, 0.450])[:, None, None]
  found = []
  for number, stage in enumerate(_STAGES):
    if number:
      channels, height, width = x.shape
      x = x.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))
    for layer in stage:
      kernel = trunk[f"features.{layer}.weight"].astype(np.float64)
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
      total = trunk[f"features.{layer}.bias"][:, None, None].astype(np.float64)
      for row in range(3):
        for column in range(3):
          part = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
          total = total + np.tensordot(kernel[:, :, row, column], part, 1)
      x = np.maximum(total, 0)
    found.append(x / (np.sqrt(np.square(x).sum(0)) + 1e-10))
  return found


def test_equals_the_formula_in_numpy():
  trunk, heads = random_weights()
  a, b = noise(1), noise(1, seed=2)
  expected = 0.0
  for i, (x, y) in enumerate(zip(features(trunk, a[0]), features(trunk, b[0]))):
    head = heads[f"lin{i}.model.1.weight"].reshape(-1)
    expected += np.tensordot(head, np.square(x - y), 1).mean()
  found = lpips.Lpips(trunk, heads)(a, b)
  assert found.scalar[0] == pytest.approx(expected, rel=1e-5)
  # An enlarged map keeps its mean.
  assert found.spatial[0] == pytest.approx(expected, rel=1e-5)


def test_identical_pictures_are_at_zero_and_order_does_not_matter():
  network = lpips.Lpips(*random_weights())
  a, b = noise(2), noise(2, seed=2)
  same, forth, back = network(a, a), network(a, b), network(b, a)
  np.testing.assert_allclose(same.scalar, 0.0, atol=1e-9)
  np.testing.assert_allclose(same.spatial, 0.0, atol=1e-9)
  np.testing.assert_allclose(forth.scalar, back.scalar, rtol=1e-6)


def test_foreign_tensors_are_refused():
  trunk, heads = random_weights()
  del trunk["features.14.bias"]
  with pytest.raises(ValueError, match=r"features.14.bias of shape \(256,\)"):
    lpips.Lpips(trunk, heads)
  with pytest.raises(ValueError, match="expected two arrays"):
    lpips.Lpips(*random_weights())(noise(1), noise(2))


def test_equals_torchmetrics():
  torch = pytest.importorskip("torch", reason="needs PyTorch")
  package = pytest.importorskip(
    "torchmetrics.functional.image.lpips", reason="needs torchmetrics"
  )
  pytest.importorskip("torchvision", reason="needs torchvision")
  trunk, heads = random_weights()
  network = package._LPIPS(
    pretrained=False, net="vgg", pnet_rand=True, use_dropout=False
  ).eval()
  own = dict(network.net.named_parameters())
  with torch.no_grad():
    for name, tensor in trunk.items():
      [key] = [k for k in own if k.endswith("." + name.partition(".")[2])]
      own[key].copy_(torch.from_numpy(tensor))
    for number in range(len(lpips.CHANNELS)):
      weight = heads[f"lin{number}.model.1.weight"]
      [tensor] = network.lins[number].parameters()
      tensor.copy_(torch.from_numpy(weight))
    a, b = noise(2, 64), noise(2, 64, seed=2)
    to_torch = lambda x: torch.from_numpy(
      x.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
    )
    expected = network(to_torch(a), to_torch(b)).reshape(-1).numpy()
  found = lpips.Lpips(trunk, heads)(a, b).scalar
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_equals_the_package_lpips(tmp_path):
  torch = pytest.importorskip("torch", reason="needs the extra `views`")
  package = pytest.importorskip("lpips", reason="needs the extra `views`")
  trunk, _ = random_weights()
  a, b = noise(2, 64), noise(2, 64, seed=2)
  results = {}
  for spatial in (False, True):
    network = package.LPIPS(
      net="vgg", pnet_rand=True, spatial=spatial, verbose=False
    ).eval()
    own = dict(network.net.named_parameters())
    with torch.no_grad():
      for name, tensor in trunk.items():
        # slice1.0.weight, ...: the numbers are torchvision's.
        [key] = [k for k in own if k.endswith("." + name.partition(".")[2])]
        own[key].copy_(torch.from_numpy(tensor))
      to_torch = lambda x: torch.from_numpy(
        x.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
      )
      results[spatial] = (
        network(to_torch(a), to_torch(b)).mean((1, 2, 3)).numpy()
      )
  heads = {
    name: tensor.detach().numpy()
    for name, tensor in network.named_parameters()
    if name.startswith("lin") and "lins" not in name
  }
  torch.save(
    {k: torch.from_numpy(v) for k, v in trunk.items()}, tmp_path / "vgg16.pth"
  )
  torch.save(
    {k: torch.from_numpy(v) for k, v in heads.items()}, tmp_path / "lin.pth"
  )
  ours = lpips.Lpips.load(tmp_path / "vgg16.pth", tmp_path / "lin.pth")(a, b)
  np.testing.assert_allclose(ours.scalar, results[False], atol=1e-5)
  np.testing.assert_allclose(ours.spatial, results[True], atol=1e-5)
