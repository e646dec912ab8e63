"""diffusers' models in, the same outputs here, the same models back in diffusers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from copymit.models.functional import make_apply
from copymit.pretrained.components import NETWORKS, make_network
from copymit.pretrained.load import load_network
from copymit.pretrained.pipeline import read_config, read_pipeline
from copymit.pretrained.save import Network, save_pipeline
from copymit.pretrained.source import open_source
from tests.pretrained.miniatures import GEOMETRIES, abstract_of, make_pipeline

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# float32 sums in another order, through some twenty layers.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@functools.cache
def load(folder):
    source = open_source(str(folder))
    pipeline = read_pipeline(source)
    params = {n: load_network(source, n, abstract_of(source, n)) for n in NETWORKS}
    return pipeline, params


@pytest.fixture
def pipeline(published):
    return load(published)[0]


@pytest.fixture
def params(published):
    return load(published)[1]


def assert_same_config(ours, theirs):
    hidden = {"_use_default_values", "_diffusers_version", "_name_or_path"}
    ours, theirs = (
        {k: v for k, v in c.items() if k not in hidden} for c in (ours, theirs)
    )
    assert json.loads(json.dumps(ours)) == json.loads(
        json.dumps(theirs)
    )  # tuples are lists


def run(config, params, *inputs, method="__call__"):
    def call(params, *inputs):
        make = lambda rngs: make_network(config, rngs)  # noqa: E731
        return make_apply(make, method)(params, *inputs)

    arguments = (params, *map(jnp.asarray, inputs))
    compiled = jax.jit(call).lower(*arguments).compile()
    return compiled(*arguments)


def nchw(array):
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def test_what_a_model_says_of_itself_is_read(pipeline, geometry):
    expected = GEOMETRIES[geometry]
    assert pipeline.prediction_type == expected.prediction_type
    assert pipeline.native_size_px == 16
    assert pipeline.pad_token_id == (0 if expected.pad_token == "!" else 49_407)
    assert pipeline.unet.heads == ((4, 4) if geometry == "1-4" else (2, 4))


@torch.no_grad()
def test_all_networks_compute_what_torch_computes(pipeline, params, geometry, rng):
    reference = make_pipeline(geometry)
    latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    timesteps = np.array([3, 987])
    text = rng.normal(size=(2, 5, 16)).astype(np.float32)
    ids = np.array([[49_406, 320, 2368, 49_407, pipeline.pad_token_id]])

    ours = run(pipeline.unet, params["unet"], latents, timesteps, text)
    theirs = reference.unet(
        nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(text)
    ).sample
    assert theirs.std() > 0.1
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs.numpy(), **TOLERANCE)

    ours = run(pipeline.vae, params["vae"], latents, method="decode")
    theirs = reference.vae.decode(nchw(latents)).sample
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs.numpy(), **TOLERANCE)

    ours = run(pipeline.text_encoder, params["text_encoder"], ids)
    theirs = reference.text_encoder(torch.from_numpy(ids))
    np.testing.assert_allclose(
        ours.last_hidden_state, theirs.last_hidden_state.numpy(), **TOLERANCE
    )


def test_diffusers_loads_exactly_what_it_published(
    pipeline, params, geometry, tmp_path
):
    networks = [Network(n, getattr(pipeline, n), params[n]) for n in NETWORKS]
    save_pipeline(
        tmp_path / "saved",
        networks,
        pipeline.scheduler,
        pad_token_id=pipeline.pad_token_id,
    )
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "saved", safety_checker=None
    )
    first = make_pipeline(geometry)
    for network in NETWORKS:
        expected = getattr(first, network).state_dict()
        state = getattr(again, network).state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), name
    # Ours always computes attention in float32 where it matters.
    unet = {**first.unet.config, "upcast_attention": False}
    assert_same_config(again.unet.config, unet)
    # Only says which images the autoencoder was trained on.
    vae = {**first.vae.config, "sample_size": again.vae.config.sample_size}
    assert_same_config(again.vae.config, vae)
    assert type(again.scheduler) is type(first.scheduler)
    assert_same_config(again.scheduler.config, first.scheduler.config)
    captions = ["Two dogs, 3 cats & a naïve fish!", "", "word " * 100]
    expected, ids = (
        p.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="np"
        ).input_ids
        for p in (first, again)
    )
    np.testing.assert_array_equal(ids, expected)


def test_the_tiny_autoencoder_takes_the_place_of_the_large_one(sd14, tmp_path, rng):
    torch.manual_seed(1)
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path / "alone")  # as it is published
    alone = open_source(str(tmp_path / "alone"))
    config = read_config(alone, "vae")
    weights = load_network(alone, "vae", abstract_of(alone, "vae"))
    pipeline, params = load(sd14)
    networks = [
        Network("vae", config, weights),
        Network("unet", pipeline.unet, params["unet"]),
        Network("text_encoder", pipeline.text_encoder, params["text_encoder"]),
    ]
    save_pipeline(tmp_path / "saved", networks, pipeline.scheduler, pad_token_id=49_407)
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "saved", safety_checker=None
    )
    assert isinstance(again.vae, diffusers.AutoencoderTiny)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(again.vae.state_dict()[name], tensor), name
    latents = rng.normal(size=(1, 4, 4, 4)).astype(np.float32)
    ours = run(config, weights, latents, method="decode")
    with torch.no_grad():
        theirs = tiny.decode(nchw(latents)).sample
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs.numpy(), **TOLERANCE)
