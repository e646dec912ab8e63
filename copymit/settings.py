"""The settings of a training and of an evaluation, with their defaults and meanings: one
home for the programs' configs, the Python API and the report."""

from ml_collections import ConfigDict


def training_settings() -> ConfigDict:
    """Returns the `train` section with its defaults."""
    train = ConfigDict()
    train.steps = 10_000  # updates of the parameters, in all
    train.epochs = 0.0  # draws of each image, on average, in place of steps; 0 = steps
    train.batch_size = 16  # over all hosts
    train.accumulate_steps = 1  # parts that a batch is computed in, to save memory
    train.dtype = "float32"  # float32 | bfloat16: compute; parameters stay float32
    train.learning_rate = 1e-4  # peak of the learning rate
    # constant | cosine | linear | polynomial, after the warm-up; all but the first to 0
    train.learning_rate_schedule = "constant"
    train.learning_rate_power = 2.0  # power of the polynomial schedule
    train.warmup_steps = 500  # in which the learning rate rises from 0
    train.adam_b1 = 0.9  # decay of AdamW's mean of gradients
    train.adam_b2 = 0.999  # decay of AdamW's mean of squared gradients
    train.adam_epsilon = 1e-8  # added to the root of AdamW's mean of squares
    train.weight_decay = 1e-2  # of AdamW, times the learning rate
    # float32 | bfloat16 | float8: what AdamW remembers; see training/moments.py
    train.moments_dtype = "float32"
    train.max_grad_norm = 1.0  # gradients of a larger norm are scaled down to it
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
    train.log_every_steps = 50  # into metrics.jsonl, TensorBoard and the terminal
    # Project of Weights & Biases that gets the metrics too (extra wandb); "" = none.
    train.wandb_project = ""
    train.checkpoint_every_steps = 1000  # what a kill loses at most
    train.keep_checkpoints = 1  # how many of the newest stay
    train.sample_every_steps = 0  # grid of generations while training; 0 = never
    train.preview_prompts = ()  # what the grid shows; () = captions of training images
    train.profile_steps = 0  # traced at the start into WORKDIR/profile, for TensorBoard
    train.evaluate_every_steps = 0  # how much it copies by now; 0 = never
    train.evaluate_every_epochs = 0.0  # in place of evaluate_every_steps; 0 = that
    # Share of copies among what is measured while training above which it ends, and goes
    # back to the last checkpoint below; 1 = never.
    train.stop_above_copied_share = 1.0
    train.hang_timeout_seconds = 1800  # without data, a step or a save: ends; 0 = never
    train.evaluate_prompts = 64  # training captions generated to measure copying
    return train.lock()


def evaluation_settings() -> ConfigDict:
    """Returns the `eval` section with its defaults."""
    evaluation = ConfigDict()
    evaluation.seed = 0  # of generations and of what the evaluation draws
    evaluation.use_ema = True  # where the run has a moving average
    evaluation.prompts = (
        "each"  # each | random | heldout | file | file+each | file+random
    )
    evaluation.prompts_file = ""  # text, one prompt a line, or .jsonl with "prompt"
    evaluation.negative_prompt = ""  # what guidance leads away from
    evaluation.num_generations = 256  # images, each of a seed of its own
    evaluation.batch_size = (
        64  # images at a time; fewer if the device says they do not fit
    )
    evaluation.sampler = "ddim"  # ddim | dpmsolver++ | euler
    evaluation.timestep_spacing = ""  # leading | linspace | trailing; "" = diffusion's
    evaluation.num_inference_steps = 50  # steps of the sampler
    evaluation.guidance_scale = 7.5  # 1 = none
    evaluation.clip_latents = 0.0  # bound on estimates of the clean latents; 0 = none
    evaluation.resolution = 0  # pixels at which images are compared; 0 = as generated
    evaluation.on_corrupt = "stop"  # stop | skip: what an unreadable image does
    # The first gives the headline; embedding/registry.py lists them all. () = by the size
    # of the images: sscd_288_int8 (sscd_288 where its weights are given) from 64 px on,
    # else efficientnet_lite0; and pixels.
    evaluation.embedders = ()
    # Networks of FID and its kin; () = the headline's; efficientnet_lite0 if embedders=().
    evaluation.quality_embedders = ()
    evaluation.clip_score = ""  # clip_vit_b16, clip_vit_b16_dcr, ...; "" = none
    evaluation.tiles = 0  # also compare 2x2, 3x3 ... tiles, each at its place; 0 = not
    evaluation.tile_l2_candidates = 3  # neighbours compared tile by tile; 0 = none
    evaluation.false_discovery_rate = 0.01  # of what is called a likely or near copy
    evaluation.copy_pictures = 2_000  # pairs of copies pictured in copies/
    evaluation.search = "auto"  # auto | exact | scann | approx
    evaluation.recall_target = 0.99  # of scann and approx
    evaluation.num_neighbors = 11  # kept per image; at least 11
    evaluation.background_queries = 10_000  # training images searched for; 0 = all
    evaluation.detection = detection = ConfigDict()  # of memorised prompts: --stages
    detection.num_prompts = 256  # training captions at most; as many held-out ones
    detection.num_seeds = 1  # initial noises a prompt; the cost grows with it
    # Similarity from which a prompt's generations tell that it is memorised; 0 = above 95 %
    # of the training images' to each other.
    detection.memorised_similarity = 0.0
    # File of memorised prompts, like eval.prompts_file; "" = by similarity.
    detection.memorised_prompts = ""
    # File of prompts that are not memorised: with both files only these are looked at,
    # and nothing needs to be generated before.
    detection.other_prompts = ""
    detection.text_noise = 0.1  # deviation of noise on the text, for its stability
    detection.num_text_noises = 2  # draws of noise on the text
    detection.entropy_layer = 3  # layer of attention entropy E
    detection.entropy_steps = 10  # last steps, of attention entropy D
    evaluation.gallery_size = 24  # generations pictured in the report
    evaluation.blur = False  # whether the report opens with blurred pictures
    evaluation.weights = weights = ConfigDict()  # paths or hub ids; "" = the published
    weights.sscd_disc_large = ""  # a file: docs/embedders.md
    weights.sscd_disc_mixup = ""  # a file: docs/embedders.md
    weights.inception = ""  # a file: docs/embedders.md
    weights.clip_vit_b16 = ""
    weights.clip_vit_l14 = ""
    weights.clip_vit_l14_336 = ""
    weights.openclip_vit_h14 = ""
    weights.dinov2_vits14 = ""
    weights.dinov2_vitb14 = ""
    weights.dinov2_vitl14 = ""
    return evaluation.lock()
