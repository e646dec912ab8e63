"""The settings of an evaluation, with their defaults and meanings: one home for the
programs' configs, the Python API and the report."""

from ml_collections import ConfigDict


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
    evaluation.batch_size = 64
    evaluation.sampler = "ddim"  # ddim | dpmsolver++ | euler
    evaluation.timestep_spacing = ""  # leading | linspace | trailing; "" = diffusion's
    evaluation.num_inference_steps = 50
    evaluation.guidance_scale = 7.5  # 1 = none
    evaluation.clip_latents = 0.0  # bound on estimates of the clean latents; 0 = none
    evaluation.resolution = 0  # pixels at which images are compared; 0 = as generated
    evaluation.on_corrupt = "stop"  # stop | skip: what an unreadable image does
    # The first gives the headline; embedding/registry.py lists them all.
    evaluation.embedders = ("efficientnet_lite0", "pixels")
    evaluation.quality_embedders = ()  # of FID and its kin; () = the headline's
    evaluation.clip_score = ""  # clip_vit_b16, clip_vit_b16_dcr, ...; "" = none
    evaluation.tiles = 0  # also compare 2x2, 3x3 ... tiles, each at its place; 0 = not
    evaluation.tile_l2_candidates = 3  # neighbours compared tile by tile; 0 = none
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
