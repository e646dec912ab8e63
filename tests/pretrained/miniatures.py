"""Models in miniature as diffusers publishes them: SD 1.4, 2.1-base and 2.1."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest

from copymit.data.tokenizer import read_vocabulary
from copymit.pretrained import components
from copymit.pretrained.pipeline import read_config
from copymit.pretrained.source import Source

TEXT_WIDTH = 16
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTH,
}
SD_2 = {"attention_head_dim": (2, 4), "use_linear_projection": True}
VAE = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TEXT_ENCODER = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What tells the published models apart."""

    unet: dict
    text_encoder: dict
    prediction_type: str
    pad_token: str


GEOMETRIES = {
    "1-4": Geometry(
        {"attention_head_dim": 4},
        {"hidden_act": "quick_gelu", "eos_token_id": 2, "bos_token_id": 0},
        "epsilon",
        "<|endoftext|>",
    ),
    "2-1-base": Geometry(SD_2, {"hidden_act": "gelu"}, "epsilon", "!"),
    "2-1": Geometry(
        {**SD_2, "upcast_attention": True}, {"hidden_act": "gelu"}, "v_prediction", "!"
    ),
}


@functools.cache
def make_pipeline(name: str):
    """Makes diffusers' pipeline with random weights."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    geometry = GEOMETRIES[name]
    torch.manual_seed(0)
    text_config = transformers.CLIPTextConfig(**TEXT_ENCODER, **geometry.text_encoder)
    vocabulary, merges = read_vocabulary()
    tokenizer = transformers.CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=geometry.pad_token,
        model_max_length=77,
    )
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**UNET, **geometry.unet),
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=transformers.CLIPTextModel(text_config).eval(),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            steps_offset=1,
            prediction_type=geometry.prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def change_json(path: Path, **fields) -> None:
    """Sets fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# Tracing a network takes longer than all that is tested.
abstract_params = functools.cache(components.abstract_params)


def abstract_of(source: Source, network: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what the source's own config says it holds."""
    return abstract_params(read_config(source, network))
