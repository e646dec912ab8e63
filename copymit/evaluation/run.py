"""The evaluation program: its stages in order, each from the artefacts of the one before.

generate -> embed -> search -> score [-> detect] -> report

Several processes share what runs on devices; the first process does the rest.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.detect_stage import run_detect
from copymit.evaluation.embed_stage import embedder_names, run_embed
from copymit.evaluation.generate import generate
from copymit.evaluation.score_stage import run_score
from copymit.evaluation.search_stage import QUERIES, run_search
from copymit.evaluation.settings import check_settings, stage_settings
from copymit.evaluation.stages import (
    DEFAULT_STAGES,
    OPTIONAL_STAGES,
    STAGES,
    StageRecord,
    check_stages,
    compute_digest,
)
from copymit.evaluation.subject import Subject
from copymit.report.evaluated_run import Detection, EvaluatedRun
from copymit.report.page import write_report
from copymit.sharding import wait_for_all

logger = logging.getLogger(__name__)

_SHARED_STAGES = ("generate", "embed", "detect")


def run_stages(
    subject: Subject,
    stages: Sequence[str] = DEFAULT_STAGES,
    compared: Sequence[Subject] = (),
) -> epath.Path:
    """Runs the stages that are asked for and not finished; returns the directory.

    Args:
      compared: finished evaluations to show beside this one.
    Raises:
      ValueError: for an unknown stage, or one whose inputs are missing or out of date.
    """
    check_stages(list(stages))
    check_settings(subject.eval)
    subject.out.mkdir(parents=True, exist_ok=True)
    if subject.prompts_given is not None and jax.process_index() == 0:
        records = subject.prompts_given.to_json(orient="records", lines=True)
        (subject.out / "prompts.jsonl").write_text(records)
    artefacts = Artefacts(subject.out, subject.eval.embedders[0])
    work: dict[str, Callable[[], None]] = {
        "generate": lambda: _generate(subject, digest),
        "embed": lambda: run_embed(subject, artefacts, digest),
        "search": lambda: run_search(subject, artefacts),
        "score": lambda: run_score(subject, artefacts),
        "detect": lambda: run_detect(subject, artefacts),
        "report": lambda: _report(subject, compared),
    }
    digest = compute_digest(subject.identity)
    unfinished = ""  # the first stage whose artefacts the later ones lack
    for stage in STAGES[1:] if subject.run is None else STAGES:
        inputs = compute_digest([digest, stage, stage_settings(subject.eval, stage)])
        finished = _is_finished(subject, artefacts, stage, inputs)
        if stage not in OPTIONAL_STAGES:
            digest = inputs
        if stage not in stages:
            if stage not in OPTIONAL_STAGES and not finished:
                unfinished = unfinished or stage
            continue
        lists = stage == "detect" and subject.eval.detection.other_prompts
        if unfinished and not lists:
            raise ValueError(
                f"the {stage} stage needs what the {unfinished} stage makes, and in "
                f"{subject.out} that is missing or of other settings: run "
                f"--stages={unfinished},{stage}"
            )
        # The page is cheap and may show other runs, which this digest does not see.
        if finished and stage != "report":
            logger.info("%s: nothing changed, reused", stage)
            continue
        _run_stage(subject.out, stage, inputs, work[stage])
    return subject.out


def _is_finished(
    subject: Subject, artefacts: Artefacts, stage: str, digest: str
) -> bool:
    """Says whether a stage was finished with these inputs; every process agrees."""
    wait_for_all(f"before {stage}")
    finished = StageRecord(subject.out).is_done(stage, digest)
    paths = artefacts.of_stage(stage, subject.eval.embedders, embedder_names(subject))
    finished &= all(path.exists() for path in paths)
    if stage == "generate":
        finished = finished and not subject.missing_generations()
    wait_for_all(f"looked at {stage}")
    return finished


def _run_stage(out: epath.Path, stage: str, digest: str, work: Callable) -> None:
    started = time.perf_counter()
    first = jax.process_index() == 0
    record = StageRecord(out)
    if first:
        record.begin(stage)
    wait_for_all(f"begin {stage}")
    if first or stage in _SHARED_STAGES:
        work()
    wait_for_all(f"end {stage}")
    if first:
        record.finish(stage, digest)
        logger.info("%s: %.1f s", stage, time.perf_counter() - started)


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


def _generate(subject: Subject, digest: str) -> None:
    assert subject.run is not None
    run = subject.run
    generate(run.config, run.dataset, run.load_params, subject.out, digest)


def _report(subject: Subject, compared: Sequence[Subject]) -> None:
    page = write_report(
        subject.out,
        load_evaluated_run(subject),
        [load_evaluated_run(other) for other in compared],
        gallery_size=subject.eval.gallery_size,
        blurred=subject.eval.blur,
    )
    logger.info("report: %s", page)
