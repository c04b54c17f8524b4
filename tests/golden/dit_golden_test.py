"""DiT and flow matching against numbers of Hunyuan3D 2.1 (see README.md)."""

import functools
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import losses
from sculpt4d_jax.diffusion import paths
from sculpt4d_jax.diffusion import samplers
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit
from sculpt4d_jax.models import time_embedding
from sculpt4d_jax.models.moe import experts
from sculpt4d_jax.models.moe import layer as moe
from sculpt4d_jax.weights import dit as dit_weights
from sculpt4d_jax.weights import rules as weight_rules
from tests.weights import module_params

_FOLDER = pathlib.Path(__file__).parent
_CONFIG = json.loads((_FOLDER / "config.json").read_text())
_FORWARD = 2e-5  # Absolute.
_GRADIENT = 1e-4  # Of the largest number in the array.

Rule = weight_rules.Rule


@functools.cache
def _load(name: str) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(_FOLDER / f"{name}.safetensors")


def _state(name: str) -> dict[str, np.ndarray]:
  return {
    key.removeprefix("state/"): array
    for key, array in _load(name).items()
    if key.startswith("state/")
  }


def _fill(module: nnx.Module, rules: list[Rule], name: str) -> None:
  shapes = weight_rules.param_shapes(module)
  params = weight_rules.convert(rules, _state(name), shapes)
  module_params.set_params(module, params)


def _assert_close(actual, expected, tolerance=_FORWARD):
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def _assert_gradient(actual, expected):
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=_GRADIENT * scale + 1e-9
  )


def _linear(source: str, target: str) -> list[Rule]:
  return [
    Rule(f"{source}.weight", f"{target}.kernel", weight_rules.linear()),
    Rule(f"{source}.bias", f"{target}.bias"),
  ]


def test_time_token():
  golden = _load("timestep_embedder")
  width = _CONFIG["timestep_embedder"]["config"]["hidden_size"]
  module = time_embedding.TimeEmbedding(width, rngs=nnx.Rngs(0))
  rules = _linear("mlp.0", "mlp.fc1") + _linear("mlp.2", "mlp.fc2")
  _fill(module, rules, "timestep_embedder")
  sinusoid = time_embedding.time_features(golden["in/t"], width)
  _assert_close(sinusoid, golden["mid/sinusoid"])
  _assert_close(module(golden["in/t"]), golden["out/embedding"][:, 0])


def _attention_rules(fused: tuple[str, ...], plain: tuple[str, ...]):
  sources = tuple(f"to_{name[0]}.weight" for name in fused)
  targets = tuple(f"{name}.kernel" for name in fused)
  transform = weight_rules.interleaved_heads(len(fused))
  return [
    Rule(sources, targets, transform),
    *(
      Rule(f"to_{name[0]}.weight", f"{name}.kernel", weight_rules.linear())
      for name in plain
    ),
    Rule("q_norm.weight", "query_norm.scale"),
    Rule("k_norm.weight", "key_norm.scale"),
    Rule("out_proj.weight", "out.kernel", weight_rules.linear(2)),
    Rule("out_proj.bias", "out.bias"),
  ]


def test_self_attention():
  golden = _load("self_attention")
  c = _CONFIG["self_attention"]["config"]
  module = attention.SelfAttention(c["dim"], c["num_heads"], rngs=nnx.Rngs(0))
  _fill(
    module, _attention_rules(("query", "key", "value"), ()), "self_attention"
  )
  x = jnp.asarray(golden["in/x"])
  heads_first = lambda y: jnp.moveaxis(y, 2, 1)
  before = golden["mid/q_heads_before_norm"]
  _assert_close(heads_first(module.query(x)), before)
  query, key = module.project_query(x), module.project_key_value(x).key
  _assert_close(heads_first(query), golden["mid/q_heads"])
  _assert_close(heads_first(key), golden["mid/k_heads"])
  _assert_close(module(x), golden["out/y"])


def test_cross_attention():
  golden = _load("cross_attention")
  c = _CONFIG["cross_attention"]["config"]
  module = attention.CrossAttention(
    c["qdim"], c["num_heads"], context_width=c["kdim"], rngs=nnx.Rngs(0)
  )
  _fill(
    module, _attention_rules(("key", "value"), ("query",)), "cross_attention"
  )
  x, context = golden["in/x"], golden["in/context"]
  encoded = module.encode_context(context)
  _assert_close(module.project_query(x), golden["mid/q_heads"])
  _assert_close(encoded.key, golden["mid/k_heads"])
  _assert_close(module(x, context), golden["out/y"])
  _assert_close(module(x, encoded), golden["out/y"])


def _moe_module(implementation):
  c = _CONFIG["moe_block"]["config"]
  module = moe.MoE(
    c["dim"],
    c["ff_inner_dim"],
    num_experts=c["num_experts"],
    num_chosen=c["moe_top_k"],
    aux_loss_weight=c["aux_loss_alpha"],
    implementation=implementation,
    rngs=nnx.Rngs(0),
  )
  _fill(module, _moe_rules(c["num_experts"]), "moe_block")
  return module


def _moe_rules(num_experts):
  rules = [Rule("gate.weight", "router.kernel", weight_rules.linear())]
  rules += _linear("shared_experts.net.0.proj", "shared_expert.fc1")
  rules += _linear("shared_experts.net.2", "shared_expert.fc2")
  for e in range(num_experts):
    for source, fc in (("0.proj", "fc1"), ("2", "fc2")):
      weight, bias = _linear(f"experts.{e}.net.{source}", f"experts.{fc}")
      for rule in (weight, bias):
        target = f"{rule.targets[0]}[{e}]"
        rules.append(Rule(rule.sources, target, rule.transform))
  return rules


@pytest.mark.parametrize("implementation", experts.IMPLEMENTATIONS)
def test_moe(implementation):
  golden = _load("moe_block")
  module = _moe_module(implementation)
  x = jnp.asarray(golden["in/x"])
  routing = module.router(x.reshape(-1, x.shape[-1]))
  dense_gate = np.zeros(golden["mid/dense_gate"].shape).reshape(-1, 4)
  np.put_along_axis(dense_gate, routing.chosen, routing.gates, axis=1)
  _assert_close(dense_gate.reshape(2, 18, 4), golden["mid/dense_gate"])
  _assert_same_choices(routing, golden)
  scores = routing.probabilities.reshape(2, 18, 4)
  _assert_close(scores, golden["mid/scores"])
  _assert_close(module.shared_expert(x), golden["mid/shared_out"])
  out = nnx.jit(lambda module, x: module(x))(module, x)
  _assert_close(out.y, golden["out/y"])
  _assert_close(out.y, golden["out/y_train"])
  _assert_close(out.aux_loss, golden["out/aux_loss"][0], 1e-7)


def _assert_same_choices(routing, golden):
  """The chosen experts of each token, and the weight of each, in any order."""
  chosen = golden["mid/topk_idx_unordered"]
  weights = golden["mid/topk_weight_unordered"]
  np.testing.assert_array_equal(np.sort(routing.chosen), np.sort(chosen))
  by_expert = lambda w, e: np.take_along_axis(w, np.argsort(e), axis=1)
  _assert_close(
    by_expert(np.asarray(routing.gates), np.asarray(routing.chosen)),
    by_expert(weights, chosen),
  )


@pytest.mark.parametrize("implementation", experts.IMPLEMENTATIONS)
def test_moe_gradients(implementation):
  golden = _load("moe_block")
  graphdef, params = nnx.split(_moe_module(implementation))
  x = jnp.asarray(golden["in/x"])

  def objective(params, x, cotangent):
    out = nnx.merge(graphdef, params)(x)
    return jnp.sum(out.y * cotangent) + out.aux_loss

  differentiate = jax.jit(jax.grad(objective, argnums=(0, 1)))
  gradients, x_gradient = differentiate(params, x, golden["in/cotangent"])
  _assert_gradient(x_gradient, golden["out/grad_x"])
  gate = gradients["router"]["kernel"].get_value()
  _assert_gradient(gate.T, golden["out/grad_gate_weight"])
  expert0 = gradients["experts"]["fc1"]["kernel"].get_value()[0]
  _assert_gradient(expert0.T, golden["out/grad_expert0_in_weight"])
  shared = gradients["shared_expert"]["fc2"]["bias"].get_value()
  _assert_gradient(shared, golden["out/grad_shared_out_bias"])
  aux_only, _ = differentiate(params, x, jnp.zeros_like(x))
  gate = aux_only["router"]["kernel"].get_value()
  _assert_gradient(gate.T, golden["out/grad_gate_weight_aux_only"])


def _dit_config(**changes) -> dit.DiTConfig:
  c = _CONFIG["dit"]["config"]
  values = dict(
    depth=c["depth"],
    width=c["hidden_size"],
    num_heads=c["num_heads"],
    latent_channels=c["in_channels"],
    context_width=c["context_dim"],
    num_moe_blocks=c["num_moe_layers"],
    num_experts=c["num_experts"],
    num_experts_per_token=c["moe_top_k"],
    temporal_mode="none",
    temporal_block_size=4,
  )
  return dit.DiTConfig(**(values | changes))


@functools.cache
def _dit(**changes) -> dit.DiT:
  config = _dit_config(**changes)
  module = dit.DiT(config, rngs=nnx.Rngs(0))
  shapes = weight_rules.param_shapes(module)
  params = weight_rules.convert(
    dit_weights.rules(config),
    _state("dit"),
    shapes,
    optional=dit_weights.TEMPORAL,
  )
  module_params.set_params(module, params)
  return module


def _dit_inputs():
  """Latents, time, context: one frame a clip."""
  golden = _load("dit")
  latents, context = golden["in/x"][:, None], golden["in/context"][:, None]
  return jnp.asarray(latents), jnp.asarray(golden["in/t"]), jnp.asarray(context)


def _run(module: dit.DiT):
  graphdef, params = nnx.split(module)
  call = jax.jit(lambda p, *inputs: nnx.merge(graphdef, p)(*inputs).velocity)
  return functools.partial(call, params)


@functools.partial(jax.jit, static_argnames="graphdef")
def _run_block(graphdef, params, x, context, skip):
  """Output, and what the block made of the skip."""
  block = nnx.merge(graphdef, params)
  fused = None if skip is None else block.fuse_skip(x, skip)
  return block(x, context, skip, temporal_mode="none").x, fused


def test_dit_block_by_block():
  golden, module = _load("dit"), _dit()
  latents, time, context = _dit_inputs()
  embedded = module.latent_embedding(latents[:, 0])
  _assert_close(embedded, golden["mid/x_embedded"])
  token = module.time_embedding(time)[:, None]
  _assert_close(token, golden["mid/time_token"])
  x, skips = module.embed(latents, time), []
  for index, kind in enumerate(module.config.block_kinds):
    skip = skips.pop() if kind.has_skip else None
    x, fused = _run_block(*nnx.split(module.block(index)), x, context, skip)
    if kind.has_skip:
      expected = golden[f"mid/block_{index:02}_after_skip_norm"]
      _assert_close(fused[:, 0], expected)
    if kind.pushes:
      skips.append(x)
    _assert_close(x[:, 0], golden[f"mid/block_{index:02}_out"])
  kinds = module.config.block_kinds
  with_skip = [i for i, kind in enumerate(kinds) if kind.has_skip]
  with_experts = [i for i, kind in enumerate(kinds) if kind.is_moe]
  assert with_skip == _CONFIG["dit"]["layers_with_skip"]
  assert with_experts == _CONFIG["dit"]["moe_layers"]


def test_dit_velocity_and_guidance():
  golden = _load("dit")
  latents, time, context = _dit_inputs()
  velocity = _run(_dit())
  conditional = velocity(latents, time, context)
  unconditional = velocity(latents, time, jnp.zeros_like(context))
  guided = guidance.combine(conditional, unconditional, 5.0)
  _assert_close(conditional[:, 0], golden["out/velocity"])
  _assert_close(unconditional[:, 0], golden["out/velocity_zero_context"])
  # Guidance multiplies the difference, and its error, by five.
  _assert_close(guided[:, 0], golden["out/velocity_cfg5"], 5 * _FORWARD)


def test_4d_model_with_imported_weights_equals_the_3d_model():
  golden = _load("dit")
  latents, time, context = _dit_inputs()
  velocity = _run(_dit(temporal_mode="sparse"))(latents, time, context)
  _assert_close(velocity[:, 0], golden["out/velocity"])


def test_checkpoint_round_trip():
  module = _dit(temporal_mode="sparse")
  params = weight_rules.params_by_path(module)
  exported = weight_rules.export(dit_weights.rules(module.config), params)
  state = _state("dit")
  assert exported.keys() == state.keys()
  for name, array in exported.items():
    np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_dit_gradients():
  golden, module = _load("dit_grad"), _dit()
  latents, time, context = _dit_inputs()
  target = jnp.asarray(golden["in/target"])[:, None]
  graphdef, params = nnx.split(module)

  def objective(params, latents, context):
    out = nnx.merge(graphdef, params)(latents, time, context)
    loss = losses.squared_error(out.velocity, target)
    return loss + out.aux_losses.sum(), (loss, out.aux_losses)

  differentiate = jax.jit(jax.grad(objective, argnums=(0, 1, 2), has_aux=True))
  gradients, (loss, aux_losses) = differentiate(params, latents, context)
  params_gradient, latents_gradient, context_gradient = gradients
  _assert_close(loss, golden["out/loss"][0], 1e-5)
  _assert_close(aux_losses, golden["out/aux_losses"], 1e-7)
  _assert_gradient(latents_gradient[:, 0], golden["out/grad_in_x"])
  _assert_gradient(context_gradient[:, 0], golden["out/grad_in_context"])
  by_path = {
    ".".join(map(str, path)): param.get_value()
    for path, param in nnx.to_flat_state(params_gradient)
  }
  # Import and export permute numbers only: they carry gradients as well.
  exported = weight_rules.export(dit_weights.rules(module.config), by_path)
  for key, expected in golden.items():
    if key.startswith("out/grad/"):
      _assert_gradient(exported[key.removeprefix("out/grad/")], expected)
  norms = _CONFIG["dit_grad"]["grad_norms_all_params"]
  assert exported.keys() == norms.keys()
  for name, norm in norms.items():
    actual = np.linalg.norm(exported[name])
    np.testing.assert_allclose(actual, norm, rtol=_GRADIENT, err_msg=name)


def test_rules_name_every_tensor_of_the_released_checkpoint():
  rules = dit_weights.rules(dit.DiTConfig())
  names = [name for rule in rules for name in rule.sources]
  assert len(set(names)) == len(names) == 752
  assert "blocks.20.moe.experts.7.net.0.proj.weight" in names


def test_flow_matching():
  golden = _load("flow_matching")
  noise, data, time = (
    jnp.asarray(golden[f"in/{name}"]) for name in ("noise_x0", "data_x1", "t")
  )
  x = paths.interpolate(noise, data, time)
  target = paths.velocity(noise, data)
  _assert_close(x, golden["out/xt"])
  _assert_close(target, golden["out/target"])
  prediction = x @ golden["in/W"] + time[:, None, None]
  _assert_close(prediction, golden["out/pred"])
  per_clip = losses.squared_error_per_clip(prediction, target)
  _assert_close(per_clip, golden["out/loss_per_sample"])
  _assert_close(losses.squared_error(prediction, target), golden["out/loss"][0])


def test_scheduler():
  golden = _load("scheduler")
  times = samplers.euler_times(50, skip_zero_step=False)
  _assert_close(times, golden["out/sigmas"], 1e-7)
  _assert_close(times[:-1], golden["in/sigmas_arg"], 1e-7)
  _assert_close(times[:-1], golden["out/model_time"], 1e-7)
  _assert_close(1000 * times[:-1], golden["out/timesteps"], 1e-4)
  shifted = samplers.euler_times(20, shift=3.0, skip_zero_step=False)
  _assert_close(shifted, golden["out/sigmas_shift3_20"], 1e-7)
  own = samplers.euler_times(
    12, start=samplers.SCHEDULER_START, skip_zero_step=False
  )
  _assert_close(own, golden["out/sigmas_default12"], 1e-7)


@pytest.mark.parametrize("skip_zero_step", [False, True])
def test_euler_trajectory(skip_zero_step):
  golden = _load("scheduler")

  def velocity(x, time):
    linear = x @ golden["in/A"].T + golden["in/b"]
    return linear + golden["in/c"] * time[:, None]

  states = samplers.euler(
    velocity,
    jnp.asarray(golden["in/x0"]),
    samplers.euler_times(50, skip_zero_step=skip_zero_step),
    return_trajectory=True,
  )
  _assert_close(states, golden["out/trajectory"][: len(states)])
  _assert_close(states[-1], golden["out/trajectory"][-1])
