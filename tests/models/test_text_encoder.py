"""The CLIP text encoder against transformers' torch model on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.functional import trace_module
from copymit.models.text_encoder import (
    CLIP_VIT_L14,
    OPENCLIP_VIT_H14,
    CLIPTextModel,
    TextEncoderConfig,
    TextEncoderOutput,
)
from copymit.models.torch_layout import load_torch_state, to_torch_state

VOCAB_SIZE, EOS = 99, 98


def _config(**changes) -> TextEncoderConfig:
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 20,
        "eos_token_id": EOS,
    }
    return TextEncoderConfig(**(fields | changes))


def _input_ids(length: int) -> np.ndarray:
    """Captions of several lengths, padded with the end token as in SD 1.x."""
    ids = np.random.default_rng(0).integers(3, EOS, (4, length))
    for row, end in enumerate([length - 1, 3, length // 2, 1]):
        ids[row, end:] = EOS
    return ids


def _torch_config(config: TextEncoderConfig):
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPTextConfig(**dataclasses.asdict(config), bos_token_id=1)


def _torch_model(config: TextEncoderConfig):
    """transformers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.CLIPTextModel(_torch_config(config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def _published_state(torch_model) -> dict[str, np.ndarray]:
    """Names as in the files; the class of transformers 5 dropped their prefix."""
    return {
        f"text_model.{name}": tensor.numpy()
        for name, tensor in torch_model.state_dict().items()
    }


def _make_pair(config: TextEncoderConfig, dtype=jnp.float32):
    torch_model = _torch_model(config)
    model = CLIPTextModel(config, dtype=dtype, rngs=nnx.Rngs(1))
    load_torch_state(model, _published_state(torch_model))
    return torch_model, model


@nnx.jit
def _encode(model: CLIPTextModel, input_ids: np.ndarray) -> TextEncoderOutput:
    return model(input_ids)


def _relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("length", [20, 7])
@pytest.mark.parametrize("eos_token_id", [EOS, 2])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_outputs_equal_those_of_transformers(hidden_act, eos_token_id, length):
    config = _config(hidden_act=hidden_act, eos_token_id=eos_token_id)
    torch_model, model = _make_pair(config)
    import torch

    ids = _input_ids(length)
    with torch.no_grad():
        expected = torch_model(input_ids=torch.from_numpy(ids))
    actual = _encode(model, ids)
    assert actual.last_hidden_state.shape == (4, length, 32)
    # float32 sums in another order through two layers.
    assert _relative_error(actual.last_hidden_state, expected.last_hidden_state) < 1e-4
    assert _relative_error(actual.pooler_output, expected.pooler_output) < 1e-4


def test_pooling_conventions_differ_where_a_larger_id_was_added():
    ids = np.array([[1, 5, EOS, 100, EOS]])
    outputs = {}
    for eos_token_id in (EOS, 2):
        config = _config(vocab_size=101, eos_token_id=eos_token_id)
        hidden_states, pooled = _encode(CLIPTextModel(config, rngs=nnx.Rngs(0)), ids)
        outputs[eos_token_id] = np.asarray(pooled), np.asarray(hidden_states)
    np.testing.assert_array_equal(outputs[EOS][0], outputs[EOS][1][:, 2])
    np.testing.assert_array_equal(outputs[2][0], outputs[2][1][:, 3])


def test_gradients_of_all_parameters_equal_those_of_torch():
    torch_model, model = _make_pair(_config())
    import torch

    ids = _input_ids(20)
    direction = np.random.default_rng(2).normal(size=(4, 20, 32)).astype(np.float32)
    output = torch_model(input_ids=torch.from_numpy(ids))
    loss = (output.last_hidden_state * torch.from_numpy(direction)).sum()
    (loss + output.pooler_output.square().sum()).backward()

    def compute_loss(model):
        hidden_states, pooled = model(jnp.asarray(ids))
        return jnp.sum(hidden_states * direction) + jnp.sum(pooled**2)

    gradients = nnx.merge(nnx.graphdef(model), nnx.jit(nnx.grad(compute_loss))(model))
    actual = to_torch_state(gradients)
    expected = {
        f"text_model.{name}": parameter.grad.numpy()
        for name, parameter in torch_model.named_parameters()
    }
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        # A key bias shifts all logits of a query alike, which softmax ignores: its
        # gradient is rounding noise, measured against that of the query bias.
        scale = expected[name.replace("k_proj.bias", "q_proj.bias")]
        error = np.abs(actual[name] - gradient).max() / np.abs(scale).max()
        assert error < 1e-3, (name, error)


def test_transformers_loads_the_state_that_we_save(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    config = _config()
    model = CLIPTextModel(config, rngs=nnx.Rngs(3))
    save_file(to_torch_state(model), tmp_path / "model.safetensors", {"format": "pt"})
    _torch_config(config).save_pretrained(tmp_path)
    restored, report = transformers.CLIPTextModel.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = _input_ids(20)
    with torch.no_grad():
        expected = restored.eval()(input_ids=torch.from_numpy(ids)).last_hidden_state
    # float32 sums in another order through two layers.
    assert _relative_error(_encode(model, ids).last_hidden_state, expected) < 1e-4


def test_a_state_survives_the_round_trip():
    torch_model, model = _make_pair(_config())
    published = _published_state(torch_model)
    saved = to_torch_state(model)
    assert saved.keys() == published.keys()
    for name, tensor in published.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)


def test_a_token_does_not_see_those_after_it():
    model = CLIPTextModel(_config(), rngs=nnx.Rngs(0))
    ids = _input_ids(20)
    changed = ids.copy()
    changed[:, 6] = (changed[:, 6] + 1) % EOS
    before = np.asarray(_encode(model, ids).last_hidden_state)
    after = np.asarray(_encode(model, changed).last_hidden_state)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max(axis=(0, 2)).min() > 1e-3


def test_bfloat16_stays_close_to_float32_and_keeps_float32_parameters():
    torch_model, exact = _make_pair(_config())
    rounded = CLIPTextModel(_config(), dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    load_torch_state(rounded, _published_state(torch_model))
    ids = _input_ids(20)
    actual, expected = _encode(rounded, ids), _encode(exact, ids)
    assert actual.last_hidden_state.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % per rounding, some tens of roundings deep.
    assert _relative_error(actual.last_hidden_state, expected.last_hidden_state) < 0.05
    parameters = jax.tree.leaves(nnx.state(rounded, nnx.Param))
    assert {parameter.dtype for parameter in parameters} == {jnp.dtype("float32")}


def test_an_unknown_token_gives_nan_instead_of_another_tokens_meaning():
    model = CLIPTextModel(_config(), rngs=nnx.Rngs(0))
    ids = _input_ids(20)
    ids[0, 1] = VOCAB_SIZE
    hidden_states = np.asarray(_encode(model, ids).last_hidden_state)
    assert np.isnan(hidden_states[0, 1]).all()
    assert np.isfinite(hidden_states[1:]).all()


def test_initial_scales_are_those_of_transformers():
    config = _config(hidden_size=256, intermediate_size=512, vocab_size=512)
    state = to_torch_state(CLIPTextModel(config, rngs=nnx.Rngs(0)))
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPTextModel(_torch_config(config))
    for name, parameter in reference.state_dict().items():
        actual, expected = state[f"text_model.{name}"], parameter.numpy()
        # Standard deviations of 5,120 draws or more: 1 % standard error each.
        np.testing.assert_allclose(
            actual.std(), expected.std(), rtol=0.05, err_msg=name
        )
        np.testing.assert_allclose(actual.mean(), expected.mean(), atol=0.01)


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(CLIP_VIT_L14, 123_060_480, 196), (OPENCLIP_VIT_H14, 340_387_840, 372)],
)
def test_presets_have_the_size_of_the_published_encoders(config, parameters, tensors):
    model = trace_module(lambda rngs: CLIPTextModel(config, rngs=rngs))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == parameters
    assert len(leaves) == tensors


def test_captions_longer_than_the_positions_are_refused():
    model = CLIPTextModel(_config(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"21 tokens.*is 20.*max_length=20"):
        model(jnp.ones((1, 21), jnp.int32))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r"hidden_size 32 .* num_attention_heads 5"):
        _config(num_attention_heads=5)


def test_an_unknown_activation_is_named_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'relu' is unknown; use one of gelu, quick_gelu"
    ):
        _config(hidden_act="relu")
