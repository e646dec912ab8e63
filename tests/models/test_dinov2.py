"""DINOv2 against transformers' torch model on random weights."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.dinov2 import (
    DINOV2_VITB14,
    DINOV2_VITL14,
    DINOV2_VITS14,
    Dinov2Config,
    Dinov2Model,
)
from copymit.models.functional import trace_module
from copymit.models.torch_layout import load_torch_state, to_torch_state

CONFIG = Dinov2Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    mlp_ratio=2,
    image_size=56,
)


def make_torch_model(config: Dinov2Config):
    """transformers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    fields = {k: v for k, v in vars(config).items() if k != "position_offset"}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


def published_state(torch_model, folder) -> dict[str, np.ndarray]:
    """The file's names, from which the attributes of transformers 5 differ."""
    safetensors = pytest.importorskip("safetensors.numpy")
    torch_model.save_pretrained(folder)
    return safetensors.load_file(folder / "model.safetensors")


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


# The native size, larger, smaller, oblong, and one with pixels left over.
@pytest.mark.parametrize("size", [(56, 56), (98, 98), (28, 28), (42, 84), (61, 75)])
def test_features_equal_those_of_transformers(size, tmp_path, rng):
    import torch

    torch_model = make_torch_model(CONFIG)
    model = Dinov2Model(CONFIG, rngs=nnx.Rngs(1))
    tensors = published_state(torch_model, tmp_path)
    load_torch_state(model, tensors, ignore=["mask_token$"])
    pixels = rng.standard_normal((3, *size, 3), np.float32)
    with torch.no_grad():
        expected = torch_model(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        ).pooler_output
    actual = nnx.jit(lambda m, x: m(x))(model, pixels)
    assert actual.shape == (3, 24)
    # float32 sums in another order through two layers.
    assert relative_error(actual, expected) < 1e-4


def test_it_holds_all_published_tensors_but_the_mask(tmp_path):
    names = to_torch_state(Dinov2Model(CONFIG, rngs=nnx.Rngs(0)))
    published = published_state(make_torch_model(CONFIG), tmp_path)
    assert names.keys() == published.keys() - {"embeddings.mask_token"}


def count_parameters(config: Dinov2Config, layers: int) -> int:
    config = replace(config, num_hidden_layers=layers)
    model = trace_module(lambda rngs: Dinov2Model(config, rngs=rngs))
    leaves = [v for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Param)]
    return sum(int(np.prod(v.shape)) for v in leaves)


@pytest.mark.parametrize(
    ("config", "millions"),
    # Parameters as published, with the mask token.
    [(DINOV2_VITS14, 22.1), (DINOV2_VITB14, 86.6), (DINOV2_VITL14, 304.4)],
)
def test_the_published_sizes(config, millions):
    # Many layers take long to trace, so all are reckoned from one and two.
    one, two = (count_parameters(config, layers) for layers in (1, 2))
    count = one + (config.num_hidden_layers - 1) * (two - one) + config.hidden_size
    assert round(count / 1e6, 1) == millions


def test_bfloat16_is_near_float32(rng):
    pixels = rng.standard_normal((2, 56, 56, 3), np.float32)
    half, full = (
        nnx.jit(lambda m, x: m(x))(
            Dinov2Model(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)), pixels
        )
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert half.dtype == full.dtype == jnp.float32
    assert 0 < relative_error(half, full) < 0.05  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(1, 13, 56, 3), (1, 56, 56, 1)])
def test_images_that_are_too_small_or_not_rgb_are_refused(shape):
    model = Dinov2Model(CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="RGB of at least 14 x 14 pixels"):
        model(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size 768 is not a multiple"),
        ({"image_size": 13}, "image_size 13 is less than patch_size 14"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Dinov2Config(**changes)
