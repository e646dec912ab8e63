"""Attention taps against diffusers' probabilities, and what a control changes."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models import blocks
from copymit.models.attention_control import keep_logits
from copymit.models.functional import trace_module
from copymit.models.torch_layout import load_torch_state
from copymit.models.unet import UNet2DConditionModel, UNetConfig

CONFIG = UNetConfig(
    sample_size=8,
    block_out_channels=(8, 16),
    cross_attention=(False, True),
    num_attention_heads=(2, 4),
    layers_per_block=1,
    transformer_layers=2,
    cross_attention_dim=12,
    use_linear_projection=True,
    norm_num_groups=4,
)
LAYERS = [
    f"{block}.transformer_blocks.{i}.attn2"
    for block in (
        "down_blocks.1.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
    )
    for i in range(2)
]


def some_inputs():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    text = rng.normal(size=(2, 5, 12)).astype(np.float32)
    return latents, np.array([7, 901]), text


def call(model, config=CONFIG, **control):
    """Runs a model with the weights of another, as one compiled function."""
    other = trace_module(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    graphdef, params = nnx.split(other)[0], nnx.split(model)[1]
    inputs = [jnp.asarray(x) for x in some_inputs()]
    return jax.jit(lambda params: nnx.merge(graphdef, params)(*inputs, **control))(
        params
    )


@pytest.fixture(scope="module")
def torch_model():
    """diffusers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CONFIG.block_out_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=2,
        cross_attention_dim=12,
        attention_head_dim=CONFIG.num_attention_heads,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "weight" in name), 0.3)
    return model


@pytest.fixture(scope="module")
def model(torch_model):
    state = {k: v.numpy().copy() for k, v in torch_model.state_dict().items()}
    model = trace_module(lambda rngs: UNet2DConditionModel(CONFIG, rngs=rngs))
    load_torch_state(model, state)
    return model


@pytest.fixture(scope="module")
def tapped(model):
    return call(model, control=keep_logits)


def run_torch(torch_model, change=lambda logits: logits):
    """Returns diffusers' prediction, and the probabilities that processors see.

    Args:
      change: of the logits of cross-attention.
    """
    import torch

    found = {}

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **unused):
            context = (
                hidden_states
                if encoder_hidden_states is None
                else encoder_hidden_states
            )
            q, k, v = (
                attn.head_to_batch_dim(x)
                for x in (
                    attn.to_q(hidden_states),
                    attn.to_k(context),
                    attn.to_v(context),
                )
            )
            scores = attn.get_attention_scores(q, k)
            if encoder_hidden_states is not None:
                # The log of a softmax is the logits, but for a constant of each row.
                scores = change(scores.log()).softmax(-1)
                B = hidden_states.shape[0]
                found[self.name] = scores.reshape(B, -1, *scores.shape[1:]).numpy()
            return attn.to_out[0](attn.batch_to_head_dim(scores @ v))

    plain = torch_model.attn_processors
    torch_model.set_attn_processor(
        {name: Recorder(name.removesuffix(".processor")) for name in plain}
    )
    latents, timesteps, text = (torch.from_numpy(x) for x in some_inputs())
    with torch.no_grad():
        output = torch_model(latents.permute(0, 3, 1, 2), timesteps, text).sample
    torch_model.set_attn_processor(plain)
    return SimpleNamespace(prediction=output.permute(0, 2, 3, 1).numpy(), taps=found)


def assert_close(actual, expected):
    # float32 sums in another order through some thirty layers.
    error = np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
    assert error < 1e-4


def test_probabilities_equal_those_that_diffusers_processors_see(torch_model, tapped):
    expected = run_torch(torch_model)
    prediction, taps = tapped
    assert_close(prediction, expected.prediction)
    assert taps.keys() == expected.taps.keys() == set(LAYERS)
    for name in LAYERS:
        assert taps[name].shape == expected.taps[name].shape, name
        assert expected.taps[name].std() > 0.01, name
        np.testing.assert_allclose(
            taps[name], expected.taps[name], atol=1e-4, err_msg=name
        )


def test_a_control_changes_logits_as_a_processor_of_diffusers_would(torch_model, model):
    import torch

    boost = np.array([0.0, 1.5, 0.0, -1.0, 0.0], np.float32)
    expected = run_torch(torch_model, lambda s: 1.25 * s + torch.from_numpy(boost))
    prediction, taps = call(model, control=lambda layer, x: 1.25 * x + boost)
    assert_close(prediction, expected.prediction)
    for name in LAYERS:
        np.testing.assert_allclose(
            taps[name], expected.taps[name], atol=1e-4, err_msg=name
        )


def test_a_masked_token_gets_nothing_and_each_layer_is_asked_once_in_order(model):
    asked = []
    mask = np.array([0.0, 0.0, -np.inf, 0.0, 0.0], np.float32)

    def control(layer, logits):
        asked.append((layer, logits.shape, logits.dtype))
        return logits + mask

    prediction, taps = call(model, control=control)
    assert [layer for layer, _, _ in asked] == LAYERS == list(taps)
    assert asked[0][1:] == ((2, 4, 16, 5), jnp.float32)
    assert np.isfinite(np.asarray(prediction)).all()
    for probabilities in taps.values():
        assert (np.asarray(probabilities)[..., 2] == 0).all()
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def test_a_control_that_keeps_the_logits_changes_nothing(model, tapped):
    prediction, _ = tapped
    # Another formulation of attention: float32 sums in another order.
    assert_close(prediction, np.asarray(call(model)))


def test_taps_survive_rematerialisation(model, tapped):
    config = dataclasses.replace(CONFIG, remat="blocks")
    prediction, taps = call(model, config, control=keep_logits)
    assert_close(prediction, np.asarray(tapped[0]))
    for name in LAYERS:
        np.testing.assert_allclose(taps[name], tapped[1][name], atol=1e-6)


def test_without_a_control_every_layer_attends_by_the_fast_path(monkeypatch):
    counted = []
    attend = blocks.attend

    def counting(*args, **kwargs):
        counted.append(kwargs["implementation"])
        return attend(*args, **kwargs)

    monkeypatch.setattr(blocks, "attend", counting)
    config = dataclasses.replace(CONFIG, attention_implementation="blockwise")
    model = trace_module(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    graphdef, params = nnx.split(model)
    inputs = [jnp.asarray(x) for x in some_inputs()]

    def equations(**control) -> str:
        counted.clear()
        traced = jax.make_jaxpr(lambda p: nnx.merge(graphdef, p)(*inputs, **control))
        return str(traced(params))

    plain = equations()
    assert counted == ["blockwise"] * 2 * len(LAYERS)  # self and cross
    assert equations(control=None) == plain
    # Only under a control is an array of all probabilities made.
    assert "f32[2,4,16,5]" not in plain
    assert "f32[2,4,16,5]" in equations(control=keep_logits)
    assert counted == ["blockwise"] * len(LAYERS)
