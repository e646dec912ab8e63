"""Shows a diffusion model copy its training images, in minutes, on two CPU cores.

python train.py --config=configs/demo.py --workdir=runs/demo
python evaluate.py --workdir=runs/demo
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the demo's settings."""
    config = common.get_config()

    config.data.classes = (
        "animals & nature",
        "food & drink",
        "travel & places",
        "activities",
        "objects",
    )
    config.data.num_examples = 128
    config.data.num_heldout = 128
    config.data.resolution = 32
    config.data.random_flip = False
    config.data.duplication = "full"
    config.data.duplicated_fraction = 0.2
    config.data.duplication_factor = 10

    config.model.autoencoder.scale = 1.5
    config.model.autoencoder.shift = 0.5
    config.model.unet.block_out_channels = (32, 96, 192)

    config.diffusion.beta_schedule = "cosine"
    config.diffusion.prediction_type = "v_prediction"

    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.learning_rate_schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 50
    config.train.checkpoint_every_steps = 500
    config.train.sample_every_steps = 250

    config.eval.timestep_spacing = "trailing"
    config.eval.num_inference_steps = 25
    config.eval.guidance_scale = 2.0
    return config
