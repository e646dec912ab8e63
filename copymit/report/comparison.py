"""Several evaluated runs side by side: a table, panels of a figure, and the same prompts.

Runs enter, the first being the one that the report is about; rows and pictures leave.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from copymit.report.evaluated_run import (
    EvaluatedRun,
    Generation,
    duplicated_weights,
)
from copymit.report.figures import Panel
from copymit.report.gallery import shorten
from copymit.report.pictures import DETAILS, Limit, Picture, picture_maker
from copymit.report.verdict import (
    Estimate,
    Relation,
    compare_estimates,
    format_interval,
    format_number,
    format_score,
    format_value,
    is_share,
    quality_key,
    read_estimate,
    score_label,
)
from copymit.scores.names import SCORES, look_up

_SEED = 0
_MAX_SETTINGS = 40
# Every score that has a label, and two of other sets and embedders.
_ROWS = (
    *(score.key for score in SCORES if score.label and score.group != "quality"),
    "background_similarity_mean",
    "pixels_similarity_mean",
    "clip_score",
    "cmmd",
)
_SIMILARITY_WORDS: Mapping[Relation, str] = {
    "above": "is higher",
    "below": "is lower",
    "equal": "is about the same, the intervals overlap",
}
_HITS_WORDS: Mapping[Relation, str] = {
    "above": "come back more often",
    "below": "come back less often",
    "equal": "come back about as often, the intervals overlap",
}
_PAIRED_WORDS = {
    "higher": "is higher, prompt by prompt",
    "lower": "is lower, prompt by prompt",
    "could be chance": "does not clearly differ, prompt by prompt",
}
_DIFFERENCES: dict[str, tuple[str, Mapping[Relation, str]]] = {
    "dataset_similarity": ("dataset similarity", _SIMILARITY_WORDS),
    "similarity_mean": ("mean similarity", _SIMILARITY_WORDS),
    "prompted_image_hits_duplicated": ("duplicated images", _HITS_WORDS),
}
_COUNTS = {
    "num_generations": "the number of generations, which Fréchet distances depend on",
    "num_references": "the number of training images: with more of them, the nearest is "
    "nearer",
    "num_heldout": "the number of images never trained on",
    "image_size_px": "the size of the images, in pixels",
}
_BASELINES = ("background_similarity_mean",)


class Cell(NamedTuple):
    """One score of one run, and how it stands to the first run's.

    Attributes:
      higher: whether a higher score is worse or better, or "".
    """

    value: str
    interval: str
    relation: str
    higher: str


class Row(NamedTuple):
    """One score of all runs."""

    label: str
    cells: list[Cell]


class StripRow(NamedTuple):
    """The pictures of one run, or the training images, for the same prompts."""

    label: str
    pictures: list[Picture]
    names: list[str]
    similarities: list[str]


class Strip(NamedTuple):
    """The same prompts by several runs.

    Attributes:
      weights: how often the prompted image was repeated, "" if it was not.
    """

    prompts: list[str]
    weights: list[str]
    rows: list[StripRow]


def compare_scores(
    runs: Sequence[EvaluatedRun], relations: Sequence[Mapping[str, str]] = ()
) -> list[Row]:
    """Lists the scores that any of the runs has, with the loss of their training.

    Args:
      relations: of each run but the first, what is known better than by intervals, by
        score.
    """
    rows = []
    for key in _ROWS:
        found = [read_estimate(run.scores, key) for run in runs]
        if any(found):
            baseline = key in _BASELINES
            known = ["", *(r.get(key, "") for r in relations)]
            cells = _cells(key, found, not baseline, known)
            rows.append(Row(score_label(key), cells))
    for key in _quality_keys(runs):
        found = [read_estimate(run.scores, key) for run in runs]
        rows.append(Row(score_label(key), _cells(key, found, True)))
    losses = [final_loss(run) for run in runs]
    if any(loss is not None for loss in losses):
        cells = [
            Cell("–" if x is None else format_number(x), "", "", "") for x in losses
        ]
        rows.append(Row("Training loss (last tenth)", cells))
    return rows


def differing_settings(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """Lists the settings that are not the same in all runs."""
    names = sorted({name for run in runs for name in run.settings})
    rows = []
    for name in names:
        values = [str(run.settings.get(name, "–")) for run in runs]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows[:_MAX_SETTINGS]


def check_same_protocol(runs: Sequence[EvaluatedRun]) -> None:
    """Refuses runs whose numbers come from different embedders or protocols.

    Raises:
      ValueError: if two runs name different ones; naming none is let pass.
    """
    first, *others = runs
    for other in others:
        ours, theirs = _protocols(first), _protocols(other)
        for part in [part for part in ours if part in theirs]:
            if ours[part] != theirs[part]:
                raise ValueError(
                    f"{first.title!r} was measured by {ours[part]} and {other.title!r} by "
                    f"{theirs[part]}, whose numbers do not compare: evaluate both again "
                    "with the same eval.embedders, eval.quality_embedders and copymit, "
                    "or leave one out of --compare"
                )


def list_doubts(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Lists what makes numbers of these runs compare less well, in sentences."""
    doubts = []
    for key, words in _COUNTS.items():
        found = [run.scores.get(key) for run in runs]
        if len(set(map(str, found))) > 1:
            values = ", ".join("unknown" if x is None else f"{x:,}" for x in found)
            doubts.append(f"The runs differ in {words} ({values}).")
    if any(run.scores.get("protocol") is None for run in runs):
        doubts.append("Not every run says by which protocol it was measured.")
    return doubts


def describe_difference(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    relations: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Says in a sentence how another run's scores stand to ours; "" if unknown.

    Args:
      relations: what comparing pair by pair says, by score.
    """
    parts = []
    for key, (subject, words) in _DIFFERENCES.items():
        first, second = read_estimate(ours, key), read_estimate(theirs, key)
        if first and second:
            relation = _PAIRED_WORDS.get(
                relations.get(key, ""), words[compare_estimates(second, first)]
            )
            numbers = f"{format_score(key, second)} against {format_score(key, first)}"
            parts.append(f"{subject} {relation} ({numbers})")
    return f"{'; '.join(parts)}." if parts else ""


def comparison_panels(runs: Sequence[EvaluatedRun]) -> list[Panel]:
    """Picks the scores for the figure that compares runs."""
    keys = ["dataset_similarity", "prompted_image_hits_duplicated"]
    keys.append("prompted_image_hits_unduplicated")
    panels = [Panel(score_label(k), _read(runs, k), is_share(k)) for k in keys]
    panels += [Panel(score_label(k), _read(runs, k)) for k in _quality_keys(runs)]
    losses = [final_loss(run) for run in runs]
    points = [None if loss is None else Estimate(loss, loss, loss) for loss in losses]
    panels.append(Panel("Training loss", points))
    return [panel for panel in panels if any(panel.estimates)]


def tradeoff_panels(runs: Sequence[EvaluatedRun]) -> list[Panel]:
    """Picks what similarity is traded off against: quality, and fit to the caption."""
    keys = {k: f"{score_label(k)}; lower = more alike" for k in _quality_keys(runs)}
    keys["clip_score"] = "CLIP score; higher = fits the caption"
    similarities = _read(runs, "dataset_similarity")
    panels = []
    for key, title in keys.items():
        estimates = _read(runs, key)
        pairs = zip(similarities, estimates, strict=True)
        if sum(x is not None and y is not None for x, y in pairs) > 1:
            panels.append(Panel(title, estimates))
    return panels


def final_loss(run: EvaluatedRun) -> float | None:
    """Returns the mean loss over the last tenth of the logged steps, or None."""
    if run.metrics is None:
        return None
    losses = run.metrics["loss"].to_numpy(np.float64)
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return None
    return float(losses[-max(1, len(losses) // 10) :].mean())


def make_strip(
    runs: Sequence[EvaluatedRun],
    generations: Sequence[Sequence[Generation]],
    size: int,
    limit: Limit = DETAILS[0].large,
) -> Strip | None:
    """Shows what the runs made of the same prompts, or None if they share none.

    A prompt is shared where the same generation id has the same prompt. Prompts are
    drawn at random, one for each training image, half of them about duplicated images
    where those are known.

    Args:
      generations: of each run.
      size: number of prompts.
      limit: of each picture.
    """
    own, *others = (
        {g.id: g for g in part if g.prompt is not None} for part in generations
    )
    sharing = []
    for run, theirs in zip(runs[1:], others, strict=True):
        agreeing = {
            i for i, g in theirs.items() if i in own and own[i].prompt == g.prompt
        }
        if agreeing:
            sharing.append((run, theirs, agreeing))
    shared = set(own).intersection(*(agreeing for _, _, agreeing in sharing))
    if not sharing or not shared or size < 1:
        return None
    weights = duplicated_weights(runs[0]) or {}
    ids = _choose([own[i] for i in sorted(shared)], weights, size)
    trained = [own[i].prompted or own[i].reference for i in ids]
    reference = picture_maker(runs[0].read_reference, limit)
    rows = [StripRow("Training image", [reference(t) for t in trained], trained, [])]
    for run, found in [(runs[0], own), *((r, theirs) for r, theirs, _ in sharing)]:
        picture = picture_maker(run.read_generation, limit)
        similarities = [format_number(found[i].similarity) for i in ids]
        rows.append(StripRow(run.title, [picture(i) for i in ids], ids, similarities))
    return Strip(
        [shorten(own[i].prompt or "") for i in ids],
        [f"{weights[t]:g}" if t in weights else "" for t in trained],
        rows,
    )


def _choose(
    generations: Sequence[Generation], weights: Mapping[str, float], size: int
) -> list[str]:
    """Draws generations at random, half of them about duplicated images."""
    first: dict[str, Generation] = {}
    for generation in generations:
        first.setdefault(generation.prompted or generation.prompt or "", generation)
    rng = np.random.default_rng(_SEED)
    drawn = [list(first.values())[i] for i in rng.permutation(len(first))]
    duplicated = [g.id for g in drawn if g.prompted in weights]
    others = [g.id for g in drawn if g.prompted not in weights]
    half = max(size // 2, size - len(others))
    duplicated = duplicated[:half]
    return duplicated + others[: size - len(duplicated)]


def _protocols(run: EvaluatedRun) -> dict[str, str]:
    """Lists the embedders and protocols that a run names, by what they measured."""
    scores = run.scores
    found = {}
    if scores.get("embedder"):
        way = f"{scores['embedder']} ({scores.get('protocol') or 'no protocol'})"
        found["headline"] = way
    for name, protocol in (scores.get("protocols") or {}).items():
        found[name] = f"{name} ({protocol})"
    for key, protocol in scores.items():
        if key.endswith("_protocol") and protocol:
            found[key] = f"{key.removesuffix('_protocol')} ({protocol})"
    return found


def _read(runs: Sequence[EvaluatedRun], key: str) -> list[Estimate | None]:
    return [read_estimate(run.scores, key) for run in runs]


def _quality_keys(runs: Sequence[EvaluatedRun]) -> list[str]:
    keys = (quality_key(run.scores) for run in runs)
    return list(dict.fromkeys(key for key in keys if key))


def _cells(
    key: str,
    found: Sequence[Estimate | None],
    compared: bool,
    known: Sequence[str] = (),
) -> list[Cell]:
    first, cells = found[0], []
    score = look_up(key)
    higher = score.score.higher if score else ""
    for i, estimate in enumerate(found):
        if estimate is None:
            cells.append(Cell("–", "", "", ""))
            continue
        relation = known[i] if i < len(known) else ""
        if (
            not relation
            and compared
            and i
            and first
            and first.has_interval
            and estimate.has_interval
        ):
            relation = {
                "above": "higher",
                "below": "lower",
                "equal": "intervals overlap",
            }[compare_estimates(estimate, first)]
        cells.append(
            Cell(
                format_value(key, estimate.value),
                format_interval(key, estimate),
                relation,
                higher,
            )
        )
    return cells
