"""One clip on several devices equals one device's."""


def test_meshes_by_hand(run_on_devices):
  out = run_on_devices(
    8,
    """
    import dataclasses
    import jax
    from configs import sculpt4d
    from sculpt4d_jax.inference import devices, sampling
    from sculpt4d_jax.models import dit_config
    dit = dit_config.DiTConfig()  # 16 heads.
    config = sampling.SamplingConfig(**sculpt4d.get_config().sampling)
    interval = dataclasses.replace(config, guidance_interval=(0.2, 0.8))
    turns = dataclasses.replace(config, guidance_in_turns=True)
    def shape(count, config, frames):
      mesh = devices.sampling_mesh(jax.devices()[:count], config, dit, frames)
      return None if mesh is None else (mesh.shape["data"], mesh.shape["context"])
    assert shape(1, config, 16) is None
    assert shape(2, config, 16) == (2, 1)
    assert shape(8, config, 16) == (2, 4)
    assert shape(8, turns, 16) == (1, 8)
    assert shape(8, interval, 16) == (1, 8)
    assert shape(8, config, 9) == (2, 1)  # 9 frames, 16 heads: no divisor.
    assert shape(3, turns, 9) is None
    assert shape(7, config, 12) == (2, 2)
    print("done")
    """,
  )
  assert "done" in out


def test_eight_devices_equal_one(run_on_devices):
  out = run_on_devices(
    8,
    """
    import jax, numpy as np
    from sculpt4d_jax.inference import model as model_lib
    from tests.inference import small_models
    from tests.integration import micro
    config = model_lib.SamplingConfig(
      **micro.get_config().sampling.to_dict()
      | dict(solver="ab2", num_frames=4, num_steps=4)
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    one = small_models.random_model()
    many = small_models.random_model(devices=jax.local_devices())
    expected = one.sample(images, config)
    found = many.sample(images, config)
    assert dict(many._transformer.mesh.shape) == dict(
      data=2, fsdp=1, expert=1, context=2, tensor=1
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # A length that no device divides goes back to one.
    np.testing.assert_allclose(
      many.sample(images[:3], config), one.sample(images[:3], config), atol=1e-4
    )
    print("equal")
    """,
    timeout=600,
  )
  assert "equal" in out
