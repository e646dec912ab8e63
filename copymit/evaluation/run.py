"""The evaluation program: its stages in order, each from the artefacts of the one before.

generate -> embed -> search -> score [-> detect] -> report

Several processes share what runs on devices; the first process does the rest.
"""

import logging
import time
from collections.abc import Sequence

import jax
from etils import epath

from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.embed_stage import embedder_names
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
        _run_stage(subject, artefacts, stage, inputs, compared)
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


def _run_stage(
    subject: Subject,
    artefacts: Artefacts,
    stage: str,
    digest: str,
    compared: Sequence[Subject],
) -> None:
    started = time.perf_counter()
    first = jax.process_index() == 0
    record = StageRecord(subject.out)
    if first:
        record.begin(stage)
    wait_for_all(f"begin {stage}")
    if first or stage in _SHARED_STAGES:
        _work(subject, artefacts, stage, digest, compared)
    wait_for_all(f"end {stage}")
    if first:
        record.finish(stage, digest)
        logger.info("%s: %.1f s", stage, time.perf_counter() - started)


def _work(
    subject: Subject,
    artefacts: Artefacts,
    stage: str,
    digest: str,
    compared: Sequence[Subject],
) -> None:
    """Does one stage; what it needs is imported only when its turn has come."""
    match stage:
        case "generate":
            from copymit.evaluation.generate import generate

            run = subject.run
            assert run is not None
            generate(run.config, run.dataset, run.load_params, subject.out, digest)
        case "embed":
            from copymit.evaluation.embed_stage import run_embed

            run_embed(subject, artefacts, digest)
        case "search":
            from copymit.evaluation.search_stage import run_search

            run_search(subject, artefacts)
        case "score":
            from copymit.evaluation.score_stage import run_score

            run_score(subject, artefacts)
        case "detect":
            from copymit.evaluation.detect_stage import run_detect

            run_detect(subject, artefacts)
        case "report":
            from copymit.evaluation.report_stage import run_report

            run_report(subject, compared)
