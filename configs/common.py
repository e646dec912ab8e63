"""Every setting there is, with its default and meaning; the other configs change some.

Those of the training and of the evaluation are in copymit/settings.py, those of
mitigations in copymit/mitigation/methods/, since checkpoints, the Python API and the
report know them too.

Not a run by itself. A config file calls `get_config()` here, changes what it needs and
returns the result; single values change on the command line, as in
`--config.train.steps=500`. An unknown name is refused.
"""

from ml_collections import ConfigDict

from copymit.mitigation.registry import mitigation_settings
from copymit.settings import evaluation_settings, training_settings


def get_config() -> ConfigDict:
    """Returns the defaults."""
    config = ConfigDict()
    config.seed = 0  # of the initial values and of every draw in training

    config.data = data = ConfigDict()
    data.source = "fluent_emoji"  # the embedded set, or a folder of images
    data.captions = ""  # JSON {relative path: [captions]} for a folder; "" = none
    data.num_captions = 0  # of each image, the first so many; 0 = all
    data.classes = ()  # names; () = all
    data.caption_clusters = 0  # that many classes by words of captions; 0 = the set's
    data.num_examples = 0  # random subset of this size; 0 = all
    data.num_heldout = 0  # further images, never trained on, for comparison
    data.heldout_share = 0.0  # of all images, in place of num_heldout; 0 = that
    data.resolution = 64  # pixels: short side resized, then centre crop
    data.random_flip = True  # half of the visits show the mirror image
    data.random_crop = False  # another part of the long side at every visit
    data.on_corrupt = "stop"  # stop | skip: what an unreadable image does
    data.caption_style = "instance"  # fixed | class | instance | random | unconditional
    data.use_all_captions = False  # switches MC on where images have several captions
    data.caption_dropout = 0.1  # share trained without caption, for guidance
    data.duplication = "none"  # none | partial | full
    data.duplicated_fraction = 0.05  # share of the images that is duplicated
    data.duplication_factor = 5  # how many times likelier duplicated ones are drawn
    data.manifest = ""  # CSV or parquet: example_id, factor[, captions]; "" = none
    data.duplication_mode = "weights"  # as sampling says | counts: exact, or refused
    data.sampling = "epochs"  # epochs (without replacement) | replacement | published
    data.cache_latents = False  # encode every image once, before training
    data.cache_embeddings = False  # encode every caption once: a frozen text encoder
    # Where encoded images and captions are kept; "" = cache, in WORKDIR. A sweep shares
    # ../cache, where evaluations keep the features of training images, too.
    data.cache_dir = ""
    data.num_threads = 2  # Grain reader threads per process
    data.num_workers = 0  # Grain worker processes per process; 0 = threads only

    config.model = model = ConfigDict()
    # Weights to start from: a base model's name (python -m copymit.pretrained), a folder
    # or gs:// folder in diffusers' layout, or a hub id; "" = random. Sizes, noise
    # schedule and prediction type are then the checkpoint's, whatever is set here.
    model.pretrained = ""
    model.from_scratch = ()  # networks that start at random: unet, text_encoder

    model.autoencoder = ConfigDict()
    model.autoencoder.name = "space_to_depth"  # space_to_depth | block_dct | kl | tiny
    # A folder or hub id of a trained one alone, of diffusers (AutoencoderKL,
    # AutoencoderTiny) or of TAESD's own files; its sizes are then those of the files.
    model.autoencoder.pretrained = ""
    model.autoencoder.patch_size = 2  # pixels to one side of a latent position
    model.autoencoder.luminance = 6  # coefficients that block_dct keeps of the light
    model.autoencoder.chrominance = (
        3  # coefficients that it keeps of a colour difference
    )
    model.autoencoder.scale = 1.0  # latents = (pixels - shift) * scale
    model.autoencoder.shift = 0.0  # what is taken from pixels first
    model.autoencoder.kl = kl = ConfigDict()  # the VAE of Stable Diffusion
    kl.latent_channels = 4
    kl.block_out_channels = (128, 256, 512, 512)
    kl.layers_per_block = 2
    kl.norm_num_groups = 32
    kl.scaling_factor = 0.18215
    kl.shift_factor = 0.0
    kl.use_quant_conv = True
    kl.use_post_quant_conv = True
    kl.mid_block_add_attention = True
    model.autoencoder.tiny = tiny = ConfigDict()  # TAESD
    tiny.latent_channels = 4
    tiny.encoder_block_out_channels = (64, 64, 64, 64)
    tiny.decoder_block_out_channels = (64, 64, 64, 64)
    tiny.num_encoder_blocks = (1, 3, 3, 3)
    tiny.num_decoder_blocks = (3, 3, 3, 1)
    tiny.scaling_factor = 1.0
    tiny.shift_factor = 0.0
    tiny.use_midblock_gn = False
    tiny.act_fn = "relu"  # relu | silu | gelu
    tiny.upsampling_scaling_factor = 2

    model.unet = ConfigDict()
    model.unet.block_out_channels = (64, 128, 192)  # width per level, finest first
    model.unet.cross_attention = (False, True, True)  # to captions, per level
    model.unet.num_attention_heads = 4  # heads of a level with attention
    model.unet.layers_per_block = 1  # residual blocks a level
    model.unet.transformer_layers = 1  # attention blocks after a residual block
    model.unet.use_linear_projection = True  # in attention; else convolutions of 1x1
    model.unet.norm_num_groups = 16  # groups of group normalisation
    model.unet.norm_epsilon = 1e-5  # of group normalisation
    # auto | xla | chunked | blockwise | flash | cudnn; see models/attention.py
    model.unet.attention_implementation = "auto"
    model.unet.remat = "none"  # what training computes twice; see models/remat.py

    model.text_encoder = ConfigDict()
    model.text_encoder.train = True  # False: it stays as it is
    model.text_encoder.max_length = 16  # tokens, start and end included
    model.text_encoder.pad_token_id = 49407  # end of text (SD 1.x); 0 for SD 2.x
    model.text_encoder.hidden_size = 128  # width
    model.text_encoder.intermediate_size = 512  # width inside each MLP
    model.text_encoder.num_hidden_layers = 2  # transformer blocks
    model.text_encoder.num_attention_heads = 4  # heads of a transformer block
    model.text_encoder.hidden_act = "quick_gelu"  # quick_gelu (SD 1.x) | gelu (SD 2.x)
    model.text_encoder.layer_norm_eps = 1e-5  # of layer normalisation
    model.text_encoder.vocab_size = 49_408  # of CLIP's tokenizer
    model.text_encoder.max_position_embeddings = 77  # longest caption, in tokens
    model.text_encoder.eos_token_id = 49_407  # end of text

    config.diffusion = diffusion = ConfigDict()
    diffusion.beta_schedule = "scaled_linear"  # linear | scaled_linear | cosine
    diffusion.beta_start = 0.00085  # variance of the noise of the first timestep
    diffusion.beta_end = 0.012  # variance of the noise of the last timestep
    diffusion.num_train_timesteps = 1000  # noise levels
    diffusion.prediction_type = "epsilon"  # epsilon | v_prediction
    diffusion.rescale_betas_zero_snr = False  # end in pure noise; v_prediction only
    # leading | linspace | trailing; "" = as usual for eval.sampler: leading for ddim,
    # linspace for dpmsolver++ and euler
    diffusion.timestep_spacing = ""
    diffusion.steps_offset = 1  # added to every leading timestep
    diffusion.set_alpha_to_one = True  # False: ddim ends at timestep 0's noise level

    config.train = training_settings()
    config.mitigation = mitigation_settings()
    config.mesh = ConfigDict()  # devices along each axis; -1 = the rest
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.eval = evaluation_settings()
    return config.lock()
