"""Runs every part of a training and an evaluation in seconds, on any machine.

    python train.py --config=configs/tiny.py --workdir=runs/tiny
    python evaluate.py --workdir=runs/tiny

Cost: on two CPU cores half a minute together, most of it compilation. It learns nothing:
the tests use it, and so can you, to see whether an installation works.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """Returns the smallest settings that leave no part out."""
    config = common.get_config()

    config.data.num_examples = 12
    config.data.num_heldout = 8
    config.data.resolution = 16
    config.data.duplication = "full"
    config.data.duplicated_fraction = 0.25
    config.data.duplication_factor = 4

    config.model.autoencoder.patch_size = 2
    config.model.unet.block_out_channels = (16, 32)
    config.model.unet.cross_attention = (False, True)
    config.model.unet.num_attention_heads = 2
    config.model.unet.norm_num_groups = 8
    config.model.text_encoder.max_length = 8
    config.model.text_encoder.hidden_size = 32
    config.model.text_encoder.intermediate_size = 64
    config.model.text_encoder.num_hidden_layers = 1
    config.model.text_encoder.num_attention_heads = 2

    config.diffusion.beta_schedule = "cosine"
    config.diffusion.prediction_type = "v_prediction"

    config.train.steps = 9
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.learning_rate_schedule = "cosine"
    config.train.warmup_steps = 2
    config.train.ema_decay = 0.9
    config.train.log_every_steps = 1
    config.train.checkpoint_every_steps = 3
    config.train.sample_every_steps = 9

    config.eval.num_generations = 12
    config.eval.batch_size = 8
    config.eval.timestep_spacing = "trailing"
    config.eval.num_inference_steps = 3
    config.eval.guidance_scale = 1.5
    config.eval.gallery_size = 6
    return config
