"""The networks of a run fit each other, and settings that do not fit are named."""

import jax
import jax.numpy as jnp
import pytest

from configs import common
from copymit.models.assembly import abstract_params, make_model
from copymit.sharding import make_mesh

RESOLUTION = 8


def _config(**changes):
    """The `model` section, as small as it gets; changes are dotted names."""
    config = common.get_config().model
    config.unet.block_out_channels = (8,)
    config.unet.cross_attention = (True,)
    config.unet.norm_num_groups = 4
    config.unet.num_attention_heads = 2
    config.text_encoder.max_length = 6
    config.text_encoder.hidden_size = 12
    config.text_encoder.intermediate_size = 16
    config.text_encoder.num_hidden_layers = 1
    config.text_encoder.num_attention_heads = 2
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def model():
    return make_model(_config(), RESOLUTION, "float32")


@pytest.fixture(scope="module")
def shapes(model):
    return abstract_params(model, make_mesh())


def test_latents_have_the_shape_that_the_autoencoder_gives_them(model):
    pixels = jnp.zeros((1, RESOLUTION, RESOLUTION, 3))
    latents = model.sample_latents(model.encode_images({}, pixels), jax.random.key(0))
    assert latents.shape[1:] == model.latent_shape == (4, 4, 12)


def test_parameters_are_two_flat_tables_of_float32(shapes):
    assert shapes.keys() == {"unet", "text_encoder"}
    assert shapes["unet"]["conv_in.kernel"].shape == (3, 3, 12, 8)
    embedding = "text_model.embeddings.token_embedding.embedding"
    assert shapes["text_encoder"][embedding].shape == (49_408, 12)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_leads_to_a_prediction_of_the_latents_shape(dtype, shapes):
    model = make_model(_config(), RESOLUTION, dtype)

    def run(params, latents, timesteps, input_ids):
        hidden_states = model.encode_text(params, input_ids)
        return hidden_states, model.predict(params, latents, timesteps, hidden_states)

    hidden_states, prediction = jax.eval_shape(
        run,
        shapes,
        jax.ShapeDtypeStruct((3, *model.latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((3,), jnp.int32),
        jax.ShapeDtypeStruct((3, 6), jnp.int32),
    )
    assert hidden_states.shape == (3, 6, 12)
    assert hidden_states.dtype == jnp.dtype(dtype)
    assert prediction.shape == (3, *model.latent_shape)
    assert prediction.dtype == jnp.float32  # whatever was computed in


def test_captions_longer_than_clips_make_room_for_their_positions():
    config = _config(**{"text_encoder.max_length": 100})
    model = make_model(config, RESOLUTION, "float32")
    positions = "text_model.embeddings.position_embedding.embedding"
    assert model.parameters["text_encoder"][positions].shape == (100, 12)


def test_parameters_of_another_model_are_named(model, shapes):
    unet = dict(shapes["unet"])
    del unet["conv_out.bias"]
    inputs = (
        jax.ShapeDtypeStruct((1, *model.latent_shape), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 6, 12), jnp.float32),
    )
    with pytest.raises(ValueError, match=r"another model: conv_out\.bias"):
        jax.eval_shape(model.predict, {"unet": unet}, *inputs)


@pytest.mark.parametrize(
    ("changes", "resolution", "message"),
    [
        ({}, 9, r"data.resolution=9 must be a multiple of .* 2"),
        (
            {
                "autoencoder.patch_size": 8,
                "unet.block_out_channels": (8, 8),
                "unet.cross_attention": (False, True),
            },
            8,
            r"latents of 1 x 1 cannot be halved",
        ),
        ({"autoencoder.name": "vae"}, 8, r"model.autoencoder.name='vae' is not known"),
        ({"unet.num_attention_heads": 3}, 8, r"8 channels cannot have 3 heads"),
        ({"unet.norm_num_groups": 5}, 8, r"norm_num_groups=5 must divide"),
        ({"text_encoder.num_attention_heads": 5}, 8, r"hidden_size 12 is not a mult"),
        ({"text_encoder.hidden_act": "relu"}, 8, r"hidden_act 'relu' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, resolution, message):
    with pytest.raises(ValueError, match=message):
        make_model(_config(**changes), resolution, "float32")
