"""There and back: a pipeline of diffusers, trained here, exported, run in diffusers."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as TorchUNet
from etils import epath
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as TorchTextModel

from configs import tiny
from copymit.config import read_config
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.generator import make_generate, sampling_options
from copymit.models.assembly import make_model
from copymit.pretrained.trained import (
    export_lora,
    export_trained,
    load_trained,
    saved_step,
)
from copymit.sharding import make_mesh
from copymit.training.loop import train

PROMPT, NEGATIVE, SEED = "a red fox", "a blurry dog", 3
RESOLUTION = 16
STEPS = 20


def save_tiny_pipeline(folder):
    """Saves a random Stable Diffusion 2 in miniature, v-prediction, with diffusers."""
    torch.manual_seed(0)
    networks = {
        "unet": TorchUNet(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            norm_num_groups=4,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
        ),
        "text_encoder": TorchTextModel(
            CLIPTextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                hidden_act="gelu",
                vocab_size=49_408,
            )
        ),
    }
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "!"})
    )
    return networks


@pytest.fixture(scope="module", params=["frozen text", "trained text", "lora"])
def run(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("round_trip")
    networks = save_tiny_pipeline(root / "base")
    config = tiny.get_config()
    config.model.pretrained = str(root / "base")
    config.model.text_encoder.train = request.param != "frozen text"
    config.train.lora_rank = 2 if request.param == "lora" else 0
    config.train.lora_targets = (*config.train.lora_targets, "ff.net.0.proj")
    config.data.resolution = RESOLUTION
    config.data.cache_latents = True
    config.data.cache_embeddings = request.param == "frozen text"
    config.train.update(steps=STEPS, batch_size=4, sample_every_steps=0, ema_decay=0.0)
    config.train.update(checkpoint_every_steps=STEPS, warmup_steps=1)
    config.train.learning_rate = 1e-3
    config.eval.negative_prompt = NEGATIVE
    config.eval.guidance_scale = 7.5
    config.eval.num_inference_steps = 10
    config.eval.timestep_spacing = ""  # the checkpoint's
    train(config, root / "run")
    export_trained(root / "run", root / "exported")
    return root, networks, request.param


def test_the_sizes_and_the_schedule_are_those_of_the_checkpoint(run):
    root, *_ = run
    config = read_config(epath.Path(root / "run"))
    assert config.model.unet.block_out_channels == (8, 16)
    assert config.model.unet.num_attention_heads == (2, 4)
    assert config.model.text_encoder.max_length == 77
    assert config.model.text_encoder.pad_token_id == 0
    assert config.diffusion.prediction_type == "v_prediction"
    assert not config.diffusion.set_alpha_to_one


def test_training_starts_at_the_weights_and_moves_only_what_it_should(run):
    root, networks, kind = run
    exported = StableDiffusionPipeline.from_pretrained(
        root / "exported", safety_checker=None
    )
    moved = {"unet"} | ({"text_encoder"} if kind != "frozen text" else set())
    for name, before in networks.items():
        after = getattr(exported, name).state_dict()
        differences = [
            (after[key] - value).abs().max().item()
            for key, value in before.state_dict().items()
            if value.is_floating_point()
        ]
        # Adam moves by at most the learning rate a step, a little more with decay.
        # With LoRA it is a factor that moves, the other one is of size 1 / rank.
        assert max(differences) < STEPS * 1.5e-3 * (4 if kind == "lora" else 1)
        assert (max(differences) > 0) == (name in moved)


def test_diffusers_generates_the_same_image_from_the_exported_run(run):
    root, *_ = run
    pipeline = StableDiffusionPipeline.from_pretrained(
        root / "exported", safety_checker=None
    )
    check_that_it_generates_the_same(root, pipeline)


def test_diffusers_adds_the_exported_lora_to_the_model_that_it_was_trained_on(run):
    pytest.importorskip("peft")
    root, _, kind = run
    if kind != "lora":
        with pytest.raises(ValueError, match=r"lora_rank=0: it has no LoRA"):
            export_lora(root / "run", root / "lora")
        return
    export_lora(root / "run", root / "lora")
    # The base of these tests has no tokenizer of its own.
    whole = StableDiffusionPipeline.from_pretrained(
        root / "exported", safety_checker=None
    )
    networks = {
        name: type(getattr(whole, name)).from_pretrained(root / "base" / name)
        for name in ("unet", "text_encoder")
    }
    pipeline = StableDiffusionPipeline.from_pretrained(
        root / "exported", safety_checker=None, **networks
    )
    pipeline.load_lora_weights(root / "lora")
    check_that_it_generates_the_same(root, pipeline)


def check_that_it_generates_the_same(root, pipeline):
    config = read_config(epath.Path(root / "run"))
    model = make_model(config.model, RESOLUTION, "float32")
    step = saved_step(root / "run")
    assert step == STEPS == saved_step(root / "run", STEPS)
    with pytest.raises(ValueError, match=f"no checkpoint of step 1, only of {STEPS} "):
        saved_step(root / "run", 1)
    params = load_trained(config, root / "run", step, model, make_mesh())
    pipeline.set_progress_bar_config(disable=True)

    def token_ids(text):
        return np.asarray(
            pipeline.tokenizer(text, padding="max_length", max_length=77).input_ids
        )

    generate = make_generate(
        model,
        make_noise_scheduler(**config.diffusion),
        sampling_options(config.eval),
        token_ids(NEGATIVE),
    )
    number = np.array([5], np.int32)
    ours = np.asarray(generate(params, token_ids(PROMPT)[None], number).images)[0] / 255

    key = jax.random.fold_in(jax.random.key(config.eval.seed), 5)
    noise = np.asarray(jax.random.normal(key, model.latent_shape))
    theirs = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=10,
        guidance_scale=7.5,
        height=RESOLUTION,
        width=RESOLUTION,
        latents=torch.tensor(noise.transpose(2, 0, 1)[None].copy()),
        output_type="np",
    ).images[0]
    assert np.ptp(theirs) > 0.05  # not a flat picture
    # Ours is rounded to 8 bits: half a level is 2e-3, to which 1e-3 is added.
    np.testing.assert_allclose(ours, theirs, atol=0.5 / 255 + 1e-3)
