"""The sweeps of mitigations: the paper's tables, and everything by one ruler.

python -m launch.sweep --sweep=configs/sweeps.py:mitigations --workdir=runs/sweeps
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.sweeps_base import (
    BY_DUPLICATION,
    CLIP,
    COPIES,
    COPIES_OF_DUPLICATED,
    DUPLICATED,
    HITS,
    MEMORISED,
    OF_DUPLICATED,
    QUALITY,
    QUALITY_HELDOUT,
    SIMILARITY,
    Setting,
    datasets,
    expand,
    first_dataset,
)
from configs.sweeps_types import (
    Bars,
    Changes,
    Differences,
    Panel,
    Roc,
    Score,
    Tradeoff,
    Trial,
    draws,
)
from copymit.mitigation.detectors import all_detectors
from copymit.mitigation.registry import MITIGATIONS, resolve

_Changes = Mapping[str, Any]
_NOTHING: _Changes = {}

_TABLE = (
    SIMILARITY,
    Score("mean similarity", ("similarity_mean",)),
    COPIES,
    QUALITY,
    QUALITY_HELDOUT,
    CLIP,
    *BY_DUPLICATION,
)
_AGAINST_NONE = Changes("mitigation", "none", (SIMILARITY, COPIES, QUALITY_HELDOUT))


def _published(**names: str) -> dict[str, _Changes]:
    """Returns mitigations at their published strengths, by their names in a table."""
    chosen = {label: MITIGATIONS[name] for label, name in names.items()}
    return {"none": {}} | {
        label: {f"mitigation.{m.switch.path}": m.strength}
        for label, m in chosen.items()
    }


TRAINING = _published(
    MC="multiple_captions",
    GN="gaussian_noise",
    RC="random_caption",
    RT="random_tokens",
    CWR="word_repetition",
)
INFERENCE = _published(
    GNI="generation_noise",
    RT="generation_tokens",
    CWR="generation_repetition",
    RNA="generation_numbers",
)
_OPPOSITE = {
    "mitigation.generate.guidance_transition": 650,
    "mitigation.generate.guidance_before": -2.0,
}
# What the guide advises before any mitigation; half of the steps of each preset.
_HALF = {
    "small": {"train.steps": 1_250},
    "photos": {"train.steps": 1_500},
    "photos_cpu": {"train.steps": 2_000},
    "full": {"train.steps": 50_000},
}
_DEDUPLICATED = {"data.duplication": "none"}
_AT_GENERATION = "mitigation.generate."
# With these, embeddings of captions cannot be computed before the training.
_UNCACHED = {
    "model.text_encoder.train",
    *(
        f"mitigation.{m.switch.path}"
        for m in MITIGATIONS.values()
        if "captions that are embedded while training" in m.needs
    ),
}
_KNOWN_PROMPTS = {
    "data.source": "data/sd14_memorised",
    "data.captions": "data/sd14_memorised.json",
    "data.num_examples": 0,
    "data.resolution": 512,
}
_TEXT_ENCODERS: dict[str, _Changes] = {
    "frozen": {"model.text_encoder.train": False},
    "trained": {"model.text_encoder.train": True},
}
_PROMPTS = {"trigger": "each", "general": "heldout"}

_COUNTS = (
    Score("memorised prompts", ("num_memorised",)),
    Score("other training captions", ("num_unmemorised",)),
    Score("captions never trained on", ("num_unseen",)),
)


def _auc(against: str, named: str) -> Score:
    return Score(f"AUC against {named}", (f"{against}auc",))


def _true_positives(against: str, named: str) -> Score:
    key = f"{against}tpr_at_1_percent_fpr"
    return Score(f"true positives at 1 % of {named}", (key,), percent=True)


def _config(preset: str) -> str:
    return datasets(preset).get("LAION-10k", first_dataset(preset))


def _setting(
    preset: str,
    labels: Mapping[str, Any],
    changes: _Changes,
    train: _Changes = _NOTHING,
    evaluate: _Changes = _NOTHING,
) -> Setting:
    """Divides changes into those of the training and those of the evaluation."""
    generated = {k: v for k, v in changes.items() if k.startswith(_AT_GENERATION)}
    trained = {k: v for k, v in changes.items() if k not in generated}
    if preset == "full" and any(changes.get(name) for name in _UNCACHED):
        trained["data.cache_embeddings"] = False
    return Setting(labels, {**train, **trained}, {**evaluate, **generated})


@draws(
    Bars("mitigation", SIMILARITY, "mitigation in training"),
    Bars("mitigation", COPIES, "mitigation in training"),
    Bars("mitigation", COPIES_OF_DUPLICATED, "mitigation in training"),
    Bars("mitigation", QUALITY, "mitigation in training"),
    Bars("mitigation", CLIP, "mitigation in training"),
    columns=_TABLE,
    changes=_AGAINST_NONE,
)
def table_train_mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The paper's table of mitigations in training, on captions of the images."""
    for name, changes in TRAINING.items():
        setting = _setting(preset, {"mitigation": name}, changes)
        yield from expand(preset, seeds, _config(preset), setting)


@draws(
    Bars("mitigation", SIMILARITY, "mitigation at inference"),
    Bars("mitigation", COPIES, "mitigation at inference"),
    Bars("mitigation", COPIES_OF_DUPLICATED, "mitigation at inference"),
    Bars("mitigation", QUALITY, "mitigation at inference"),
    Bars("mitigation", CLIP, "mitigation at inference"),
    columns=_TABLE,
    changes=_AGAINST_NONE,
)
def table_inference_mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """The paper's table of mitigations at inference: one training, many evaluations."""
    for name, changes in INFERENCE.items():
        setting = _setting(preset, {"mitigation": name}, changes)
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
        setting = _setting(preset, {"mitigation": name}, changes)
        if preset == "full":
            setting = setting._replace(
                train=_KNOWN_PROMPTS,
                evaluate={
                    **setting.evaluate,
                    "eval.prompts": "each",
                    "eval.num_generations": 120,
                    "eval.sampler": "dpmsolver++",
                },
                model="stable-diffusion-v1-4",
            )
        yield from expand(preset, seeds, _config(preset), setting)


_RULER = (
    SIMILARITY,
    COPIES,
    *OF_DUPLICATED,
    HITS,
    QUALITY,
    QUALITY_HELDOUT,
    CLIP,
    Score("seconds an image", ("seconds_per_image",)),
)
_CHANGES = Changes(
    "mitigation",
    "none",
    (SIMILARITY, COPIES, DUPLICATED, QUALITY_HELDOUT),
    within=("prompts",),
)
_PANELS: tuple[Panel, ...] = (
    Differences(SIMILARITY, _CHANGES, "prompts"),
    Differences(COPIES, _CHANGES, "prompts"),
    Differences(QUALITY_HELDOUT, _CHANGES, "prompts"),
    *(
        Tradeoff(
            QUALITY_HELDOUT, SIMILARITY, "mitigation", "when", only=("prompts", prompts)
        )
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


@draws(*_PANELS, columns=_RULER, changes=_CHANGES)
def mitigations(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Every mitigation at every strength, on captions trained on and on new ones."""
    yield from _all_mitigations(preset, seeds, once=False)


@draws(*_PANELS, columns=_RULER, changes=_CHANGES)
def mitigations_once(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Every mitigation at one strength: half of the above."""
    yield from _all_mitigations(preset, seeds, once=True)


@draws(*_PANELS, columns=_RULER, changes=_CHANGES)
def mitigations_at_inference(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """What can be done for a model that is there: one training a seed for all."""
    for trial in _all_mitigations(preset, seeds, once=True):
        if trial.labels["when"] != "training":
            yield trial


@draws(
    Bars(
        "detector",
        _auc("", "other training captions"),
        "detector",
        "text encoder",
        chance=0.5,
    ),
    Bars(
        "detector",
        _auc("unseen_", "captions never trained on"),
        "detector",
        "text encoder",
        chance=0.5,
    ),
    *(Roc("detector", only=("text encoder", encoder)) for encoder in _TEXT_ENCODERS),
    columns=(
        *_COUNTS,
        _auc("", "other training captions"),
        _true_positives("", "other training captions"),
        _auc("unseen_", "captions never trained on"),
        _true_positives("unseen_", "captions never trained on"),
    ),
)
def detectors(preset: str, seeds: Sequence[int]) -> Iterator[Trial]:
    """Which prompts are memorised, by each detector: one evaluation a seed for all.

    The small models' text encoder is random where it is frozen, and what looks at the
    attention to its tokens can see nothing there.
    """
    for encoder, changes in _TEXT_ENCODERS.items():
        for name, detector in all_detectors().items():
            shown = detector.title
            labels = {"detector": shown, "text encoder": encoder, "prompts": "trigger"}
            for trial in _by_one_ruler(preset, seeds, labels, changes):
                seed = trial.labels["seed"]
                yield trial._replace(
                    name=f"{name}_{encoder}_seed-{seed}",
                    labels={"detector": shown, "text encoder": encoder, "seed": seed},
                    detector=name,
                )


def _by_one_ruler(
    preset: str, seeds: Sequence[int], labels: Mapping[str, Any], changes: _Changes
) -> Iterator[Trial]:
    """Yields trials with duplicated and held-out images, and with guidance."""
    config, train = first_dataset(preset), {}
    evaluate: dict[str, Any] = {}
    if preset == "small":  # guidance must be on for what acts on it
        evaluate = {"eval.guidance_scale": 2.0}
    if preset == "full":
        config = "configs/laion100k.py"
        train = {
            "data.num_examples": 10_000,
            "data.num_heldout": 1_000,
            "data.duplication": "full",
        }
        evaluate = {"eval.num_generations": 4_000}
    evaluate["eval.prompts"] = _PROMPTS[labels["prompts"]]
    setting = _setting(preset, labels, changes, train, evaluate)
    yield from expand(preset, seeds, config, setting)


def _all_mitigations(
    preset: str, seeds: Sequence[int], *, once: bool
) -> Iterator[Trial]:
    """Yields every mitigation on both kinds of prompts.

    Args:
      once: each at its first strength only.
    """
    for prompts in _PROMPTS:
        for name, when, changes in _mitigations(preset, once):
            labels = {"mitigation": name, "when": when, "prompts": prompts}
            yield from _by_one_ruler(preset, seeds, labels, changes)


def _mitigations(preset: str, once: bool) -> Iterator[tuple[str, str, _Changes]]:
    """Yields (name with its strength, when it acts, settings)."""
    yield "none", "never", {}
    yield "without duplicates", "training", _DEDUPLICATED
    yield "half of the steps", "training", _HALF[preset]
    for m in MITIGATIONS.values():
        when = "training" if m.switch.section == "train" else "inference"
        strengths = m.tried
        if preset == "small" and m.tried_small is not None:
            strengths = m.tried_small
        for strength in strengths[:1] if once else strengths:
            setting, value = resolve(f"{m.name}={strength}")
            number = strength if isinstance(strength, str) else f"{strength:g}"
            shown = m.label if strength is True else f"{m.label} {number}"
            yield shown, when, {f"mitigation.{setting.path}": value}
    yield "opposite guidance", "inference", _OPPOSITE
