"""The sweeps of mitigations: the paper's tables, and everything by one ruler.

python -m launch.sweep --sweep=configs/sweeps.py:mitigations --workdir=runs/sweeps
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.sweeps_base import (
    CLIP,
    HITS,
    MEMORISED,
    QUALITY,
    SIMILARITY,
    Setting,
    expand,
)
from configs.sweeps_types import Bars, Changes, Score, Tradeoff, Trial, draws

_Changes = Mapping[str, Any]

_TABLE = (SIMILARITY, Score("mean similarity", ("similarity_mean",)), QUALITY, CLIP)

TRAINING: dict[str, _Changes] = {
    "none": {},
    "MC": {"multiple_captions": True},
    "GN": {"gaussian_noise": 0.1},
    "RC": {"random_caption": 0.1},
    "RT": {"random_tokens": 0.1},
    "CWR": {"word_repetition": 0.1},
}
INFERENCE: dict[str, _Changes] = {
    "none": {},
    "GNI": {"gaussian_noise": 0.1},
    "RT": {"random_tokens": 2},
    "CWR": {"word_repetition": 2},
    "RNA": {"random_numbers": 2},
}
# Every mitigation at several strengths, first its authors', where they have one. Norms
# and thresholds belong to a size of latents and to an embedder.
_STRENGTHS = {
    "train.gaussian_noise": ("GN", (0.1, 0.05, 0.3)),
    "train.random_caption": ("RC", (0.1, 0.4)),
    "train.random_tokens": ("RT", (0.1, 0.4)),
    "train.word_repetition": ("CWR", (0.1, 0.4)),
    "train.embedding_mixup": ("mixup", (0.1, 1.0)),
    "train.multiple_captions": ("MC", (True,)),
    "generate.gaussian_noise": ("GNI", (0.1, 0.05, 0.3)),
    "generate.random_tokens": ("RT", (2, 1, 4)),
    "generate.word_repetition": ("CWR", (2, 1, 4)),
    "generate.random_numbers": ("RNA", (2, 1, 4)),
    "generate.start_attention": ("start attention", (1.25, 2.0)),
    "generate.mask_padding": ("padding masked", (True,)),
    "generate.guidance_transition": ("guidance from", (500, 800)),
    "generate.dynamic_transition": ("dynamic guidance", (True,)),
    "generate.noise_candidates": ("noise chosen of", (4, 16)),
    "generate.repulsion": ("repulsion", (1.0, 0.5)),
    "generate.despecification": ("despecification", (13.0, 5.0)),
}
# Norms for latents of 64x64x4 and for the small models' 8x8x16, where the first
# predictions of memorised prompts differ by 14 to 36, and those of others by 8.
_TARGETS: dict[str, dict[str, tuple[float, ...]]] = {
    "full": {
        "train.skip_above": (1.0, 3.0),
        "generate.prompt_target": (3.0, 5.0),
        "generate.noise_target": (8.2, 6.0),
    },
    "small": {
        "train.skip_above": (12.0, 20.0),
        "generate.prompt_target": (6.0, 12.0),
        "generate.noise_target": (2.0, 4.0),
    },
}
_TARGET_NAMES = {
    "train.skip_above": "skipping above",
    "generate.prompt_target": "prompt optimised to",
    "generate.noise_target": "noise optimised to",
}
# As detection.json calls them, and what they look at.
_DETECTORS = {
    "text_stability": "stability under text noise, step 1",
    "noise_norm_first": "text-conditional noise, step 1",
    "noise_norm_mean": "text-conditional noise, all steps",
    "bright_ending_norm": "the same where the end token is bright",
    "sharpness": "sharpness, step 1",
    "end_token_attention": "attention to the end token, last step",
    "attention_entropy_d": "attention entropy D, last steps",
    "attention_entropy_e": "attention entropy E, step 1",
}
_REWRITES = ("random_caption", "random_tokens", "word_repetition")
_PROMPTS = {"trigger": "each", "general": "heldout"}


def _auc(against: str, named: str) -> Score:
    return Score(f"AUC against {named}", (f"{against}auc",))


def _true_positives(against: str, named: str) -> Score:
    key = f"{against}tpr_at_1_percent_fpr"
    return Score(f"true positives at 1 % of {named}", (key,), percent=True)


def _config(preset: str) -> str:
    return "configs/laion10k.py" if preset == "full" else "configs/demo.py"


def _training(preset: str, changes: _Changes) -> dict[str, Any]:
    """Returns the settings of a training with mitigations of these names."""
    train = {f"mitigation.train.{key}": value for key, value in changes.items()}
    if preset == "full" and any(name in changes for name in _REWRITES):
        train["data.cache_embeddings"] = False  # the captions are made up as it goes
    return train


def _generation(changes: _Changes) -> dict[str, Any]:
    return {f"mitigation.generate.{key}": value for key, value in changes.items()}


@draws(
    Bars("mitigation", SIMILARITY, "mitigation in training"),
    Bars("mitigation", QUALITY, "mitigation in training"),
    Bars("mitigation", CLIP, "mitigation in training"),
    columns=_TABLE,
)
def table_train_mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The paper's table of mitigations in training, on captions of the images."""
    for name, changes in TRAINING.items():
        setting = Setting({"mitigation": name}, _training(preset, changes))
        yield from expand(preset, seeds, _config(preset), setting)


@draws(
    Bars("mitigation", SIMILARITY, "mitigation at inference"),
    Bars("mitigation", QUALITY, "mitigation at inference"),
    Bars("mitigation", CLIP, "mitigation at inference"),
    columns=_TABLE,
)
def table_inference_mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The paper's table of mitigations at inference: one training, many evaluations."""
    for name, changes in INFERENCE.items():
        setting = Setting({"mitigation": name}, {}, _generation(changes))
        yield from expand(preset, seeds, _config(preset), setting)


@draws(
    Bars("mitigation", MEMORISED, "mitigation at inference"),
    Bars("mitigation", QUALITY, "mitigation at inference"),
    Bars("mitigation", CLIP, "mitigation at inference"),
    columns=(MEMORISED, *_TABLE),
)
def known_prompts(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Prompts that a model is known to have memorised; `full`: Stable Diffusion 1.4.

    `full` needs data/sd14_memorised: the training images of the known prompts (the
    original code's twelve, or more), with the prompts as their captions. In `small`,
    the duplicated images are the memorised ones.
    """
    for name, changes in INFERENCE.items():
        # The original code inserts four words here, and two elsewhere.
        changes = {k: 4 if isinstance(v, int) else v for k, v in changes.items()}
        evaluate = _generation(changes)
        if preset == "full":
            data = {
                "data.source": "data/sd14_memorised",
                "data.captions": "data/sd14_memorised.json",
                "data.num_examples": 0,
                "data.resolution": 512,
            }
            evaluate |= {"eval.prompts": "each", "eval.num_generations": 120}
            setting = Setting(
                {"mitigation": name}, data, evaluate, "stable-diffusion-v1-4"
            )
        else:
            setting = Setting({"mitigation": name}, {}, evaluate)
        yield from expand(preset, seeds, _config(preset), setting)


_DUPLICATED = Score("similarity, duplicated", ("prompted_duplicated_similarity_mean",))
_RULER = (
    SIMILARITY,
    _DUPLICATED,
    HITS,
    QUALITY,
    CLIP,
    Score("seconds an image", ("seconds_per_image",)),
)
_CHANGES = Changes(
    "mitigation", "none", (SIMILARITY, _DUPLICATED, QUALITY), within=("prompts",)
)


_TRADEOFFS = (
    *(
        Tradeoff(QUALITY, SIMILARITY, "mitigation", "when", only=("prompts", prompts))
        for prompts in _PROMPTS
    ),
    Tradeoff(
        CLIP,
        SIMILARITY,
        "mitigation",
        "when",
        x_low_is_good=False,
        only=("prompts", "trigger"),
    ),
)


@draws(*_TRADEOFFS, columns=_RULER, changes=_CHANGES)
def mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Every mitigation at every strength, on captions trained on and on new ones."""
    for name, when, changes in _all_mitigations(preset):
        for prompts in _PROMPTS:
            yield from _mitigated(preset, seeds, name, when, changes, prompts)


@draws(*_TRADEOFFS, columns=_RULER, changes=_CHANGES)
def mitigations_once(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Every mitigation at one strength: two fifths of the above."""
    for prompts in _PROMPTS:
        for name, when, changes in _all_mitigations(preset, once=True):
            yield from _mitigated(preset, seeds, name, when, changes, prompts)


@draws(
    Bars("detector", _auc("", "other training captions"), "detector"),
    Bars("detector", _auc("unseen_", "captions never trained on"), "detector"),
    columns=(
        _auc("", "other training captions"),
        _true_positives("", "other training captions"),
        _auc("unseen_", "captions never trained on"),
        _true_positives("unseen_", "captions never trained on"),
    ),
)
def detectors(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Which prompts are memorised, by each detector: one evaluation a seed for all."""
    for name, shown in _DETECTORS.items():
        for trial in _mitigated(preset, seeds, "none", "never", {}, "trigger"):
            labels = {"detector": shown, "seed": trial.labels["seed"]}
            yield trial._replace(
                name=f"{name}_seed-{labels['seed']}", labels=labels, detector=name
            )


def _mitigated(
    preset: str,
    seeds: Sequence[int],
    name: str,
    when: str,
    changes: _Changes,
    prompts: str,
) -> Iterator[Trial]:
    # Held-out images must exist, and guidance must be on for what acts on it.
    config, train, evaluate = "configs/demo.py", {}, {"eval.guidance_scale": 2.0}
    if preset == "full":
        config, evaluate = "configs/laion100k.py", {"eval.num_generations": 4_000}
        train = {"data.num_examples": 10_000, "data.num_heldout": 1_000}
    trained = _training(
        preset,
        {
            key.removeprefix("train."): value
            for key, value in changes.items()
            if key.startswith("train.")
        },
    )
    generated = {
        f"mitigation.{key}": value
        for key, value in changes.items()
        if key.startswith("generate.")
    }
    setting = Setting(
        {"mitigation": name, "when": when, "prompts": prompts},
        train | trained,
        evaluate | {"eval.prompts": _PROMPTS[prompts]} | generated,
    )
    yield from expand(preset, seeds, config, setting)


def _all_mitigations(
    preset: str, *, once: bool = False
) -> Iterator[tuple[str, str, _Changes]]:
    """Yields (name with its strength, when it acts, settings under `mitigation`).

    Args:
      once: each at its first strength only.
    """
    yield "none", "never", {}
    strengths_of: dict[str, tuple[str, tuple]] = _STRENGTHS | {
        key: (_TARGET_NAMES[key], strengths)
        for key, strengths in _TARGETS[preset].items()
    }
    for key, (name, strengths) in strengths_of.items():
        when = "training" if key.startswith("train.") else "inference"
        for strength in strengths[:1] if once else strengths:
            shown = name if strength is True else f"{name} {strength:g}"
            yield shown, when, {key: strength}
    yield (
        "opposite guidance",
        "inference",
        {"generate.dynamic_transition": True, "generate.guidance_before": -2.0},
    )
