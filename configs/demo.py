"""Shows a diffusion model copy its training images, in minutes, on two CPU cores.

    python train.py --config=configs/demo.py --workdir=runs/demo
    python evaluate.py --workdir=runs/demo

With an argument, the same run with one change:

    --config=configs/demo.py:multiple_captions   another caption at each visit (MC)
    --config=configs/demo.py:control             the chosen images are not duplicated

Cost: less than four minutes of training a run and 20 s of evaluation on two cores.
Expected, 12 of 48 images drawn ten times as often: docs/demo.md.
"""

from ml_collections import ConfigDict

from configs import common
from copymit.spelling import nearest

_CHANGES = ("multiple_captions", "control")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the demo's settings.

    Raises:
      ValueError: for an unknown argument.
    """
    config = common.get_config()

    config.data.classes = (
        "animals & nature",
        "food & drink",
        "activities",
        "objects",
    )
    config.data.num_examples = 48
    config.data.num_heldout = 48
    config.data.resolution = 32
    config.data.random_flip = False
    config.data.duplication = "full"
    config.data.duplicated_fraction = 0.25
    config.data.duplication_factor = 10

    config.model.autoencoder.name = "block_dct"
    config.model.autoencoder.patch_size = 4
    config.model.autoencoder.luminance = 10
    config.model.autoencoder.chrominance = 3
    config.model.autoencoder.scale = 1.25
    config.model.autoencoder.shift = 0.63
    config.model.unet.block_out_channels = (64, 128)
    config.model.unet.cross_attention = (False, True)
    config.model.text_encoder.train = False  # random features tell captions apart

    config.diffusion.beta_schedule = "cosine"
    config.diffusion.prediction_type = "v_prediction"

    config.train.steps = 2500
    config.train.batch_size = 8  # many small steps memorise sooner than few large ones
    config.train.learning_rate = 2e-3
    config.train.learning_rate_schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.adam_b2 = 0.99
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 500
    config.train.evaluate_every_steps = 500
    config.train.evaluate_prompts = 48

    config.eval.num_generations = 192  # four of each training image
    config.eval.batch_size = 32
    config.eval.timestep_spacing = "trailing"
    config.eval.num_inference_steps = 10  # 8, 20 and 50 give the same
    config.eval.guidance_scale = 1.0

    if arg == "multiple_captions":
        config.mitigation.train.multiple_captions = True
    elif arg == "control":
        config.data.duplication_factor = 1
    elif arg:
        raise ValueError(
            f"{arg!r} is not known: use one of {', '.join(_CHANGES)}"
            f"{nearest(arg, _CHANGES)}"
        )
    return config
