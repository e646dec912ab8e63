"""The UNet against diffusers' torch model on random weights: outputs and gradients."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.functional import trace_module
from copymit.models.torch_layout import load_torch_state, to_torch_state
from copymit.models.unet import SD_1, SD_2, UNet2DConditionModel, UNetConfig

CONFIGS = {
    # As SD 1.x: convolutions around the transformers, one number of heads.
    "sd1": UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        cross_attention=(True, False),
        num_attention_heads=4,
        layers_per_block=2,
        cross_attention_dim=24,
        norm_num_groups=8,
    ),
    # As SD 2.x: linear layers there, heads by level.
    "sd2": UNetConfig(
        sample_size=8,
        block_out_channels=(16, 32),
        cross_attention=(True, False),
        num_attention_heads=(2, 4),
        layers_per_block=1,
        transformer_layers=2,
        cross_attention_dim=20,
        use_linear_projection=True,
        norm_num_groups=4,
    ),
    # As the demo: three levels, no transformer at the finest, 12 channels of latents.
    "demo": UNetConfig(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        block_out_channels=(8, 16, 24),
        cross_attention=(False, True, True),
        num_attention_heads=4,
        layers_per_block=1,
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=4,
    ),
}


def _torch_model(config: UNetConfig):
    """diffusers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    kinds = {True: "CrossAttn", False: ""}
    down = tuple(f"{kinds[c]}DownBlock2D" for c in config.cross_attention)
    up = tuple(f"{kinds[c]}UpBlock2D" for c in reversed(config.cross_attention))
    model = diffusers.UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=config.transformer_layers,
        cross_attention_dim=config.cross_attention_dim,
        # The published configs' name for the number of heads.
        attention_head_dim=config.num_attention_heads,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_epsilon,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "weight" in name), 0.1)
    return model


def _inputs(config: UNetConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = config.sample_size
    latents = rng.normal(size=(2, size, size, config.in_channels))
    text = rng.normal(size=(2, 5, config.cross_attention_dim))
    return latents.astype(np.float32), np.array([7, 901]), text.astype(np.float32)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Output and gradients of both models, of one pass through each."""
    config = CONFIGS[request.param]
    torch_model = _torch_model(config)
    import torch

    latents, timesteps, text = _inputs(config)
    inputs = [jnp.asarray(x) for x in (latents, timesteps, text)]
    weights = np.random.default_rng(1).normal(size=latents.shape).astype(np.float32)
    state = {k: v.numpy().copy() for k, v in torch_model.state_dict().items()}
    model = trace_module(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    load_torch_state(model, state)

    sample = torch.from_numpy(latents).permute(0, 3, 1, 2)
    output = torch_model(
        sample, torch.from_numpy(timesteps), torch.from_numpy(text)
    ).sample.permute(0, 2, 3, 1)
    (output * torch.from_numpy(weights)).sum().backward()

    graphdef, params = nnx.split(model)

    def compute_loss(params):
        prediction = nnx.merge(graphdef, params)(*inputs)
        return jnp.sum(prediction * weights), prediction

    differentiate = jax.value_and_grad(compute_loss, has_aux=True)
    (_, prediction), gradients = jax.jit(differentiate)(params)
    return SimpleNamespace(
        config=config,
        state=state,
        model=model,
        expected=output.detach().numpy(),
        actual=np.asarray(prediction),
        expected_gradients={
            name: parameter.grad.numpy()
            for name, parameter in torch_model.named_parameters()
        },
        actual_gradients=to_torch_state(nnx.merge(graphdef, gradients)),
    )


def test_outputs_equal_those_of_diffusers(pair):
    assert pair.actual.shape == pair.expected.shape
    error = np.abs(pair.actual - pair.expected).max() / np.abs(pair.expected).max()
    # float32 sums in another order through some thirty layers.
    assert error < 1e-4


def test_gradients_of_all_parameters_equal_those_of_torch(pair):
    assert pair.actual_gradients.keys() == pair.expected_gradients.keys()
    for name, expected in pair.expected_gradients.items():
        assert np.abs(expected).max() > 0, name
        error = np.abs(pair.actual_gradients[name] - expected).max()
        # As above, back and forth.
        assert error / np.abs(expected).max() < 1e-3, name


def test_a_state_survives_the_round_trip(pair):
    saved = to_torch_state(pair.model)
    assert saved.keys() == pair.state.keys()
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("config", "parameters"), [(SD_1, 859_520_964), (SD_2, 865_910_724)]
)
def test_presets_have_the_size_of_the_published_networks(config, parameters):
    model = trace_module(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == parameters


def test_bfloat16_is_close_to_float32_and_leaves_float32_at_both_ends():
    config = UNetConfig(
        sample_size=4,
        block_out_channels=(8,),
        cross_attention=(True,),
        num_attention_heads=2,
        layers_per_block=1,
        cross_attention_dim=12,
        norm_num_groups=4,
    )

    def predict(dtype) -> np.ndarray:
        model = trace_module(
            lambda rngs: UNet2DConditionModel(config, dtype=dtype, rngs=rngs)
        )
        graphdef, shapes = nnx.split(model)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: rng.normal(0.1, 0.2, leaf.shape).astype(leaf.dtype), shapes
        )
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
        assert dtypes == {np.dtype("float32")}
        inputs = [jnp.asarray(x) for x in _inputs(config)]
        call = jax.jit(lambda params: nnx.merge(graphdef, params)(*inputs))
        return np.asarray(call(params))

    exact, rounded = predict(jnp.float32), predict(jnp.bfloat16)
    assert rounded.dtype == np.float32
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    # bfloat16 keeps 8 bits: 0.4 % per rounding, some ten layers deep.
    assert 1e-5 < error < 0.05


def test_one_number_of_heads_serves_every_level():
    assert SD_1.heads == (8, 8, 8, 8)
    assert SD_2.heads == (5, 10, 20, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cross_attention": (True,)},
            r"2 levels, cross_attention 1, num_attention_heads 2: give one value",
        ),
        ({"num_attention_heads": (4, 4, 4)}, r"num_attention_heads 3: give one value"),
        (
            {"norm_num_groups": 6},
            r"norm_num_groups=6 must divide .* does not divide 16",
        ),
        (
            {"sample_size": 9},
            r"latents of 9 x 9 cannot be halved 1 times: .* a multiple of 2",
        ),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIGS["sd1"], **changes)


def test_heads_that_do_not_divide_a_level_are_named():
    config = dataclasses.replace(CONFIGS["sd1"], num_attention_heads=(5, 4))
    with pytest.raises(ValueError, match=r"16 channels cannot have 5 heads"):
        trace_module(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
