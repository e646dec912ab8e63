"""The `eval` section: which stage depends on which setting, and what is refused."""

from collections.abc import Callable
from typing import Any, get_args

from ml_collections import ConfigDict

from copymit.embedding.clip import CLIP_MODELS
from copymit.embedding.headline import STAND_IN, Choice, choose_embedder
from copymit.embedding.registry import check_embedders, weights_name
from copymit.embedding.tiles import list_tiles
from copymit.evaluation.prompts import read_prompts
from copymit.evaluation.stages import content_digest
from copymit.search.nearest import Backend

_OF_STAGE = {
    "generate": (
        "seed",
        "use_ema",
        "prompts",
        "prompts_file",
        "negative_prompt",
        "num_generations",
        "sampler",
        "timestep_spacing",
        "num_inference_steps",
        "guidance_scale",
        "clip_latents",
    ),
    "embed": (
        "embedders",
        "quality_embedders",
        "clip_score",
        "tiles",
        "resolution",
        "on_corrupt",
        "seed",
    ),
    "search": (
        "search",
        "recall_target",
        "num_neighbors",
        "background_queries",
        "seed",
    ),
    "score": (
        "seed",
        "tile_l2_candidates",
        "false_discovery_rate",
        "copy_pictures",
    ),
    "detect": ("seed",),
    "report": ("gallery_size", "blur"),
}
# Counted up when a stage writes what it did not before, so that it is run again.
_VERSIONS = {"embed": 1, "score": 8}


def stage_settings(config: ConfigDict, stage: str) -> list:
    """Lists what a stage depends on besides the stages before it."""
    settings: list[Any] = [[name, config[name]] for name in _OF_STAGE[stage]]
    if version := _VERSIONS.get(stage):
        settings.append(["version", version])
    if stage == "generate" and config.prompts_file:
        settings.append(["read", read_prompts(config.prompts_file)])
    if stage == "detect":
        settings.append(config.detection.to_dict())
        for name in ("memorised_prompts", "other_prompts"):
            if path := config.detection[name]:
                settings.append(["read", read_prompts(path)])
    if stage == "embed":
        names = {*config.embedders, *config.quality_embedders, config.clip_score}
        used = {weights_name(name) for name in names if name}
        settings += [
            [name, content_digest(config.weights[name])]
            for name in sorted(used - {""})
            if config.weights[name]
        ]
    return settings


def resolve_embedders(
    config: ConfigDict, side: Callable[[], int]
) -> tuple[ConfigDict, Choice | None]:
    """Fills in the embedders where nobody named any.

    Args:
      side: returns the size in pixels at which networks see the images.
    Returns:
      The `eval` section, and what was chosen.
    Raises:
      FileNotFoundError: a path of SSCD's weights is given, and there is nothing.
    """
    if config.embedders:
        return config, None
    choice = choose_embedder(side(), config.weights)
    config = config.copy_and_resolve_references()
    config.embedders = (choice.embedder, "pixels")
    # A copy detector's features say little of how pictures are distributed.
    config.quality_embedders = config.quality_embedders or (STAND_IN,)
    return config, choice


def check_settings(config: ConfigDict) -> None:
    """Refuses values of the `eval` section that would fail only after a while.

    Raises:
      ValueError: names the setting and what it may be.
    """
    if config.embedders:
        check_embedders(config.embedders)
    if config.quality_embedders:
        check_embedders(config.quality_embedders, "eval.quality_embedders")
    choices = {
        "search": get_args(Backend),
        "on_corrupt": ("stop", "skip"),
        "clip_score": ("", *CLIP_MODELS),
    }
    for name, known in choices.items():
        if config[name] not in known:
            raise ValueError(
                f"eval.{name}={config[name]!r} is not known: use one of "
                f"{', '.join(value or repr('') for value in known)}"
            )
    for name, least in (
        ("batch_size", 1),
        ("num_neighbors", 1),
        ("resolution", 0),
        ("background_queries", 0),
        ("tile_l2_candidates", 0),
        ("gallery_size", 0),
        ("copy_pictures", 0),
    ):
        if config[name] < least:
            raise ValueError(f"eval.{name}={config[name]} must be at least {least}")
    if not 0 < config.false_discovery_rate < 1:
        raise ValueError(
            f"eval.false_discovery_rate={config.false_discovery_rate} must lie between 0 "
            "and 1: 0.01 lets 1 % of the likely copies be none"
        )
    list_tiles(config.tiles)
    detection = config.detection
    for name, least in (("num_prompts", 1), ("memorised_similarity", 0)):
        if not detection[name] >= least:  # what is not a number is not either
            raise ValueError(
                f"eval.detection.{name}={detection[name]} must be at least {least}"
            )
    for name in ("memorised_prompts", "other_prompts"):
        if detection[name]:
            read_prompts(detection[name], f"eval.detection.{name}")
    if detection.other_prompts and not detection.memorised_prompts:
        raise ValueError(
            f"eval.detection.other_prompts={detection.other_prompts!r} are those that are "
            "not memorised: set eval.detection.memorised_prompts, a file of those that are"
        )
