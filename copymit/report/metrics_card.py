"""The metrics card: how one evaluation was done, as a paragraph for a paper's appendix.

Scores and settings enter, text leaves. What neither says is left out, never guessed.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import copymit
from copymit.mitigation.registry import changed_mitigations
from copymit.report.evaluated_run import EvaluatedRun
from copymit.report.verdict import format_number, quality_key, score_label
from copymit.scores.bootstrap import bootstrap_ci
from copymit.scores.names import SETS, look_up

_COUNTS = {
    "num_generations": "{} generations",
    "num_references": "{} training images",
    "num_heldout": "{} images that were never trained on",
}
_PROMPTS = {
    "each": "every training image's caption in turn",
    "random": "captions of training images drawn at random",
    "heldout": "captions of images that were never trained on",
    "file": "a file of prompts",
    "file+each": "a file of prompts, then every training image's caption in turn",
    "file+random": "a file of prompts, then captions of training images drawn at random",
    "file+heldout": "a file of prompts, then captions of images never trained on",
}


def write_metrics_card(run: EvaluatedRun) -> str:
    """Describes an evaluation in one paragraph, from its scores and settings alone."""
    parts = (
        _describe_data,
        _describe_training,
        _describe_sampling,
        _describe_measures,
        _describe_search,
        _describe_quality,
        _describe_intervals,
    )
    sentences = [sentence for part in parts for sentence in part(run)]
    sentences.append(f"Measured with copymit {copymit.__version__}.")
    # One paragraph, also where a name or a protocol holds line breaks.
    return " ".join(" ".join(sentences).split())


def _describe_data(run: EvaluatedRun) -> list[str]:
    counts = [
        words.format(f"{run.scores[key]:,}")
        for key, words in _COUNTS.items()
        if isinstance(run.scores.get(key), int)
    ]
    if not counts:
        return []
    text = _enumerate(counts)
    size = run.scores.get("image_size_px")
    if isinstance(size, int):
        text += f", generations at {size} px"
    sentences = [f"Compared were {text}."]
    if preparation := run.scores.get("image_preparation"):
        sentences.append(f"Preparation: {preparation}.")
    for name, words in (
        ("generations", "generations"),
        ("references", "training images"),
    ):
        skipped = run.scores.get(f"num_skipped_{name}")
        if skipped:
            sentences.append(
                f"Left out were {skipped:,} {words} that could not be read."
            )
        blank = run.scores.get(f"num_blank_{name}")
        if blank:
            sentences.append(
                f"Of one colour were {blank:,} {words}, which are counted."
            )
    return sentences


def _describe_training(run: EvaluatedRun) -> list[str]:
    """Says what the model was trained on, of a run that copymit trained."""
    if run.duplication is None or "step" not in run.settings:
        return []
    value = _reader(run.settings)
    facts = [
        value("step", "{} training steps"),
        value("train.batch_size", "batch size {}"),
        value("data.caption_style", "{} captions"),
        value("seed", "training seed {}"),
    ]
    duplication = run.settings.get("data.duplication")
    if manifest := run.settings.get("data.manifest"):
        facts.append(f"duplication as listed in {manifest}")
        duplication = None
    if duplication == "none":
        facts.append("no duplication")
    elif duplication is not None:
        share = value("data.duplicated_fraction", ", of a share of {} of the images")
        factor = value("data.duplication_factor", " x{}")
        facts.append(f"{duplication} duplication{factor}{share}")
    mitigations = [
        name.rpartition(".")[2].replace("_", " ")
        + ("" if value is True else f" {format_number(value)}")
        for name, value in sorted(changed_mitigations(run.settings).items())
    ]
    if mitigations:
        facts.append("mitigation by " + _enumerate(mitigations))
    return [f"The model: {_enumerate([f for f in facts if f])}."]


def _describe_sampling(run: EvaluatedRun) -> list[str]:
    """Says how generations were made, if copymit made them."""
    # Whose images were given has a setting that says where they lay.
    if run.prompts is None or "generations" in run.settings:
        return ["The generations were not made by copymit."]
    value = _reader(run.settings)
    prompts = run.settings.get("eval.prompts")
    sentences = []
    if prompts is not None:
        sentences.append(f"Prompts: {_PROMPTS.get(str(prompts), prompts)}.")
    facts = [
        value("eval.sampler", "the {} sampler"),
        value("eval.num_inference_steps", "{} steps"),
        value("eval.timestep_spacing", "{} timesteps"),
        _describe_guidance(run),
        value("eval.negative_prompt", "negative prompt “{}”"),
        value("eval.clip_latents", "latents clipped to {}"),
        _describe_seeds(run),
    ]
    facts = [fact for fact in facts if fact]
    if facts:
        sentences.append(f"Sampling: {_enumerate(facts)}.")
    return sentences


def _describe_guidance(run: EvaluatedRun) -> str:
    assert run.prompts is not None
    if "guidance_scale" in run.prompts:
        scales = sorted(set(run.prompts["guidance_scale"].dropna()))
        if scales:
            return "guidance scale " + _enumerate([f"{scale:g}" for scale in scales])
    return _reader(run.settings)("eval.guidance_scale", "guidance scale {}")


def _describe_seeds(run: EvaluatedRun) -> str:
    assert run.prompts is not None
    if "seed" not in run.prompts:
        return _reader(run.settings)("eval.seed", "seed {}")
    seeds = sorted(set(run.prompts["seed"].dropna().astype(int)))
    if not seeds:
        return ""
    if len(seeds) > 3:
        return f"{len(seeds)} seeds from {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {_enumerate([str(s) for s in seeds])}"


def _describe_measures(run: EvaluatedRun) -> list[str]:
    """Names every embedder with its protocol, the headline one first."""
    scores = run.scores
    ways = {scores.get("embedder"): scores.get("protocol")}
    ways |= scores.get("protocols") or {}
    texts = [f"{n} ({p})" if p else str(n) for n, p in ways.items() if n]
    sentences = []
    if texts:
        sentences.append(
            "Similarity is that of a generation to its nearest training image, by "
            f"{_enumerate(texts)}{'; the first gives the headline' * (len(texts) > 1)}."
        )
    for key in ("dataset_similarity", "template_similarity_mean", "tile_l2_mean"):
        if key in scores:
            sentences.append(_define(key))
    if choice := scores.get("embedder_choice"):
        sentences.append(f"The headline's was chosen by rule: {choice}")
    if "background_similarity_mean" in scores:
        sentences.append(f"The background: {SETS['background'].replace('*', '')}.")
    if "clip_score" in scores:
        protocol = scores.get("clip_score_protocol")
        sentences.append(
            _define("clip_score") + f" It is by {protocol}." * bool(protocol)
        )
    return sentences


def _define(key: str) -> str:
    """Says what a score is, in the words that stand for it everywhere."""
    found = look_up(key)
    assert found is not None, key
    return f"{score_label(key)}: {found.score.meaning.replace('`', '')}."


def _describe_search(run: EvaluatedRun) -> list[str]:
    backend = run.scores.get("search_backend")
    if not backend:
        return []
    text = f"Nearest neighbours by {backend} search"
    settings = run.scores.get("search_settings")
    if isinstance(settings, Mapping) and settings:
        text += f" ({', '.join(f'{k} {v}' for k, v in sorted(settings.items()))})"
    recall = run.scores.get("search_recall")
    if isinstance(recall, float | int):
        text += f", recall {format_number(float(recall))}"
    return [f"{text}."]


def _describe_quality(run: EvaluatedRun) -> list[str]:
    """Says how Fréchet and further distances were computed."""
    scores, sentences = run.scores, []
    key = quality_key(scores)
    if key:
        features = "Inception" if key == "fid" else key.removeprefix("fd_")
        if scores.get("quality_protocol"):
            features += f" ({scores['quality_protocol']})"
        name = "FID" if key == "fid" else "The Fréchet distance"
        sentences.append(
            f"{name} is between Gaussians fitted to features of {features}, generations "
            "against training images."
        )
    if any(k == "kid" or k.startswith("kd_") for k in scores):
        sentences.append("The kernel distance is the unbiased squared MMD.")
    if "cmmd" in scores:
        sentences.append(_define("cmmd"))
    measures = [
        k for k in ("precision", "recall", "density", "coverage") if k in scores
    ]
    if measures:
        names = _enumerate(measures)
        sentences.append(f"{names[0].upper()}{names[1:]} by nearest-neighbour balls.")
    pairs = scores.get("quality_pairs_of")
    if isinstance(pairs, list | tuple) and len(pairs) == 2:
        counts = f"{pairs[0]:,} generations and {pairs[1]:,} training images"
        sentences.append(f"Measures of all pairs take {counts}.")
    return sentences


def _describe_intervals(run: EvaluatedRun) -> list[str]:
    if not any(k.endswith("_ci95") and v for k, v in run.scores.items()):
        return []
    resamples = inspect.signature(bootstrap_ci).parameters["num_resamples"].default
    text = f"Intervals: 95 %, percentile bootstrap with {resamples:,} resamples"
    clusters = run.scores.get("num_clusters")
    if clusters:
        text += (
            f" of the {clusters:,} groups of generations of one prompted image, or of one "
            "prompt where no image is known"
        )
    key = quality_key(run.scores)
    if key and run.scores.get(f"{key}_ci95"):
        text += ", and jackknife over them for distances and shares of quality"
    return [
        f"{text}; exact binomial where all agree. They count the chance of generating, "
        "against fixed training images."
    ]


def _reader(settings: Mapping[str, Any]) -> Callable[[str, str], str]:
    """Makes a function (name, words) -> words with the setting, "" if it is not set."""

    def value(name: str, words: str) -> str:
        found = settings.get(name)
        if found is None or found == "" or (found == 0 and name == "eval.clip_latents"):
            return ""
        return words.format(f"{found:,}" if isinstance(found, int) else found)

    return value


def _enumerate(words: list[str]) -> str:
    """Writes a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
