"""Whether evaluations can be shown side by side, asked before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from copymit.embedding.clip import CLIP_MODELS, make_clip_captions
from copymit.embedding.registry import make_embedder
from copymit.evaluation.artefacts import (
    Artefacts,
    embedder_names,
    is_finished,
    is_generated,
    open_artefacts,
)
from copymit.evaluation.subject import Subject
from copymit.report.comparison import check_same_protocol
from copymit.report.evaluated_run import EvaluatedRun


class _Named(NamedTuple):
    """As much of an evaluated run as says how it was measured."""

    title: str
    scores: Mapping[str, Any]


def check_comparable(subject: Subject, compared: Sequence[Subject]) -> None:
    """Refuses to compare what is not scored, or will be measured by other protocols.

    Raises:
      ValueError: names both, and what differs.
    """
    runs = [_Named(subject.title, _expected_protocols(subject))]
    for other in compared:
        artefacts = open_artefacts(other)
        check_scored(other, artefacts)
        runs.append(_Named(other.title, artefacts.read_scores()[0]))
    check_same_protocol(cast(Sequence[EvaluatedRun], runs))


def check_scored(subject: Subject, artefacts: Artefacts) -> None:
    """Refuses an evaluation whose results are not of its present images and settings.

    Raises:
      ValueError: names it.
    """
    if not is_generated(subject, artefacts) or not all(
        is_finished(subject, artefacts, stage) for stage in ("search", "score")
    ):
        raise ValueError(
            f"{subject.out} has no scores, or its images have changed since or it was "
            f"interrupted: evaluate {subject.title!r} first"
        )


def _expected_protocols(subject: Subject) -> dict[str, Any]:
    """Names the protocols as the scores will."""
    settings = subject.eval
    names = embedder_names(subject)
    protocols = {n: make_embedder(n, settings.weights).protocol for n in names}
    headline = settings.embedders[0]
    chosen = settings.quality_embedders or (headline,)
    expected: dict[str, Any] = {
        "embedder": headline,
        "protocol": protocols[headline],
        "protocols": {name: protocols[name] for name in settings.embedders},
        "quality_protocol": protocols[chosen[0]],
    }
    for name in chosen[1:]:
        expected[f"{name}_quality_protocol"] = protocols[name]
    if (clip := settings.clip_score) and not subject.run and subject.prompts() is None:
        return expected  # no text, no score
    if clip:
        weights = settings.weights[CLIP_MODELS[clip].weights]
        texts = make_clip_captions(clip, weights).protocol
        pictures = make_embedder(clip, settings.weights).protocol
        expected["clip_score_protocol"] = f"{pictures}; {texts}"
    return expected
