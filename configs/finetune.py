"""Fine-tunes Stable Diffusion on a small set of one's own, until it begins to copy.

    python train.py --config=configs/finetune.py --workdir=runs/mine \\
        --config.data.source=PHOTOS
    python evaluate.py --workdir=runs/mine

A tenth of the images is held out, every image's captions are all used, and what the model
draws is looked at after every ten visits of an image: where more than one in fifty are
copies the training ends, and the checkpoint before is the newest. docs/guide.md is about
it. With an argument, or several joined by commas:

    --config=configs/finetune.py:lora    a LoRA of rank 16, in place of all weights
    --config=configs/finetune.py:small   a small model from scratch, 64 px, for a CPU

Cost: not measured with Stable Diffusion; `small` in docs/guide.md.
"""

from ml_collections import ConfigDict

from configs import common, photos

VARIANTS = ("lora", "small")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings.

    Args:
      arg: names from `VARIANTS`, joined by commas.
    Raises:
      ValueError: for an unknown variant.
    """
    variants = [name for name in arg.split(",") if name]
    if unknown := sorted(set(variants) - set(VARIANTS)):
        raise ValueError(
            f"configs/finetune.py:{','.join(unknown)} is not known: use "
            f"{', '.join(VARIANTS)}"
        )
    config = common.get_config()

    config.data.source = "photos"
    config.data.heldout_share = 0.1
    config.data.resolution = 512
    config.data.random_flip = False
    config.data.use_all_captions = True
    config.data.cache_latents = True
    config.data.cache_embeddings = True

    config.model.pretrained = "stable-diffusion-v1-5"
    config.model.text_encoder.train = False

    config.train.epochs = 100.0
    config.train.evaluate_every_epochs = 10.0
    config.train.stop_above_copied_share = 0.02
    config.train.batch_size = 4
    config.train.dtype = "bfloat16"
    config.train.learning_rate = 1e-5
    config.train.warmup_steps = 100
    config.train.log_every_steps = 20
    config.train.checkpoint_every_steps = 500

    config.eval.num_generations = 400
    config.eval.batch_size = 8
    config.eval.sampler = "dpmsolver++"
    config.eval.num_inference_steps = 25

    if "lora" in variants:
        config.train.lora_rank = 16
        config.train.learning_rate = 1e-4
    if "small" in variants:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Takes the small model of configs/photos.py in place of the published one."""
    small = photos.get_config("cpu")
    for section in ("model", "diffusion"):
        config[section] = small[section]
    config.data.resolution = small.data.resolution
    config.data.cache_embeddings = False

    config.train.epochs = 200.0
    config.train.batch_size = 16
    config.train.dtype = "float32"
    config.train.learning_rate = 2e-3
    config.train.adam_b2 = 0.99
    config.train.ema_decay = 0.99
    config.train.warmup_steps = 50

    config.eval.num_generations = 200
    config.eval.batch_size = 50
    config.eval.sampler = "ddim"
    config.eval.num_inference_steps = small.eval.num_inference_steps
    config.eval.guidance_scale = small.eval.guidance_scale
