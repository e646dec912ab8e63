"""The tiny autoencoder: diffusers' outputs on random weights, photos with real ones."""

import dataclasses
import functools
import io
import math
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from copymit.models.autoencoder_tiny import (
    AutoencoderTiny,
    AutoencoderTinyConfig,
    infer_config,
    taesd_state,
)
from copymit.models.functional import describe_params, trace_module
from copymit.models.torch_files import read_torch_tensors
from copymit.models.torch_layout import load_torch_state, to_torch_state

SMALL = AutoencoderTinyConfig(
    encoder_block_out_channels=(8, 8, 8),
    decoder_block_out_channels=(8, 8, 8),
    num_encoder_blocks=(1, 2, 1),
    num_decoder_blocks=(2, 1, 1),
)
CONFIGS = {
    "published": dataclasses.replace(
        AutoencoderTinyConfig(),
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(12,) * 4,
    ),
    "silu": dataclasses.replace(SMALL, act_fn="silu", latent_channels=7),
    "gelu": dataclasses.replace(SMALL, act_fn="gelu"),
    # Two enlargements by 2 or one by 4: the stages of the halves may differ.
    "few stages": dataclasses.replace(
        SMALL,
        decoder_block_out_channels=(8, 8),
        num_decoder_blocks=(1, 2),
        upsampling_scaling_factor=4,
    ),
}
MIDBLOCK = dataclasses.replace(SMALL, use_midblock_gn=True)


def _make(config: AutoencoderTinyConfig, rngs: nnx.Rngs, dtype=jnp.float32):
    return AutoencoderTiny(config, dtype=dtype, rngs=rngs)


def _load(config: AutoencoderTinyConfig, state: dict[str, np.ndarray]):
    model = trace_module(lambda rngs: _make(config, rngs))
    load_torch_state(model, state)
    return model


def _inputs(config: AutoencoderTinyConfig) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and latents, of unequal height and width; some latents are squashed."""
    rng = np.random.default_rng(0)
    h, w = 2, 3
    H, W = config.downsampling * h, config.downsampling * w
    pixels = rng.uniform(-1, 1, size=(2, H, W, config.in_channels))
    latents = 4 * rng.normal(size=(2, h, w, config.latent_channels))
    return pixels.astype(np.float32), latents.astype(np.float32)


def _run(model, pixels, latents) -> list[np.ndarray]:
    graphdef, params = nnx.split(model)

    def call(params, pixels, latents):
        model = nnx.merge(graphdef, params)
        return model.encode(pixels), model.decode(latents)

    call = jax.jit(call)
    return [np.asarray(output) for output in call(params, pixels, latents)]


def _random_state(config: AutoencoderTinyConfig) -> dict[str, np.ndarray]:
    """Published names and shapes, with values large enough for every term to matter."""
    rng = np.random.default_rng(0)
    graphdef, shapes = nnx.split(trace_module(lambda rngs: _make(config, rngs)))
    values = jax.tree.map(
        lambda leaf: rng.normal(0.05, 0.15, leaf.shape).astype(leaf.dtype), shapes
    )
    return to_torch_state(nnx.merge(graphdef, values))


def _as_taesd_files(state: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Splits a state as the original files do, which number the decoder from 1."""
    files: list[dict[str, np.ndarray]] = [{}, {}]
    for name, tensor in state.items():
        part, _, number, leaf = name.split(".", 3)
        decoder = part == "decoder"
        files[decoder][f"{int(number) + decoder}.{leaf}"] = tensor
    return files


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_outputs_equal_those_of_diffusers(config):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    fields = dataclasses.asdict(config)
    del fields["use_midblock_gn"]
    reference = diffusers.AutoencoderTiny(**fields)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(0, 0.15)
    pixels, latents = _inputs(config)
    state = {k: v.numpy().copy() for k, v in reference.state_dict().items()}
    model = _load(config, state)

    def channels_first(x):
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    with torch.no_grad():
        expected = [
            reference.encode(channels_first(pixels)).latents,
            reference.decode(channels_first(latents)).sample,
        ]
    for actual, output in zip(_run(model, pixels, latents), expected, strict=True):
        output = output.permute(0, 2, 3, 1).numpy()
        assert actual.shape == output.shape
        # float32 sums in another order through some thirty layers.
        assert np.abs(actual - output).max() < 1e-4 * np.abs(output).max()


def test_a_state_survives_the_round_trip():
    state = _random_state(MIDBLOCK)
    saved = to_torch_state(_load(MIDBLOCK, state))
    assert saved.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)


def test_the_default_has_the_size_of_the_published_network():
    make = functools.partial(_make, AutoencoderTinyConfig())
    parameters = describe_params(make).values()
    assert sum(math.prod(p.shape) for p in parameters) == 2_445_063


def test_midblock_features_equal_their_definition():
    """The addition of taef2 that diffusers lacks, against the same steps in torch."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    config = dataclasses.replace(
        AutoencoderTinyConfig(),
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
        use_midblock_gn=True,
    )
    state = _random_state(config)
    pixels, latents = _inputs(config)
    actual, _ = _run(_load(config, state), pixels, latents)

    def tensors(name):
        keys = (f"encoder.layers.{name}.{leaf}" for leaf in ("weight", "bias"))
        return [torch.from_numpy(state[key]) if key in state else None for key in keys]

    def conv(x, name):
        weight, bias = tensors(name)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    x = conv((torch.from_numpy(pixels).permute(0, 3, 1, 2) + 1) / 2, "0")
    pooled = functional.group_norm(conv(x, "1.pool.0"), 4, *tensors("1.pool.1"))
    x = x + conv(pooled.relu(), "1.pool.3")
    hidden = conv(conv(x, "1.conv.0").relu(), "1.conv.2").relu()
    x = (conv(hidden, "1.conv.4") + x).relu()
    expected = conv(x, "2").permute(0, 2, 3, 1).numpy()
    # float32 sums in another order through eight layers.
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", [SMALL, MIDBLOCK], ids=["plain", "midblock"])
def test_taesd_files_give_the_state_and_config_they_were_made_of(config):
    state = _random_state(config)
    again = taesd_state(*_as_taesd_files(state))
    assert again.keys() == state.keys()
    assert all(again[name] is state[name] for name in state)
    assert infer_config(again) == config


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        ({"conv_in.weight": 0}, {}, r"'conv_in\.weight' is not of a TAESD encoder"),
        ({}, {"0.weight": 0}, r"'0\.weight' is not of a TAESD decoder, .* from 1"),
    ],
)
def test_tensors_of_other_files_are_named(encoder, decoder, message):
    empty = np.zeros(0, np.float32)
    with pytest.raises(ValueError, match=message):
        taesd_state(dict.fromkeys(encoder, empty), dict.fromkeys(decoder, empty))


def test_half_of_a_state_is_not_enough_to_infer_a_config():
    state = _random_state(SMALL)
    half = {k: v for k, v in state.items() if k.startswith("encoder.")}
    with pytest.raises(
        ValueError, match=r"decoder\.layers\.\* are not those of a tiny"
    ):
        infer_config(half)
    with pytest.raises(ValueError, match=r"begin and end with a convolution"):
        infer_config({k: v for k, v in state.items() if "decoder.layers.0" not in k})


def test_bfloat16_is_close_to_float32_and_leaves_float32_at_both_ends():
    state = _random_state(MIDBLOCK)
    make = functools.partial(_make, MIDBLOCK, dtype=jnp.bfloat16)
    model = _load(MIDBLOCK, state)
    rounded_model = trace_module(make)
    load_torch_state(rounded_model, state)
    leaves = jax.tree.leaves(nnx.state(rounded_model, nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    inputs = _inputs(MIDBLOCK)
    for exact, rounded in zip(
        _run(model, *inputs), _run(rounded_model, *inputs), strict=True
    ):
        assert rounded.dtype == np.float32
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        # bfloat16 keeps 8 bits: 0.4 % per rounding, some fifteen layers deep.
        assert 1e-5 < error < 0.05


def test_images_that_do_not_divide_into_latents_are_named():
    model = trace_module(lambda rngs: _make(SMALL, rngs))
    with pytest.raises(ValueError, match=r"16 x 18 pixels .* a multiple of 4"):
        model.encode(jnp.zeros((1, 16, 18, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_encoder_blocks": (1, 2)},
            r"encoder_block_out_channels has 3 stages, num_encoder_blocks 2: give one",
        ),
        (
            {"decoder_block_out_channels": (8, 8, 16)},
            r"decoder_block_out_channels=\(8, 8, 16\): give every stage the same",
        ),
        ({"latent_channels": 0}, r"latent_channels=0 must be at least 1"),
        ({"act_fn": "tanh"}, r"act_fn='tanh' is not known: use relu, silu, gelu"),
        ({"upsample_fn": "bilinear"}, r"upsample_fn='bilinear' .* use nearest"),
        (
            {"upsampling_scaling_factor": 3},
            r"3 encoder stages reduce images 4 times, 3 decoder .* enlarge latents 9",
        ),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def _read_photos(archive: Path, count: int) -> list[np.ndarray]:
    """Reads every 25th validation photo: two of each class."""
    with tarfile.open(archive) as tar:
        names = [
            name for name in tar.getnames() if "/val/" in name and name.endswith("JPEG")
        ]
        photos = []
        for name in sorted(names)[:: len(names) // count][:count]:
            image = Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB")
            photos.append(np.asarray(image, np.float32) / 127.5 - 1)
    return photos


def test_trained_weights_restore_photos(shared_data):
    files = [shared_data / "taef2" / f"taef2_{p}.pth" for p in ("encoder", "decoder")]
    state = taesd_state(*map(read_torch_tensors, files))
    config = infer_config(state)
    assert (config.latent_channels, config.use_midblock_gn) == (32, True)
    graphdef, params = nnx.split(_load(config, state))

    @jax.jit
    def restore(params, pixel_values):
        model = nnx.merge(graphdef, params)
        latents = model.encode(pixel_values)
        return latents, model.decode(latents)

    psnr, latents = [], []
    for photo in _read_photos(shared_data / "imagenette2-224.tar", 20):
        code, restored = restore(params, photo[None])
        latents.append(np.asarray(code))
        error = np.mean((np.clip(restored[0], -1, 1) - photo) ** 2)
        psnr.append(10 * np.log10(2**2 / error))
    assert latents[0].shape == (1, 28, 28, 32)
    assert len(psnr) == 20
    # These photos give 29.2; 160 at random 29.6, with a deviation of 3.3 between them.
    # Since photos and weights are fixed, only rounding can move it; normalising over
    # other groups of channels would cost 1.4 dB.
    assert np.mean(psnr) > 29.0
    # The same network elsewhere: 0.03 and 0.84.
    assert abs(np.mean(latents)) < 0.1
    assert 0.75 < np.std(latents) < 0.95
