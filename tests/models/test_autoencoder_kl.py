"""The VAE against diffusers' torch model on random weights: outputs and gradients."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from copymit.models.autoencoder_kl import (
    AutoencoderKL,
    AutoencoderKLConfig,
    LatentMoments,
    sample_latents,
    scale_latents,
    unscale_latents,
)
from copymit.models.blocks import make_group_norm
from copymit.models.functional import describe_params, make_apply, trace_module
from copymit.models.torch_layout import load_torch_state, to_torch_state

CONFIGS = {
    # As Stable Diffusion 1.x and 2.x.
    "sd": AutoencoderKLConfig(
        block_out_channels=(8, 12, 16, 16), layers_per_block=1, norm_num_groups=4
    ),
    # As Stable Diffusion 3: more latent channels, a shift, no 1x1 convolutions.
    "no quant convs": AutoencoderKLConfig(
        latent_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "no attention": AutoencoderKLConfig(
        block_out_channels=(12, 8),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    ),
}

TINY = AutoencoderKLConfig(
    block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4
)


def _torch_model(config: AutoencoderKLConfig):
    """diffusers' model with weights large enough for every term to matter."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.block_out_channels)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **dataclasses.asdict(config),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("norm" in name and "weight" in name), 0.15)
    return model


def _inputs(config: AutoencoderKLConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and latents, of unequal height and width."""
    rng = np.random.default_rng(0)
    h, w = 2, 3
    H, W = config.downsampling * h, config.downsampling * w
    pixels = rng.uniform(-1, 1, size=(2, H, W, config.in_channels))
    latents = rng.normal(size=(2, h, w, config.latent_channels))
    return pixels.astype(np.float32), latents.astype(np.float32)


def _make(config: AutoencoderKLConfig, rngs: nnx.Rngs, dtype=jnp.float32):
    return AutoencoderKL(config, dtype=dtype, rngs=rngs)


def _run_torch(model, pixels: np.ndarray, latents: np.ndarray, weights):
    """Outputs (mean, log variance, pixels), and gradients of their weighted sum."""
    import torch

    channels_first = [
        torch.from_numpy(x).permute(0, 3, 1, 2) for x in (pixels, latents)
    ]
    distribution = model.encode(channels_first[0]).latent_dist
    outputs = [
        output.permute(0, 2, 3, 1)
        for output in (
            distribution.mean,
            distribution.logvar,
            model.decode(channels_first[1]).sample,
        )
    ]
    terms = zip(outputs, weights, strict=True)
    sum((output * torch.from_numpy(w)).sum() for output, w in terms).backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return [output.detach().numpy() for output in outputs], gradients


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    """Outputs and gradients of both models, of one pass through each."""
    config = CONFIGS[request.param]
    torch_model = _torch_model(config)
    pixels, latents = _inputs(config)
    rng = np.random.default_rng(1)
    weights = [
        rng.normal(size=x.shape).astype(np.float32) for x in (latents, latents, pixels)
    ]
    state = {k: v.numpy().copy() for k, v in torch_model.state_dict().items()}
    model = trace_module(lambda rngs: _make(config, rngs))
    load_torch_state(model, state)
    expected, expected_gradients = _run_torch(torch_model, pixels, latents, weights)

    graphdef, params = nnx.split(model)

    def compute_loss(params):
        model = nnx.merge(graphdef, params)
        outputs = [*model.encode_moments(jnp.asarray(pixels))]
        outputs.append(model.decode(jnp.asarray(latents)))
        return sum(map(jnp.vdot, outputs, weights)), outputs

    differentiate = jax.value_and_grad(compute_loss, has_aux=True)
    (_, actual), gradients = jax.jit(differentiate)(params)
    return SimpleNamespace(
        config=config,
        state=state,
        model=model,
        expected=dict(zip(("mean", "log_variance", "pixels"), expected, strict=True)),
        actual=dict(zip(("mean", "log_variance", "pixels"), actual, strict=True)),
        expected_gradients=expected_gradients,
        actual_gradients=to_torch_state(nnx.merge(graphdef, gradients)),
    )


@pytest.mark.parametrize("output", ["mean", "log_variance", "pixels"])
def test_outputs_equal_those_of_diffusers(pair, output):
    expected, actual = pair.expected[output], np.asarray(pair.actual[output])
    assert actual.shape == expected.shape
    # float32 sums in another order through some twenty layers.
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()


def test_gradients_of_all_parameters_equal_those_of_torch(pair):
    assert pair.actual_gradients.keys() == pair.expected_gradients.keys()
    largest = max(np.abs(g).max() for g in pair.expected_gradients.values())
    for name, expected in pair.expected_gradients.items():
        error = np.abs(pair.actual_gradients[name] - expected).max()
        # As above, back and forth. The bias of the keys shifts all scores of a query
        # alike: its gradient is zero but for rounding.
        scale = largest if name.endswith("to_k.bias") else np.abs(expected).max()
        assert error < 1e-3 * scale, name
        assert scale > 0, name


def test_a_state_survives_the_round_trip(pair):
    saved = to_torch_state(pair.model)
    assert saved.keys() == pair.state.keys()
    for name, tensor in pair.state.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)


def test_the_default_has_the_size_of_the_published_network():
    config = AutoencoderKLConfig()
    parameters = describe_params(functools.partial(_make, config)).values()
    assert sum(math.prod(p.shape) for p in parameters) == 83_653_863
    assert config.downsampling == 8


def test_log_variances_are_clamped():
    make = functools.partial(_make, TINY)
    shapes = describe_params(make)
    params = {name: jnp.full(leaf.shape, 0.1) for name, leaf in shapes.items()}
    extremes = [0.0] * TINY.latent_channels + [-1e3, 1e3, -1e3, 1e3]
    params["quant_conv.bias"] = jnp.array(extremes)
    encode = make_apply(make, "encode_moments")
    moments = jax.jit(encode)(params, _inputs(TINY)[0])
    np.testing.assert_array_equal(moments.log_variance[..., ::2], -30)
    np.testing.assert_array_equal(moments.log_variance[..., 1::2], 20)
    assert np.abs(moments.mean).max() < 30


def test_bfloat16_is_close_to_float32_and_leaves_float32_at_both_ends():
    pixels, latents = map(jnp.asarray, _inputs(TINY))

    def run(dtype) -> list[np.ndarray]:
        model = trace_module(lambda rngs: _make(TINY, rngs, dtype))
        graphdef, shapes = nnx.split(model)
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: rng.normal(0.1, 0.2, leaf.shape).astype(leaf.dtype), shapes
        )
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
        assert dtypes == {np.dtype("float32")}

        def call(params):
            model = nnx.merge(graphdef, params)
            return [*model.encode_moments(pixels), model.decode(latents)]

        outputs = jax.jit(call)(params)
        return [np.asarray(output) for output in outputs]

    for exact, rounded in zip(run(jnp.float32), run(jnp.bfloat16), strict=True):
        assert rounded.dtype == np.float32
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        # bfloat16 keeps 8 bits: 0.4 % per rounding, some fifteen layers deep.
        assert 1e-5 < error < 0.05


def test_norms_average_in_float32_whatever_the_dtype():
    # A sum in bfloat16 would stop at 256 ones, and the mean of 4,096 be far from 1.
    x = 1 + jnp.asarray(np.random.default_rng(0).choice([-0.5, 0.5], (1, 64, 64, 4)))
    norms = [
        make_group_norm(4, 2, 1e-6, dtype=dtype, rngs=nnx.Rngs(0))
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    exact, rounded = (norm(x.astype(jnp.bfloat16)) for norm in norms)
    assert rounded.dtype == jnp.bfloat16
    # The result itself is rounded, to 8 bits.
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=2**-8)


def test_samples_have_the_mean_and_variance_of_their_moments(key):
    shape = (4, 32, 32, 3)
    means, deviations = jnp.array([-1.0, 0.0, 5.0]), jnp.array([0.1, 1.0, 3.0])
    moments = LatentMoments(
        jnp.broadcast_to(means, shape),
        jnp.broadcast_to(2 * jnp.log(deviations), shape),
    )
    samples = np.asarray(sample_latents(moments, key))
    standard = (samples - means) / deviations
    # 4,096 samples a channel: standard errors of 0.016 and 0.011.
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=0.06)
    np.testing.assert_allclose(standard.std((0, 1, 2)), 1, atol=0.045)
    np.testing.assert_array_equal(samples, sample_latents(moments, key))
    assert (samples != sample_latents(moments, jax.random.key(1))).all()


def test_scaling_standardises_latents_and_is_undone_by_unscaling(rng):
    latents = jnp.asarray(rng.normal(3.0, 5.0, (2, 2, 2, 4)), jnp.float32)
    scaled = scale_latents(latents, scaling_factor=0.2, shift_factor=3.0)
    np.testing.assert_allclose(scaled, (latents - 3) / 5, rtol=1e-5, atol=1e-6)
    restored = unscale_latents(scaled, scaling_factor=0.2, shift_factor=3.0)
    np.testing.assert_allclose(restored, latents, rtol=1e-6, atol=1e-6)


def test_images_that_do_not_divide_into_latents_are_named():
    model = trace_module(lambda rngs: _make(TINY, rngs))
    with pytest.raises(ValueError, match=r"17 x 16 pixels .* a multiple of 2"):
        model.encode_moments(jnp.zeros((1, 17, 16, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": ()}, r"block_out_channels is empty: give the width"),
        ({"latent_channels": 0}, r"latent_channels=0 must be at least 1"),
        ({"layers_per_block": 0}, r"layers_per_block=0 must be at least 1"),
        ({"norm_num_groups": 3}, r"norm_num_groups=3 must divide .* not divide 8"),
        ({"scaling_factor": 0.0}, r"scaling_factor=0\.0 must be positive"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
