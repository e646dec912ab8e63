"""The recipe that the paper fine-tunes Stable Diffusion 2.1 with, whatever the data.

Not a run by itself: configs/imagenette.py, laion10k.py and laion100k.py add the data.
Source: Somepalli et al. 2023, section 3, and the code that came with it.
"""

from ml_collections import ConfigDict

from configs import common
from copymit.spelling import nearest

VARIANTS = ("text_encoder", "from_scratch", "small")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe.

    Args:
      arg: names from `VARIANTS`, joined by commas.
    Raises:
      ValueError: for an unknown variant.
    """
    variants = [name for name in arg.split(",") if name]
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is no variant of this config: use "
            f"{', '.join(VARIANTS)}{nearest(unknown[0], VARIANTS)}"
        )
    config = common.get_config()

    config.data.resolution = 256
    config.data.random_flip = True
    config.data.caption_style = "instance"
    config.data.caption_dropout = 0.0
    config.data.duplicated_fraction = 0.05
    config.data.duplication_factor = 5
    # The original code draws with replacement where something is duplicated.
    config.data.sampling = "published"
    config.data.cache_latents = True
    config.data.cache_embeddings = "text_encoder" not in variants

    config.model.pretrained = "stable-diffusion-2-1"
    config.model.from_scratch = ("unet",) if "from_scratch" in variants else ()
    config.model.text_encoder.train = "text_encoder" in variants

    config.train.steps = 100_000
    config.train.batch_size = 16
    config.train.learning_rate = 5e-6
    config.train.learning_rate_schedule = "constant"
    config.train.warmup_steps = 5_000
    config.train.checkpoint_every_steps = 5_000
    config.train.log_every_steps = 100

    config.eval.prompts = "random"
    config.eval.num_generations = 4_000
    # That of the checkpoint, as the original code has it for what it fine-tuned; its
    # DPM-Solver++ is for plain Stable Diffusion and for the known prompts.
    config.eval.sampler = "ddim"
    config.eval.num_inference_steps = 50
    config.eval.guidance_scale = 7.5

    if "small" in variants:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Replaces the published model by a random one that a CPU trains in minutes."""
    config.model.pretrained = ""
    config.model.from_scratch = ()
    config.data.resolution = 64
    config.model.autoencoder.name = "block_dct"
    config.model.autoencoder.patch_size = 4
    config.train.steps = 2_000
    config.train.batch_size = 8
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.checkpoint_every_steps = 500
    config.eval.num_generations = 64
    config.eval.num_inference_steps = 20
