"""The paper's recipe is written down as the paper has it, in every variant."""

import importlib

import pytest

from configs import paper

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


def test_an_unknown_variant_is_named():
    with pytest.raises(
        ValueError, match=r"big is no variant .* use text_encoder, from"
    ):
        paper.get_config("big,small")
