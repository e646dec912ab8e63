"""The report stage: the artefacts of scored evaluations in, the page out."""

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.search_stage import QUERIES
from copymit.evaluation.stages import StageRecord
from copymit.evaluation.subject import Subject
from copymit.report.evaluated_run import Detection, EvaluatedRun
from copymit.report.page import write_report

logger = logging.getLogger(__name__)


def run_report(subject: Subject, compared: Sequence[Subject]) -> None:
    """Writes the page of an evaluation, beside others.

    Raises:
      ValueError: if one of them has no scores.
    """
    page = write_report(
        subject.out,
        load_evaluated_run(subject),
        [load_evaluated_run(other) for other in compared],
        gallery_size=subject.eval.gallery_size,
        blurred=subject.eval.blur,
    )
    logger.info("report: %s", page)


def load_evaluated_run(subject: Subject) -> EvaluatedRun:
    """Collects the artefacts of a scored evaluation for the report."""
    path = subject.out / "scores.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: evaluate {subject.title!r} first")
    scores: dict[str, Any] = json.loads(path.read_text())
    first = scores["embedder"]
    artefacts = Artefacts(subject.out, first)
    return EvaluatedRun(
        title=subject.title,
        scores={k: v for k, v in scores.items() if k != "settings"},
        settings=subject.settings,
        matches=artefacts.read_matches(first, "generations"),
        measured=artefacts.read_measured(),
        similarities={
            name: _top1(artefacts, first, name)
            for name in QUERIES
            if artefacts.matches(first, name).exists()
        },
        read_generation=reader_by_id(subject.generations()),
        read_reference=reader_by_id(subject.references),
        captions=subject.captions,
        prompts=subject.prompts(),
        duplication=subject.duplication,
        metrics=subject.metrics(),
        detection=_detection(artefacts),
    )


def _detection(artefacts: Artefacts) -> Detection | None:
    """Reads what the detect stage made, if it ran since the scores were made."""
    if not StageRecord(artefacts.out).has("detect"):
        return None
    with artefacts.detection.open("rb") as file:
        table = pd.read_parquet(file)
    lines = artefacts.tokens.read_text().splitlines()
    summary = json.loads(artefacts.detection_summary.read_text())
    return Detection(table, summary, [json.loads(line) for line in lines])


def _top1(artefacts: Artefacts, embedder: str, queries: str) -> np.ndarray:
    table = artefacts.read_matches(embedder, queries)
    return table.loc[table["rank"] == 0, "similarity"].to_numpy()
