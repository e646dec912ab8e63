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

_GRADES = {
    "num_exact_copies": "exact (pixels agree)",
    "num_near_copies": "near (pixels are alike)",
    "num_likely_copies": "likely (the descriptor alone)",
}
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
    """The answer in one sentence, those that give its numbers, and its tone."""

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


def answer(scores: Mapping[str, Any]) -> str:
    """Says in one sentence how many generations are copies, and how sure that is."""
    count, images = scores.get("num_copies"), scores.get("num_generations")
    if count is None or not images:
        return "Copies were not looked for"
    threshold = read_estimate(scores, "copy_threshold")
    total = _number_of(images, "generation")
    if count:
        verb, noun = ("is", "a copy") if count == 1 else ("are", "copies")
        exact = scores.get("num_exact_copies", 0)
        text = (
            f"{count:,} of {total} {verb} {noun} of "
            f"{_number_of(scores['copied_images'], 'training image')} "
            f"({exact or 'none'} exact)"
        )
        if threshold:
            text += f"; false discovery rate {_percent(scores['false_discovery_rate'])}"
    elif threshold:
        text = (
            f"None found above similarity {format_number(threshold.value)} in {total}; a "
            f"share of up to {_percent(scores['missed_share_upper'])} would escape (95 %)"
        )
    else:
        text = (
            f"No exact copy found in {total}; there are too few training images to tell "
            "others"
        )
    alone = scores.get("num_pixels_alone")
    if alone:
        pairs = _number_of(alone, "further pair")
        text += f"; {pairs} agree{'s' * (alone == 1)} in pixels alone"
    return text


def make_headline(scores: Mapping[str, Any]) -> Headline:
    """Says in plain words what was found, with the numbers behind it."""
    count = scores.get("num_copies")
    tone: Tone = "unclear"
    if count:
        tone = "copies"
    elif scores.get("num_pixels_alone"):
        tone = "partly"
    elif count is not None and read_estimate(scores, "copy_threshold"):
        tone = "none"
    sentences = [
        *_grades(scores),
        *_calibration(scores),
        *_ceiling(scores),
        *_repeats(scores),
        *_paper(scores),
        _duplication_sentence(scores),
    ]
    return Headline(answer(scores), [s for s in sentences if s], tone)


def _grades(scores: Mapping[str, Any]) -> list[str]:
    """Says how many copies there are of each grade, and the interval of their share."""
    share = read_estimate(scores, "copied_share")
    if not share or not share.value:
        return []
    counts = [
        f"{scores[key]:,} {words}" for key, words in _GRADES.items() if scores.get(key)
    ]
    if unseen := scores.get("num_copies_by_pixels"):
        counts[-1] += f"; {unseen:,} of them would not have been called without pixels"
    return [
        f"{'; '.join(counts)}.",
        f"That is {format_score('copied_share', share)} of the generations.",
    ]


def _calibration(scores: Mapping[str, Any]) -> list[str]:
    """Says what images that are no copies were."""
    size = scores.get("copy_null_size")
    if not size:
        return []
    if scores["copy_null"] == "heldout":
        of = "images that were never trained on and their nearest training images"
    else:
        of = "training images and their nearest others"
    text = f"How near comes what is no copy, {size:,} {of} tell"
    left_out = scores.get("copy_null_duplicates")
    if left_out:
        text += f"; {_number_of(left_out, 'duplicate')} among them left out"
    return [f"{text}."]


def _ceiling(scores: Mapping[str, Any]) -> list[str]:
    """Says what a perfect copy would measure, where the model's autoencoder is known."""
    key = "reconstruction_similarity_mean"
    most = read_estimate(scores, key)
    if not most:
        return []
    return [
        "Training images that only went through the model's autoencoder and back measure "
        f"{format_score(key, most)} against themselves: a copy hardly measures more."
    ]


def _repeats(scores: Mapping[str, Any]) -> list[str]:
    count = scores.get("num_repeated_generations")
    if not count:
        return []
    groups = scores["num_repeat_groups"]
    text = (
        f"{count:,} generations are the same picture as another, in "
        f"{_number_of(groups, 'group')} of up to {scores['largest_repeat_group']:,}"
    )
    across = scores.get("num_repeated_across_prompts")
    if across:
        text += f"; {across:,} of them for different prompts"
    return [f"{text}."]


def _paper(scores: Mapping[str, Any]) -> list[str]:
    """Gives the paper's numbers, which summarise similarities and count no copies."""
    ours = read_estimate(scores, "dataset_similarity")
    if not ours:
        return []
    text = (
        "In the paper's numbers, the 95th percentile of similarity is "
        f"{format_score('dataset_similarity', ours)}"
    )
    others = read_estimate(scores, "background_dataset_similarity")
    if others:
        text += (
            f" (training images to each other: "
            f"{format_score('dataset_similarity', others)})"
        )
    above = read_estimate(scores, "similarity_above_0.5")
    if above:
        text += f", and {format_score('similarity_above_0.5', above)} lie above 0.5"
    return [f"{text}."]


def _number_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _duplication_sentence(scores: Mapping[str, Any]) -> str:
    """Compares what duplicated images and others brought back."""
    key = "prompted_image_hits_duplicated"
    duplicated = read_estimate(scores, key)
    others = read_estimate(scores, "prompted_image_hits_unduplicated")
    if not duplicated or not others:
        return ""
    a, b = format_score(key, duplicated), format_score(key, others)
    return _DUPLICATION[compare_estimates(duplicated, others)].format(a, b)


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
