"""The report stage: the artefacts of scored evaluations in, the page out."""

import json
import logging
from collections.abc import Sequence

import numpy as np

from copymit.data.texts import split_lines
from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.artefacts import (
    QUERIES,
    Artefacts,
    is_finished,
    open_artefacts,
)
from copymit.evaluation.comparable import check_scored
from copymit.evaluation.subject import Subject
from copymit.report.evaluated_run import Detection, EvaluatedRun
from copymit.report.page import write_report

logger = logging.getLogger(__name__)


def run_report(
    subject: Subject, artefacts: Artefacts, compared: Sequence[Subject]
) -> None:
    """Writes the page of an evaluation, beside others.

    Raises:
      ValueError: if one of them has no scores.
    """
    page = write_report(
        subject.out,
        load_evaluated_run(subject, artefacts),
        [load_evaluated_run(other, open_artefacts(other)) for other in compared],
        gallery_size=subject.eval.gallery_size,
        blurred=subject.eval.blur,
    )
    logger.info("report: %s", page)


def load_evaluated_run(subject: Subject, artefacts: Artefacts) -> EvaluatedRun:
    """Collects the artefacts of a scored evaluation for the report.

    Raises:
      ValueError: if there are none of its present images and settings.
    """
    check_scored(subject, artefacts)
    scores, measured = artefacts.read_scores()
    headline = artefacts.headline
    searched = artefacts.read_json("search", artefacts.search_facts(headline))
    return EvaluatedRun(
        title=subject.title,
        scores={k: v for k, v in scores.items() if k != "settings"},
        settings=subject.settings,
        matches=artefacts.read_matches(headline, "generations"),
        measured=measured,
        similarities={
            name: _top1(artefacts, headline, name)
            for name in QUERIES
            if name in searched
        },
        read_generation=reader_by_id(subject.generations()),
        read_reference=reader_by_id(subject.references),
        captions=subject.captions,
        prompts=subject.prompts(),
        duplication=subject.duplication,
        metrics=subject.metrics(),
        detection=_detection(subject, artefacts),
    )


def _detection(subject: Subject, artefacts: Artefacts) -> Detection | None:
    """Reads what the detect stage made, if it ran since the scores were made."""
    if subject.run is None or not is_finished(subject, artefacts, "detect"):
        return None
    lines = split_lines(artefacts.tokens.read_text())
    return Detection(
        artefacts.read_table("detect", artefacts.detection),
        artefacts.read_json("detect", artefacts.detection_summary),
        [json.loads(line) for line in lines],
    )


def _top1(artefacts: Artefacts, embedder: str, queries: str) -> np.ndarray:
    table = artefacts.read_matches(embedder, queries)
    return table.loc[table["rank"] == 0, "similarity"].to_numpy()
