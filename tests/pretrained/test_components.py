"""Published configs become ours and theirs again; what we lack is refused by name."""

import json

import pytest

from copymit.models.autoencoder_kl import AutoencoderKLConfig
from copymit.models.autoencoder_tiny import AutoencoderTinyConfig
from copymit.models.text_encoder import (
    CLIP_VIT_L14,
    OPENCLIP_VIT_H14,
    TextEncoderConfig,
)
from copymit.models.unet import SD_1, SD_2, UNetConfig
from copymit.pretrained.components import published_config, read_network_config

# As CompVis published it, with the library versions of 2022.
OLD_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
UNET_2_1 = OLD_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
OLD_VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_factor": 1.0,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "vocab_size": 49408,
}
SDXL = OLD_UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
}


def test_published_configs_are_the_networks_that_they_name():
    assert read_network_config("unet", OLD_UNET) == SD_1
    unet = read_network_config("unet", UNET_2_1)
    assert unet.sample_size == 96
    assert read_network_config("unet", UNET_2_1 | {"sample_size": 64}) == SD_2
    assert read_network_config("vae", OLD_VAE) == AutoencoderKLConfig()
    text = read_network_config("text_encoder", TEXT_ENCODER)
    assert text == TextEncoderConfig(
        1024, 4096, 23, 16, hidden_act="gelu", eos_token_id=2
    )


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("unet", SD_1),
        ("unet", SD_2),
        (
            "unet",
            UNetConfig(layers_per_block=1, transformer_layers=2, norm_epsilon=1e-6),
        ),
        ("vae", AutoencoderKLConfig()),
        ("vae", AutoencoderKLConfig(shift_factor=0.1, use_quant_conv=False)),
        ("vae", AutoencoderTinyConfig(latent_channels=16, act_fn="silu")),
        ("text_encoder", CLIP_VIT_L14),
        ("text_encoder", OPENCLIP_VIT_H14),
    ],
)
def test_a_config_comes_back_from_json(network, config):
    published = json.loads(json.dumps(published_config(config)))
    assert read_network_config(network, published) == config


def test_every_field_that_diffusers_writes_is_known():
    diffusers = pytest.importorskip("diffusers")
    for network, model in (
        ("unet", diffusers.UNet2DConditionModel),
        ("vae", diffusers.AutoencoderKL),
        ("vae", diffusers.AutoencoderTiny),
    ):
        defaults = {k: p.default for k, p in _parameters(model).items()}
        published = json.loads(json.dumps({**defaults, "_class_name": model.__name__}))
        if model is diffusers.AutoencoderKL:  # the default has one level of 64
            assert read_network_config(network, published).block_out_channels == (64,)
        else:
            read_network_config(network, published)


def _parameters(model):
    import inspect

    parameters = dict(inspect.signature(model.__init__).parameters)
    del parameters["self"]
    return parameters


def test_values_a_level_that_agree_are_one_value():
    lists = {
        "layers_per_block": [2] * 4,
        "transformer_layers_per_block": [1] * 4,
        "cross_attention_dim": [768] * 4,
        "only_cross_attention": [False] * 4,
        "sample_size": [64, 64],
    }
    assert read_network_config("unet", OLD_UNET | lists) == SD_1


def test_the_true_name_of_heads_wins():
    published = OLD_UNET | {"attention_head_dim": 64, "num_attention_heads": 8}
    assert read_network_config("unet", published) == SD_1


@pytest.mark.parametrize(
    ("network", "published", "message"),
    [
        (
            "unet",
            SDXL,
            r"transformer_layers_per_block=\[1, 2, 10\]: it must be the same",
        ),
        (
            "unet",
            OLD_UNET | {"addition_embed_type": "text_time"},
            "addition_embed_type=",
        ),
        ("unet", OLD_UNET | {"class_embed_type": "timestep"}, "class_embed_type="),
        (
            "unet",
            OLD_UNET | {"dual_cross_attention": True},
            "dual_cross_attention=True",
        ),
        ("unet", OLD_UNET | {"only_cross_attention": [True, False]}, "only_cross"),
        ("unet", OLD_UNET | {"resnet_time_scale_shift": "scale_shift"}, "'default' is"),
        ("unet", OLD_UNET | {"mid_block_type": None}, "mid_block_type=None"),
        ("unet", OLD_UNET | {"act_fn": "gelu"}, "act_fn='gelu': only 'silu' is"),
        ("unet", OLD_UNET | {"from_the_future": 3}, "from_the_future=3"),
        ("unet", OLD_UNET | {"remat": "full"}, "remat='full': this is not implemented"),
        (
            "unet",
            OLD_UNET | {"_class_name": "UNet2DModel"},
            "_class_name='UNet2DModel'",
        ),
        ("unet", OLD_VAE, "_class_name='AutoencoderKL': only UNet2DConditionModel"),
        ("unet", OLD_UNET | {"up_block_types": ["UpBlock2D"] * 4}, "must mirror"),
        (
            "unet",
            OLD_UNET | {"down_block_types": ["AttnDownBlock2D"] * 4},
            "down_block",
        ),
        ("unet", OLD_UNET | {"down_block_types": [[]] * 4}, "down_block_types"),
        ("unet", OLD_UNET | {"block_out_channels": "320"}, "list of whole numbers"),
        ("unet", OLD_UNET | {"block_out_channels": [32] * 17}, "1 to 16 values"),
        ("unet", OLD_UNET | {"block_out_channels": []}, "1 to 16 values"),
        ("unet", OLD_UNET | {"block_out_channels": [2**40] * 4}, "from 1 to 1000000"),
        ("unet", OLD_UNET | {"layers_per_block": 10**9}, "from 1 to 100"),
        ("unet", OLD_UNET | {"layers_per_block": []}, "layers_per_block"),
        ("unet", OLD_UNET | {"attention_head_dim": 0}, "num_attention_heads=0"),
        ("unet", OLD_UNET | {"attention_head_dim": [8]}, "num_attention_heads 1: give"),
        ("unet", OLD_UNET | {"norm_num_groups": None}, "norm_num_groups=None"),
        ("unet", OLD_UNET | {"norm_eps": float("nan")}, "finite number"),
        ("unet", OLD_UNET | {"sample_size": [64, 96]}, "sample_size"),
        ("unet", OLD_UNET | {"use_linear_projection": "no"}, "must be bool"),
        (
            "vae",
            OLD_VAE | {"_class_name": "AutoencoderDC"},
            "AutoencoderKL and Autoenc",
        ),
        (
            "vae",
            OLD_VAE | {"down_block_types": ["DownBlock2D"] * 4},
            "down_block_types=",
        ),
        ("vae", OLD_VAE | {"latents_mean": [0.1] * 4}, "latents_mean="),
        ("vae", OLD_VAE | {"norm_num_groups": None}, "norm_num_groups=None"),
        ("vae", OLD_VAE | {"scaling_factor": True}, "finite number"),
        ("text_encoder", TEXT_ENCODER | {"model_type": "t5"}, "model_type='t5': only"),
        (
            "text_encoder",
            TEXT_ENCODER | {"architectures": ["CLIPModel"]},
            "architectures",
        ),
        ("text_encoder", TEXT_ENCODER | {"hidden_act": "swish"}, "hidden_act 'swish'"),
        ("text_encoder", TEXT_ENCODER | {"num_hidden_layers": 10**7}, "from 1 to 100"),
        ("text_encoder", {}, "model_type=None"),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_field(
    network, published, message
):
    with pytest.raises(ValueError, match=rf"^{network}/config\.json: .*{message}") as e:
        read_network_config(network, published)
    assert "Stable Diffusion 1.x or 2.x" in str(e.value)


def test_long_values_are_cut_in_messages():
    with pytest.raises(ValueError) as failure:
        read_network_config("unet", OLD_UNET | {"new": "x" * 10**6})
    assert len(str(failure.value)) < 300


def test_an_autoencoder_that_diffusers_lacks_is_not_written():
    with pytest.raises(ValueError, match="no use_midblock_gn"):
        published_config(AutoencoderTinyConfig(use_midblock_gn=True))
