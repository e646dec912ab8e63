"""The settings of a training, of mitigations and of an evaluation, with their defaults and
meanings: one home for the programs' configs, the Python API and the report."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from copymit.config import flatten


def training_settings() -> ConfigDict:
    """Returns the `train` section with its defaults."""
    train = ConfigDict()
    train.steps = 10_000
    train.batch_size = 16  # over all hosts
    train.accumulate_steps = 1  # parts that a batch is computed in, to save memory
    train.dtype = "float32"  # float32 | bfloat16: compute; parameters stay float32
    train.learning_rate = 1e-4  # the peak
    # constant | cosine | linear | polynomial, after the warm-up; all but the first to 0
    train.learning_rate_schedule = "constant"
    train.learning_rate_power = 2.0  # of polynomial
    train.warmup_steps = 500
    train.adam_b1 = 0.9
    train.adam_b2 = 0.999
    train.adam_epsilon = 1e-8
    train.weight_decay = 1e-2
    # float32 | bfloat16 | float8: what AdamW remembers; see training/moments.py
    train.moments_dtype = "float32"
    train.max_grad_norm = 1.0
    train.min_snr_gamma = 0.0  # weight of the loss by noise level, 5 usual; 0 = none
    train.noise_offset = 0.0  # further noise, alike all over a picture; 0.05 usual
    train.input_perturbation = 0.0  # further noise that is not asked for; 0.1 usual
    train.lora_rank = 0  # trains products of this rank beside layers; 0 = the layers
    # Ends of the layers' names: attention's in the UNet, and in a text encoder that trains.
    train.lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("q_proj", "k_proj", "v_proj", "out_proj"),
    )
    train.ema_decay = 0.0  # 0 = no moving average; warmed up, see training/step.py
    train.log_every_steps = 50
    train.checkpoint_every_steps = 1000
    train.keep_checkpoints = 1
    train.sample_every_steps = 0  # grid of generations while training; 0 = never
    train.preview_prompts = ()  # what the grid shows; () = captions of training images
    train.profile_steps = 0  # traced at the start into WORKDIR/profile, for TensorBoard
    train.evaluate_every_steps = 0  # how much it copies by now; 0 = never
    train.hang_timeout_seconds = 1800  # without data, a step or a save: ends; 0 = never
    train.evaluate_prompts = 64  # captions of training images generated for that
    return train.lock()


def mitigation_settings() -> ConfigDict:
    """Returns the `mitigation` section with its defaults: nothing is done."""
    mitigation = ConfigDict()
    # Names, or the paper's and the original code's, each with its strength there or one
    # given: ("GN", "RT=0.2"). They are resolved into the settings below.
    mitigation.apply = ()
    mitigation.train = train = ConfigDict()
    train.multiple_captions = False  # MC: any caption of the image
    train.gaussian_noise = 0.0  # GN: deviation of noise on the embedding
    train.random_caption = 0.0  # RC: share of captions made random
    train.random_tokens = 0.0  # RT: share with random tokens inserted
    train.word_repetition = 0.0  # CWR: share with words repeated
    train.num_insertions = 2  # of RT and CWR
    train.embedding_mixup = 0.0  # Beta(this, 1) mixes embeddings of a batch
    train.skip_above = 0.0  # examples whose text changes the prediction by a norm above
    mitigation.generate = generate = ConfigDict()
    generate.gaussian_noise = 0.0  # GNI: as GN
    generate.random_tokens = 0  # RT: tokens inserted into the prompt
    generate.word_repetition = 0  # CWR: words of the prompt repeated
    generate.random_numbers = 0  # RNA: random numbers inserted
    # From here on see mitigation/at_generation.py for sources and meanings.
    generate.guidance_transition = 0  # timestep below which guidance begins
    generate.dynamic_transition = False  # it begins when its magnitude stops falling
    generate.guidance_before = 0.0  # scale before either; below 0: opposite guidance
    generate.prompt_target = 0.0  # embeddings are optimised to this magnitude
    generate.prompt_learning_rate = 0.05
    generate.prompt_iterations = 10
    generate.start_attention = 0.0  # factor of attention to the start token; 1.25 usual
    generate.mask_padding = False  # no attention to what follows the prompt
    generate.noise_candidates = 0  # initial noises of which the least sharp is taken
    generate.noise_target = 0.0  # the noise is optimised to this sharpness loss
    generate.noise_norm_weight = 0.05
    generate.noise_learning_rate = 0.05
    generate.noise_iterations = 10
    generate.repulsion = 0.0  # turn away from the nearest training image
    generate.despecification = 0.0  # guidance taken off near a training image
    generate.clean_threshold = 0.4  # similarity above which both act, at the end
    generate.noisy_threshold = 0.3  # and at the beginning
    return mitigation.lock()


def changed_mitigations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps, of flat settings, those of mitigations that are not at their defaults.

    So what is on, and of what says how strongly and how, what is not as usual.
    """
    defaults = flatten({"mitigation": mitigation_settings().to_dict()})
    return {
        name: value
        for name, value in settings.items()
        if name.startswith("mitigation.") and value != defaults.get(name, 0)
    }


def evaluation_settings() -> ConfigDict:
    """Returns the `eval` section with its defaults."""
    evaluation = ConfigDict()
    evaluation.seed = 0
    evaluation.use_ema = True  # where the run has a moving average
    evaluation.prompts = (
        "each"  # each | random | heldout | file | file+each | file+random
    )
    evaluation.prompts_file = ""  # text, one prompt a line, or .jsonl with "prompt"
    evaluation.negative_prompt = ""  # what guidance leads away from
    evaluation.num_generations = 256
    evaluation.batch_size = (
        64  # images at a time; fewer if the device says they do not fit
    )
    evaluation.sampler = "ddim"  # ddim | dpmsolver++ | euler
    evaluation.timestep_spacing = ""  # leading | linspace | trailing; "" = diffusion's
    evaluation.num_inference_steps = 50
    evaluation.guidance_scale = 7.5  # 1 = none
    evaluation.clip_latents = 0.0  # bound on estimates of the clean latents; 0 = none
    evaluation.resolution = 0  # pixels at which images are compared; 0 = as generated
    evaluation.on_corrupt = "stop"  # stop | skip: what an unreadable image does
    # The first gives the headline; embedding/registry.py lists them all. () = by the size
    # of the images: sscd_288_int8 (sscd_288 where its weights are given) from 64 px on,
    # else efficientnet_lite0; and pixels.
    evaluation.embedders = ()
    # Of FID and its kin; () = the headline's, or efficientnet_lite0 with embedders=().
    evaluation.quality_embedders = ()
    evaluation.clip_score = ""  # clip_vit_b16, clip_vit_b16_dcr, ...; "" = none
    evaluation.tiles = 0  # also compare 2x2, 3x3 ... tiles, each at its place; 0 = not
    evaluation.tile_l2_candidates = 3  # neighbours compared tile by tile; 0 = none
    evaluation.false_discovery_rate = 0.01  # of what is called a likely or near copy
    evaluation.copy_pictures = 200  # pairs of copies pictured in copies/
    evaluation.search = "auto"  # auto | exact | scann | approx
    evaluation.recall_target = 0.99  # of scann and approx
    evaluation.num_neighbors = 11  # kept per image; at least 11
    evaluation.background_queries = 10_000  # training images searched for; 0 = all
    evaluation.detection = detection = ConfigDict()  # of memorised prompts: --stages
    detection.num_prompts = 256  # at most, of training images; as many of held-out ones
    detection.num_seeds = 1  # initial noises a prompt; the cost grows with it
    detection.memorised_similarity = 0.0  # of its generations; 0 = above 95 % of the
    # training images' to each other
    # As eval.prompts_file, a file of those that are memorised; "" = by similarity.
    detection.memorised_prompts = ""
    # And one of those that are not: with both only these two lists are looked at, and
    # nothing needs to be generated before.
    detection.other_prompts = ""
    detection.text_noise = 0.1
    detection.num_text_noises = 2
    detection.entropy_layer = 3  # of entropy E
    detection.entropy_steps = 10  # of entropy D, the last ones
    evaluation.gallery_size = 24  # generations pictured in the report
    evaluation.blur = False  # whether the report opens with blurred pictures
    evaluation.weights = weights = ConfigDict()  # paths or hub ids; "" = the published
    weights.sscd_disc_large = ""  # these three must be downloaded, see README
    weights.sscd_disc_mixup = ""
    weights.inception = ""
    weights.clip_vit_b16 = ""
    weights.clip_vit_l14 = ""
    weights.clip_vit_l14_336 = ""
    weights.openclip_vit_h14 = ""
    weights.dinov2_vits14 = ""
    weights.dinov2_vitb14 = ""
    weights.dinov2_vitl14 = ""
    return evaluation.lock()
