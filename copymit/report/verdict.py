"""What the scores say, in words: the report's first sentence and its number tiles.

Flat scores enter, text leaves. A difference counts where the 95 % intervals do not
overlap, and the text says so when they do.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from copymit.scores.names import look_up

Relation = Literal["above", "equal", "below"]
Tone = Literal["copies", "partly", "unclear", "none"]

_STATISTICS = {
    "similarity_mean": "mean similarity",
    "dataset_similarity": "95th percentile of similarity",
}

# By how generations stand to training images: verdict, tone, sentence.
_VERDICTS: Mapping[Relation, tuple[str, Tone, str]] = {
    "above": (
        "This model copies",
        "copies",
        "Its generations are closer to training images ({words} {ours}) than training "
        "images are to each other ({baseline}).",
    ),
    "equal": (
        "Whether this model copies is unclear",
        "unclear",
        "Its generations are about as close to training images ({words} {ours}) as "
        "training images are to each other ({baseline}): the intervals overlap.",
    ),
    "below": (
        "No sign of copying",
        "none",
        "Its generations are less close to training images ({words} {ours}) than "
        "training images are to each other ({baseline}).",
    ),
}
# One prompt, or one generation, tells no spread: its interval is known to be missing.
_NO_SPREAD: tuple[str, Tone, str] = (
    "Whether this model copies is unclear",
    "unclear",
    "For its generations the {words} to training images is {ours}, and {baseline} for "
    "training images to each other; but generations of one prompt do not tell how others "
    "would differ.",
)
# Only the most similar generations are above, the average is not.
_SOME: tuple[str, Tone, str] = (
    "This model copies some training images",
    "copies",
    "The closest 5 % of its generations are closer to training images ({words} {ours}) "
    "than the closest 5 % of training images are to each other ({baseline}), though the "
    "average generation is not (mean {mean} against {mean_baseline}).",
)
_DUPLICATION: Mapping[Relation, str] = {
    "above": "Images duplicated in training come back more often ({}) than others ({}).",
    "below": "Images duplicated in training come back less often ({}) than others ({}).",
    "equal": "Images duplicated in training come back about as often ({}) as others "
    "({}): the intervals overlap.",
}
# Numbers that matter most, and sets of images of no model that are measured alike.
_TILES: Mapping[str, tuple[str, ...]] = {
    "dataset_similarity": ("background", "heldout"),
    "similarity_mean": ("background", "heldout"),
    "prompted_image_hits_duplicated": (),
    "prompted_image_hits_unduplicated": (),
    "prompted_image_hits": (),
    "pixels_similarity_mean": ("background", "heldout"),
    "template_similarity_mean": ("background",),
    "tile_l2_mean": (),
    "clip_score": ("background",),
}
_SETS = {
    "background": "Training images among themselves",
    "heldout": "images never trained on",
}


class Estimate(NamedTuple):
    """A score and its 95 % interval; without one, low = high = value."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether an interval is known."""
        return self.low < self.high


class Headline(NamedTuple):
    """The verdict in a few words, the sentences that give its numbers, and its tone."""

    verdict: str
    sentences: list[str]
    tone: Tone


class Tile(NamedTuple):
    """A number that matters, with its interval (or "") and what it means."""

    label: str
    value: str
    interval: str
    meaning: str


def read_estimate(scores: Mapping[str, Any], key: str) -> Estimate | None:
    """Returns the finite number under a key with its interval, or None."""
    value = scores.get(key)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(value):
        return None
    interval = scores.get(f"{key}_ci95")
    if interval is None or len(interval) != 2 or not all(map(math.isfinite, interval)):
        return Estimate(value, value, value)
    return Estimate(value, *interval)


def compare_estimates(first: Estimate, second: Estimate) -> Relation:
    """Says whether the first is above or below; `equal` when the intervals overlap."""
    if first.low > second.high:
        return "above"
    return "below" if first.high < second.low else "equal"


def is_share(key: str) -> bool:
    """Whether the score under a key is a share in [0, 1]."""
    found = look_up(key)
    return found is not None and found.score.is_share


def format_number(value: float) -> str:
    """Writes three significant digits; whole numbers from 1,000 on in full."""
    if isinstance(value, int) or abs(value) >= 999.5:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def format_value(key: str, value: float) -> str:
    """Writes the number under a key: a percentage if it is a share."""
    if is_share(key):
        return f"{format_number(100.0 * value)}\N{NO-BREAK SPACE}%"
    return format_number(value)


def format_interval(key: str, estimate: Estimate) -> str:
    """Writes `[low, high]`, or nothing where no interval is known."""
    if not estimate.has_interval:
        return ""
    scale = 100.0 if is_share(key) else 1.0
    low, high = (format_number(scale * x) for x in estimate[1:])
    return f"[{low},\N{NO-BREAK SPACE}{high}]"


def format_score(key: str, estimate: Estimate) -> str:
    """Writes `value [low, high]`."""
    return (
        f"{format_value(key, estimate.value)} {format_interval(key, estimate)}".strip()
    )


def make_headline(scores: Mapping[str, Any]) -> Headline:
    """Says in plain words whether the model copies, with the numbers behind it."""
    verdict, sentences, tone, statistic = _similarity_verdict(scores)
    duplication, relation = _duplication_sentence(scores)
    if duplication:
        if relation == "above" and tone in ("none", "unclear"):
            verdict, tone = "Signs of copying where images were duplicated", "partly"
            duplication = "Yet " + duplication[0].lower() + duplication[1:]
        sentences.append(duplication)
    if statistic:
        sentences += _second_opinion(scores, statistic)
    return Headline(verdict, sentences, tone)


def _similarity_verdict(
    scores: Mapping[str, Any],
) -> tuple[str, list[str], Tone, str]:
    """Compares generations with training images among themselves.

    Returns also the statistic that decided, "" if there was nothing to compare: the
    mean, unless only the most similar generations are above.
    """
    found = {}
    for statistic in _STATISTICS:
        ours = read_estimate(scores, statistic)
        baseline = read_estimate(scores, f"background_{statistic}")
        if ours and baseline:
            found[statistic] = (ours, baseline, compare_estimates(ours, baseline))
    if not found:
        return "Copying cannot be judged", _without_baseline(scores), "unclear", ""
    above = [s for s, (_, _, relation) in found.items() if relation == "above"]
    statistic = above[0] if above else next(iter(found))
    ours, baseline, relation = found[statistic]
    verdict, tone, sentence = _VERDICTS[relation]
    if f"{statistic}_ci95" in scores and scores[f"{statistic}_ci95"] is None:
        verdict, tone, sentence = _NO_SPREAD
        found = {}
    compared = {"ours": ours, "baseline": baseline}
    if statistic != "similarity_mean" and "similarity_mean" in found:
        verdict, tone, sentence = _SOME
        compared["mean"], compared["mean_baseline"], _ = found["similarity_mean"]
    written = {name: format_score(statistic, e) for name, e in compared.items()}
    sentence = sentence.format(words=_STATISTICS[statistic], **written)
    return verdict, [sentence], tone, statistic


def _without_baseline(scores: Mapping[str, Any]) -> list[str]:
    for statistic, words in _STATISTICS.items():
        ours = read_estimate(scores, statistic)
        if ours:
            return [
                f"The {words} of its generations to their nearest training images is "
                f"{format_score(statistic, ours)}, but nothing was measured to compare "
                "that with."
            ]
    return ["The similarity to training images was not measured."]


def _duplication_sentence(scores: Mapping[str, Any]) -> tuple[str, Relation | None]:
    """Compares what duplicated images and others brought back."""
    key = "prompted_image_hits_duplicated"
    duplicated = read_estimate(scores, key)
    others = read_estimate(scores, "prompted_image_hits_unduplicated")
    if not duplicated or not others:
        return "", None
    a, b = format_score(key, duplicated), format_score(key, others)
    relation = compare_estimates(duplicated, others)
    return _DUPLICATION[relation].format(a, b), relation


def _second_opinion(scores: Mapping[str, Any], statistic: str) -> list[str]:
    """Says whether pixels, which know no network, agree with the headline embedder."""
    pairs = [
        (
            read_estimate(scores, prefix + statistic),
            read_estimate(scores, f"{prefix}background_{statistic}"),
        )
        for prefix in ("", "pixels_")
    ]
    (ours, baseline), (pixels, pixel_baseline) = pairs
    if not (ours and baseline and pixels and pixel_baseline):
        return []
    second = compare_estimates(pixels, pixel_baseline)
    if second == "equal":
        opinion = "sees no clear difference"
    elif second == compare_estimates(ours, baseline):
        opinion = "agrees"
    else:
        opinion = "disagrees"
    return [
        f"Plain correlation of pixels, a second measure without a neural network, "
        f"{opinion}: {format_score(statistic, pixels)} against "
        f"{format_score(statistic, pixel_baseline)}."
    ]


def make_tiles(scores: Mapping[str, Any]) -> list[Tile]:
    """Picks the few numbers that matter most, of those that were measured."""
    wanted = dict(_TILES)
    if read_estimate(scores, "prompted_image_hits_duplicated"):
        del wanted["prompted_image_hits"]
    quality = quality_key(scores)
    if quality:
        wanted[quality] = ()
    tiles = []
    for key, baselines in wanted.items():
        estimate = read_estimate(scores, key)
        if not estimate:
            continue
        meaning = _meaning(key) + _baselines(scores, key, baselines)
        # A warning stands where the number does that it is about.
        if bias := scores.get(f"frechet_bias_of_{key}"):
            meaning += f" {bias}"
        value = format_value(key, estimate.value)
        tiles.append(
            Tile(score_label(key), value, format_interval(key, estimate), meaning)
        )
    return tiles


def _meaning(key: str) -> str:
    """Is what a score means, as a sentence."""
    found = look_up(key)
    assert found is not None, key
    text = found.score.meaning.replace("`", "").replace("*", "")
    if found.embedder:
        text += f"; by {found.embedder}"
    if found.score.higher:
        text += f"; higher is {found.score.higher}"
    return f"{text[0].upper()}{text[1:]}."


def quality_key(scores: Mapping[str, Any]) -> str | None:
    """Returns the key of the Frechet distance to the training images, if measured."""
    for key in ("fid", *scores):
        found = look_up(key)
        is_distance = found and found.score.key in ("fid", "fd_EMBEDDER")
        if is_distance and read_estimate(scores, key):
            return key
    return None


def score_label(key: str) -> str:
    """Names a score for a reader.

    Raises:
      ValueError: if it has no name.
    """
    found = look_up(key)
    if found is None or not found.label:
        raise ValueError(
            f"{key!r} has no label in copymit/scores/names.py: give it one"
        )
    return found.label.replace("EMBEDDER", key.removeprefix("fd_"))


def _baselines(scores: Mapping[str, Any], key: str, baselines: Sequence[str]) -> str:
    """Lists what the same number is for images that no model made."""
    found = look_up(key)
    prefix = f"{found.embedder}_" if found and found.embedder else ""
    parts = []
    for name in baselines:
        estimate = read_estimate(scores, f"{prefix}{name}_{key.removeprefix(prefix)}")
        if estimate:
            parts.append(f"{_SETS[name]}: {format_score(key, estimate)}")
    text = "; ".join(parts)
    return f" {text[0].upper()}{text[1:]}." if text else ""
