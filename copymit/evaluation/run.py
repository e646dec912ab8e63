"""The evaluation program: its stages in order, each from the artefacts of the one before.

generate -> embed -> search -> score [-> detect] -> report

Several processes share what runs on devices; the first process does the rest. Processes
that do not know of each other can share the embed stage.
"""

import contextlib
import logging
import time
from collections.abc import Sequence

import jax
from etils import epath

from copymit.embedding.registry import check_weights
from copymit.evaluation.artefacts import (
    Artefacts,
    embedder_names,
    is_finished,
    open_artefacts,
)
from copymit.evaluation.lock import sole_evaluation
from copymit.evaluation.settings import check_settings
from copymit.evaluation.stages import (
    DEFAULT_STAGES,
    OPTIONAL_STAGES,
    STAGES,
    Share,
    check_stages,
)
from copymit.evaluation.subject import Subject
from copymit.evaluation.subject.record import (
    check_record,
    claim_record,
    write_record,
)
from copymit.sharding import wait_for_all
from copymit.storage import write_whole

logger = logging.getLogger(__name__)

_SHARED_STAGES = ("generate", "embed", "detect")


def run_stages(
    subject: Subject,
    stages: Sequence[str] = DEFAULT_STAGES,
    compared: Sequence[Subject] = (),
    share: Share | None = None,
) -> epath.Path:
    """Runs the stages that are asked for and not finished; returns the directory.

    Args:
      compared: finished evaluations to show beside this one.
      share: does this part of the embed stage alone, beside processes of other shares.
    Raises:
      ValueError: for an unknown stage, one whose inputs are missing or out of date, a
        directory of another subject or where another process is at work, or compared
        evaluations of another protocol.
    """
    check_stages(list(stages), share)
    check_settings(subject.eval)
    if "embed" in stages:
        check_weights(embedder_names(subject), subject.eval.weights)
    artefacts = open_artefacts(subject)
    if compared and "report" in stages:
        from copymit.evaluation.comparable import check_comparable  # embedders, figures

        check_comparable(subject, compared)
    first = jax.process_index() == 0
    if subject.choice and first:
        level = logging.WARNING if subject.choice.stand_in else logging.INFO
        logger.log(level, subject.choice.reason)
    subject.out.mkdir(parents=True, exist_ok=True)
    with sole_evaluation(subject.out, share) if first else contextlib.nullcontext():
        if first and share:
            claim_record(subject, artefacts.stages["embed"])
        elif first:
            check_record(subject)
        wait_for_all("the directory is ours")
        _run(subject, artefacts, stages, compared, share)
        if share:
            others = "" if _is_finished(subject, artefacts, "embed") else " not"
            logger.info("%s is done; all shares together are%s", share, others)
    return subject.out


def _run(
    subject: Subject,
    artefacts: Artefacts,
    stages: Sequence[str],
    compared: Sequence[Subject],
    share: Share | None,
) -> None:
    unfinished = ""  # the first stage whose artefacts the later ones lack
    for stage in STAGES[1:] if subject.run is None else STAGES:
        finished = _is_finished(subject, artefacts, stage)
        if stage not in stages:
            if stage not in OPTIONAL_STAGES and not finished:
                unfinished = unfinished or stage
            continue
        lists = stage == "detect" and subject.eval.detection.other_prompts
        if unfinished and not lists:
            way_out = (
                f"{unfinished} without --shard" if share else f"{unfinished},{stage}"
            )
            raise ValueError(
                f"the {stage} stage needs what the {unfinished} stage makes, and in "
                f"{subject.out} that is missing or of other settings: run "
                f"--stages={way_out}"
            )
        if finished:
            logger.info("%s: nothing changed, reused", stage)
            continue
        started = time.perf_counter()
        if jax.process_index() == 0:
            _begin(subject, artefacts, stage, share)
        wait_for_all(f"begin {stage}")
        if jax.process_index() == 0 or stage in _SHARED_STAGES:
            _work(subject, artefacts, stage, compared, share)
        wait_for_all(f"end {stage}")
        if jax.process_index() == 0:
            logger.info("%s: %.1f s", stage, time.perf_counter() - started)


def _is_finished(subject: Subject, artefacts: Artefacts, stage: str) -> bool:
    """Says whether all is there that a stage makes; every process agrees."""
    if stage == "report":
        return False  # the page is cheap and may show other runs
    wait_for_all(f"before {stage}")
    finished = is_finished(subject, artefacts, stage)
    wait_for_all(f"looked at {stage}")
    return finished


def _begin(
    subject: Subject, artefacts: Artefacts, stage: str, share: Share | None
) -> None:
    """Notes what is evaluated; numbers of before are not left to be taken for its own."""
    if not share:  # all of them have one, written before
        write_record(subject, artefacts.stages["embed"])
    if stage in ("embed", "search", "score"):
        artefacts.remove_scores()
    if subject.run is None:
        path, prompts = subject.out / "prompts.jsonl", subject.prompts()
        if prompts is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, prompts.to_json(orient="records", lines=True).encode())


def _work(
    subject: Subject,
    artefacts: Artefacts,
    stage: str,
    compared: Sequence[Subject],
    share: Share | None,
) -> None:
    """Does one stage; what it needs is imported only when its turn has come."""
    match stage:
        case "generate":
            from copymit.evaluation.generate import generate

            run = subject.run
            assert run is not None
            digest = artefacts.stages[stage]
            generate(run.config, run.dataset, run.load_params, subject.out, digest)
        case "embed":
            from copymit.evaluation.embed_stage import run_embed

            run_embed(subject, artefacts, share)
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

            run_report(subject, artefacts, compared)
