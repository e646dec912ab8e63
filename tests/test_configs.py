"""The paper's recipe is written down as the paper has it, in every variant."""

import importlib
from types import SimpleNamespace

import pytest

from configs import finetune, paper, photos
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.models.assembly import make_model
from copymit.training.checks import check_settings

NAMES = ("imagenette", "laion10k", "laion100k")


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_the_papers(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    train, data = config.train, config.data
    assert (train.steps, train.batch_size, train.learning_rate) == (100_000, 16, 5e-6)
    assert (train.warmup_steps, train.learning_rate_schedule) == (5_000, "constant")
    assert (train.adam_b1, train.adam_b2, train.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (train.weight_decay, train.max_grad_norm, train.ema_decay) == (1e-2, 1.0, 0)
    assert (data.resolution, data.random_flip, data.caption_dropout) == (256, True, 0)
    assert (data.duplicated_fraction, data.duplication_factor) == (0.05, 5)
    evaluation = config.eval
    assert (evaluation.sampler, evaluation.num_inference_steps) == ("ddim", 50)
    assert (evaluation.guidance_scale, evaluation.prompts) == (7.5, "random")
    assert config.model.pretrained == "stable-diffusion-2-1"


@pytest.mark.parametrize("name", NAMES)
def test_variants_change_what_they_say(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    trained = get_config("text_encoder")
    assert trained.model.text_encoder.train
    assert not trained.data.cache_embeddings  # they change at every step
    assert get_config("from_scratch").model.from_scratch == ("unet",)
    assert get_config("small,text_encoder").model.pretrained == ""
    assert get_config().model.from_scratch == ()


@pytest.mark.parametrize("arg", ["", "lora", "small", "lora,small"])
def test_small_sets_are_watched_while_they_are_trained_on(arg):
    config = finetune.get_config(arg)
    check_settings(config.train, SimpleNamespace(shape={"data": 1, "fsdp": 1}))
    assert config.train.stop_above_copied_share < 1
    assert config.data.heldout_share > 0
    assert config.train.lora_rank == 16 * ("lora" in arg)
    assert bool(config.model.pretrained) == ("small" not in arg)


def test_an_unknown_variant_of_the_config_for_small_sets_is_named():
    with pytest.raises(
        ValueError, match=r"finetune\.py:big is not known: use lora, small"
    ):
        finetune.get_config("big,small")


def test_an_unknown_variant_is_named():
    with pytest.raises(
        ValueError, match=r"big is no variant .* use text_encoder, from"
    ):
        paper.get_config("big,small")


@pytest.mark.parametrize(("argument", "resolution"), [("", 128), ("cpu", 64)])
def test_photos_are_trained_as_the_study_says(argument, resolution):
    config = photos.get_config(argument)
    assert config.data.resolution == resolution
    model = make_model(config.model, resolution, config.train.dtype)
    assert model.latent_shape == (resolution // 8, resolution // 8, 32)
    assert not config.data.random_flip
    assert (config.data.caption_dropout, config.data.duplicated_fraction) == (0.1, 0.05)
    schedule = make_noise_scheduler(**config.diffusion)
    assert schedule.prediction_type == "v_prediction"
    assert schedule.alphas_cumprod[-1] == 0  # zero terminal SNR
    # All training photos are prompts, of the scores and of the detectors.
    prompts = (config.eval.num_generations, config.eval.detection.num_prompts)
    assert prompts == (config.data.num_examples,) * 2


def test_an_unknown_argument_of_photos_is_named():
    with pytest.raises(ValueError, match=r"photos\.py:gpu is not known: use cpu"):
        photos.get_config("gpu")
