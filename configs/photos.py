"""Trains a small text-to-image model from scratch on photos, and shows what it copies.

    python train.py --config=configs/photos.py --workdir=runs/photos \\
        --config.data.source=PHOTOS --config.data.captions=captions.json
    python evaluate.py --workdir=runs/photos

Between the demo's emoji on a CPU and the paper's Stable Diffusion: any captioned photos,
of which the config takes 1,000 to train on, 50 of them drawn ten times as often, and 500
to compare with; docs/data.md says where to get them. With an argument:

    --config=configs/photos.py:cpu   64 px, 250 photos and a small UNet, for a CPU

Latents are the low frequencies of 8x8 pixels. `--config.model.autoencoder.pretrained=` a
trained autoencoder, such as madebyollin/taesd, makes sharper pictures of as many numbers.

Cost: 130 s of training on one H100, once compiled; `:cpu` about ten minutes of a core.
docs/results/photos.md has what came of it.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings for photos.

    Raises:
      ValueError: for an unknown argument.
    """
    config = common.get_config()

    config.data.source = "data/photos"
    config.data.captions = "data/photos.json"
    config.data.num_examples = 1_000
    config.data.num_heldout = 500
    config.data.resolution = 128
    config.data.random_flip = False
    config.data.duplication = "full"
    config.data.duplicated_fraction = 0.05
    config.data.duplication_factor = 10
    config.data.cache_latents = True
    config.data.num_threads = 8

    config.model.autoencoder.name = "block_dct"
    config.model.autoencoder.patch_size = 8
    config.model.autoencoder.luminance = 24
    config.model.autoencoder.chrominance = 4
    config.model.autoencoder.scale = 0.75
    config.model.autoencoder.shift = -0.1  # photos are a little dark
    config.model.unet.block_out_channels = (256, 512, 768)
    config.model.unet.cross_attention = (True, True, True)
    config.model.unet.num_attention_heads = 8
    config.model.unet.layers_per_block = 2
    config.model.unet.norm_num_groups = 32
    config.model.text_encoder.max_length = 32
    config.model.text_encoder.hidden_size = 512
    config.model.text_encoder.intermediate_size = 2048
    config.model.text_encoder.num_hidden_layers = 6
    config.model.text_encoder.num_attention_heads = 8

    config.diffusion.prediction_type = "v_prediction"
    config.diffusion.rescale_betas_zero_snr = True
    config.diffusion.timestep_spacing = "trailing"
    config.diffusion.set_alpha_to_one = False

    config.train.steps = 3_000
    config.train.batch_size = 64
    config.train.dtype = "bfloat16"
    config.train.learning_rate = 3e-4
    config.train.learning_rate_schedule = "cosine"
    config.train.warmup_steps = 300
    config.train.adam_b2 = 0.99
    config.train.ema_decay = 0.999
    config.train.log_every_steps = 500
    config.train.checkpoint_every_steps = 1_000

    config.eval.num_generations = 1_000
    config.eval.batch_size = 250
    config.eval.num_inference_steps = 25
    config.eval.guidance_scale = 3.0
    config.eval.detection.num_prompts = 1_000

    if arg == "cpu":
        _shrink(config)
    elif arg:
        raise ValueError(f"configs/photos.py:{arg} is not known: use cpu, or nothing")
    return config


def _shrink(config: ConfigDict) -> None:
    """Takes what a CPU core trains in minutes."""
    config.data.num_examples = 250
    config.data.num_heldout = 250
    config.data.resolution = 64
    config.data.num_threads = 2

    config.model.unet.block_out_channels = (64, 128)
    config.model.unet.cross_attention = (True, True)
    config.model.unet.num_attention_heads = 4
    config.model.unet.layers_per_block = 1
    config.model.unet.norm_num_groups = 16
    config.model.text_encoder.train = False  # random features tell captions apart
    config.model.text_encoder.max_length = 24
    config.model.text_encoder.hidden_size = 64
    config.model.text_encoder.intermediate_size = 256
    config.model.text_encoder.num_hidden_layers = 2
    config.model.text_encoder.num_attention_heads = 4

    config.train.steps = 4_000
    config.train.batch_size = 8  # many small steps memorise sooner than few large ones
    config.train.dtype = "float32"
    # After 100 steps of warmup at twice the rate some seeds never learn as others do.
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 400
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 100
    config.train.checkpoint_every_steps = 1_000

    config.eval.num_generations = 250
    config.eval.batch_size = 50
    config.eval.num_inference_steps = 15
    config.eval.detection.num_prompts = 250
