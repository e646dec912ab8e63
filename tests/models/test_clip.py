"""CLIP's two encoders against transformers' torch model on random weights."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.clip import (
    CLIP_VIT_B16,
    CLIP_VIT_L14,
    CLIP_VIT_L14_336,
    OPENCLIP_VIT_H14,
    CLIPConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from copymit.models.text_encoder import TextEncoderConfig
from copymit.models.torch_layout import load_torch_state, to_torch_state

EOS = 58


def make_config(hidden_act="quick_gelu", eos_token_id=EOS, heads=3) -> CLIPConfig:
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=heads,
        image_size=32,
        patch_size=8,
        hidden_act=hidden_act,
    )
    text = TextEncoderConfig(
        hidden_size=36,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=heads,
        vocab_size=60,
        max_position_embeddings=12,
        hidden_act=hidden_act,
        eos_token_id=eos_token_id,
    )
    return CLIPConfig(vision, text, projection_dim=20)


def make_torch_model(config: CLIPConfig):
    """transformers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    published = transformers.CLIPConfig(
        vision_config=vars(config.vision),
        text_config={**vars(config.text), "bos_token_id": 1},
        projection_dim=config.projection_dim,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(published).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def load(module, torch_model):
    tensors = {k: v.numpy() for k, v in torch_model.state_dict().items()}
    wanted = to_torch_state(module)
    load_torch_state(module, {k: v for k, v in tensors.items() if k in wanted})
    return module


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


VARIANTS = [("quick_gelu", EOS, 3), ("gelu", 2, 4), ("gelu", EOS, 1)]


@pytest.mark.parametrize(("hidden_act", "eos_token_id", "heads"), VARIANTS)
def test_image_features_equal_those_of_transformers(
    hidden_act, eos_token_id, heads, rng
):
    import torch

    config = make_config(hidden_act, eos_token_id, heads)
    torch_model = make_torch_model(config)
    module = load(CLIPVisionModelWithProjection(config, rngs=nnx.Rngs(1)), torch_model)
    pixels = rng.standard_normal((3, 32, 32, 3), np.float32)
    with torch.no_grad():
        expected = torch_model.get_image_features(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        ).pooler_output
    actual = nnx.jit(lambda m, x: m(x))(module, pixels)
    assert actual.shape == (3, 20)
    # float32 sums in another order through two layers.
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize("pad_token_id", [0, EOS])
@pytest.mark.parametrize(("hidden_act", "eos_token_id", "heads"), VARIANTS)
def test_text_features_equal_those_of_transformers(
    hidden_act, eos_token_id, heads, pad_token_id, rng
):
    import torch

    config = make_config(hidden_act, eos_token_id, heads)
    torch_model = make_torch_model(config)
    module = load(CLIPTextModelWithProjection(config, rngs=nnx.Rngs(1)), torch_model)
    ids = rng.integers(3, EOS, (3, 12))
    for row, end in enumerate([11, 4, 1]):
        ids[row, end:] = pad_token_id
        ids[row, end] = EOS
    with torch.no_grad():
        expected = torch_model.get_text_features(torch.from_numpy(ids)).pooler_output
    actual = nnx.jit(lambda m, x: m(x))(module, ids)
    assert actual.shape == (3, 20)
    # As above.
    assert relative_error(actual, expected) < 1e-4


def test_both_halves_hold_all_tensors_of_transformers_but_the_temperature():
    config = make_config()
    names: list[str] = []
    for module in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection):
        names += to_torch_state(module(config, rngs=nnx.Rngs(0)))
    expected = {*make_torch_model(config).state_dict()} - {"logit_scale"}
    assert sorted(names) == sorted(expected)


def count_parameters(config: CLIPConfig, layers: int) -> int:
    config = replace(
        config,
        vision=replace(config.vision, num_hidden_layers=layers),
        text=replace(config.text, num_hidden_layers=layers),
    )
    count = 0
    for module in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection):
        abstract = nnx.eval_shape(lambda m=module: m(config, rngs=nnx.Rngs(0)))
        leaves = [v for _, v in nnx.iter_graph(abstract) if isinstance(v, nnx.Param)]
        count += sum(int(np.prod(v.shape)) for v in leaves)
    return count


@pytest.mark.parametrize(
    ("config", "text_layer", "millions"),
    # Parameters of a text layer (12 D^2 + 13 D), and of all, as published.
    [
        (CLIP_VIT_B16, 3_152_384, 149.6),
        (CLIP_VIT_L14, 7_087_872, 427.6),
        (CLIP_VIT_L14_336, 7_087_872, 427.9),
        (OPENCLIP_VIT_H14, 12_596_224, 986.1),
    ],
)
def test_the_published_sizes(config, text_layer, millions):
    # Many layers take long to trace, so all are reckoned from one and two.
    one, two = (count_parameters(config, layers) for layers in (1, 2))
    vision, text = config.vision.num_hidden_layers, config.text.num_hidden_layers
    count = one + (text - 1) * text_layer + (vision - 1) * (two - one - text_layer)
    assert round(count / 1e6, 1) == millions


def test_bfloat16_is_near_float32(rng):
    config = make_config()
    pixels = rng.standard_normal((2, 32, 32, 3), np.float32)
    half, full = (
        nnx.jit(lambda m, x: m(x))(
            CLIPVisionModelWithProjection(config, dtype=dtype, rngs=nnx.Rngs(0)), pixels
        )
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert half.dtype == full.dtype == jnp.float32
    assert 0 < relative_error(half, full) < 0.05  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(1, 32, 40, 3), (1, 64, 64, 3), (1, 32, 32, 1)])
def test_images_of_another_size_are_refused(shape):
    module = CLIPVisionModelWithProjection(make_config(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="takes 32 x 32 pixels of RGB"):
        module(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 768 is not a multiple"),
        ({"hidden_act": "relu"}, "'relu' is unknown; use one of gelu, quick_gelu"),
        ({"image_size": 16}, "image_size 16 is less than patch_size 32"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CLIPVisionConfig(**changes)
