"""The evaluation program: its stages in order, each from the artefacts of the one before.

generate -> embed -> search -> score -> report
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from etils import epath

from copymit.embedding.embed import (
    check_embedders,
    embed,
    load_embeddings,
    make_embedder,
    save_embeddings,
)
from copymit.evaluation.generate import generate
from copymit.evaluation.prompts import read_prompts
from copymit.evaluation.stages import STAGES, StageRecord, check_stages, compute_digest
from copymit.evaluation.subject import Subject
from copymit.report.page import EvaluatedRun, write_report
from copymit.scores.compute import View, compute_scores, neighbour_table
from copymit.search.exact import Neighbours, SearchResult
from copymit.search.nearest import Backend, search

logger = logging.getLogger(__name__)


def evaluate(
    subject: Subject,
    stages: Sequence[str] = STAGES,
    compared: Sequence[Subject] = (),
) -> epath.Path:
    """Runs the stages that are asked for and not finished; returns the directory.

    Args:
      compared: finished evaluations to show beside this one.
    Raises:
      ValueError: for an unknown stage, or one whose inputs are missing or out of date.
    """
    check_stages(list(stages))
    _check_settings(subject)
    subject.out.mkdir(parents=True, exist_ok=True)
    record = StageRecord(subject.out)
    work: dict[str, Callable[[], None]] = {
        "generate": lambda: _generate(subject, digest),
        "embed": lambda: _embed(subject),
        "search": lambda: _search(subject),
        "score": lambda: _score(subject),
        "report": lambda: _report(subject, compared),
    }
    digest = compute_digest(subject.identity)
    unfinished = ""  # the first stage whose artefacts the later ones lack
    for stage in STAGES[1:] if subject.run is None else STAGES:
        digest = compute_digest([digest, stage, _stage_settings(subject, stage)])
        finished = record.is_done(stage, digest) and _artefacts_exist(subject, stage)
        if stage not in stages:
            unfinished = unfinished or ("" if finished else stage)
            continue
        if unfinished:
            raise ValueError(
                f"the {stage} stage needs what the {unfinished} stage makes, and in "
                f"{subject.out} that is missing or of other settings: run "
                f"--stages={unfinished},{stage}"
            )
        # The page is cheap and may show other runs, which this digest does not see.
        if finished and stage != "report":
            logger.info("%s: nothing changed, reused", stage)
            continue
        started = time.perf_counter()
        record.begin(stage)
        work[stage]()
        record.finish(stage, digest)
        logger.info("%s: %.1f s", stage, time.perf_counter() - started)
    return subject.out


def load_evaluated_run(subject: Subject) -> EvaluatedRun:
    """Collects the artefacts of a scored evaluation for the report."""
    path = subject.out / "scores.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: evaluate {subject.title!r} first")
    scores = json.loads(path.read_text())
    generations = subject.generations()
    first = scores["embedder"]
    return EvaluatedRun(
        title=subject.title,
        scores={k: v for k, v in scores.items() if k != "settings"},
        settings=subject.settings,
        matches=pd.read_parquet(subject.out / "matches.parquet"),
        similarities={
            name: _read_table(subject, first, name)
            .groupby("rank")["similarity"]
            .get_group(0)
            .to_numpy()
            for name in ("generations", "background", "heldout")
            if _table_path(subject, first, name).exists()
        },
        read_generation=generations.by_id,
        read_reference=subject.references.by_id,
        captions=subject.captions,
        prompts=subject.prompts(),
        duplication=subject.duplication,
        metrics=subject.metrics(),
    )


def _stage_settings(subject: Subject, stage: str) -> list:
    names = {
        "generate": (
            "seed",
            "use_ema",
            "prompts",
            "prompts_file",
            "negative_prompt",
            "num_generations",
            "sampler",
            "timestep_spacing",
            "num_inference_steps",
            "guidance_scale",
            "clip_latents",
        ),
        "embed": ("embedders",),
        "search": ("search", "recall_target", "num_neighbors", "seed"),
        "score": ("seed",),
        "report": ("gallery_size",),
    }[stage]
    settings = [[name, subject.eval[name]] for name in names]
    if stage == "generate" and subject.eval.prompts_file:
        settings.append(["read", read_prompts(subject.eval.prompts_file)])
    return settings


def _check_settings(subject: Subject) -> None:
    """Refuses values of the `eval` section that would fail only after a while."""
    check_embedders(subject.eval.embedders)
    if subject.eval.search not in get_args(Backend):
        raise ValueError(
            f"eval.search={subject.eval.search!r} is not known: use one of "
            f"{', '.join(get_args(Backend))}"
        )
    for name in ("batch_size", "num_neighbors"):
        if subject.eval[name] < 1:
            raise ValueError(f"eval.{name}={subject.eval[name]} must be at least 1")


def _artefacts_exist(subject: Subject, stage: str) -> bool:
    """Says whether what a finished stage made is still there."""
    names = subject.eval.embedders
    sets = ["references", "generations", *(["heldout"] if subject.heldout else [])]
    paths = {
        "generate": [subject.out / "prompts.jsonl"],
        "embed": [
            _embeddings_path(subject, n, images) for n in names for images in sets
        ],
        "search": [_table_path(subject, n, "generations") for n in names]
        + [_search_facts_path(subject, n) for n in names],
        "score": [subject.out / "scores.json"],
        "report": [subject.out / "report.html"],
    }[stage]
    exist = all(path.exists() for path in paths)
    return exist and not (stage == "generate" and subject.missing_generations())


def _generate(subject: Subject, digest: str) -> None:
    assert subject.run is not None
    run = subject.run
    generate(run.config, run.dataset, run.load_params, subject.out, digest)


def _embed(subject: Subject) -> None:
    sets = [subject.generations(), subject.references]
    if subject.heldout is not None:
        sets.append(subject.heldout)
    (subject.out / "embeddings").mkdir(exist_ok=True)
    for name in subject.eval.embedders:
        embedder = make_embedder(name)
        for images in sets:
            save_embeddings(
                _embeddings_path(subject, name, images.name),
                embed(embedder, images, subject.eval.batch_size),
                embedder.protocol,
            )


def _search(subject: Subject) -> None:
    (subject.out / "matches").mkdir(exist_ok=True)
    for name in subject.eval.embedders:
        recalls = {}
        references = load_embeddings(_embeddings_path(subject, name, "references"))
        R = len(references.ids)
        for queries in ("generations", "background", "heldout"):
            is_background = queries == "background"
            path = _embeddings_path(
                subject, name, "references" if is_background else queries
            )
            k = min(subject.eval.num_neighbors, R - 1 if is_background else R)
            if not path.exists() or k < 1:
                continue
            embeddings = load_embeddings(path)
            found = search(
                embeddings.unit,
                references.unit,
                k,
                backend=subject.eval.search,
                exclude=np.arange(R) if is_background else None,
                recall_target=subject.eval.recall_target,
                seed=subject.eval.seed,
            )
            table = neighbour_table(
                found, embeddings.ids, references.ids, _query_column(queries)
            )
            table.to_parquet(_table_path(subject, name, queries), index=False)
            recalls[queries] = [
                found.backend,
                found.settings,
                found.recall,
                found.recall_at_k,
            ]
        facts = json.dumps(recalls, indent=1)
        _search_facts_path(subject, name).write_text(facts + "\n")


def _score(subject: Subject) -> None:
    views = [_load_view(subject, name) for name in subject.eval.embedders]
    nearest = views[0].neighbours["generations"].neighbours.indices[:, 0]
    scores = compute_scores(
        views,
        subject.provenance(),
        [subject.references.read(int(i)) for i in nearest],
        subject.eval.seed,
    )
    metrics = subject.metrics()
    if metrics is not None and len(metrics):
        scores["train_loss"] = float(metrics["loss"].tail(5).mean())
    scores["title"] = subject.title
    scores["image_size_px"] = subject.size
    scores["settings"] = dict(subject.settings)
    text = json.dumps(scores, indent=1, sort_keys=True, default=list)
    (subject.out / "scores.json").write_text(text + "\n")


def _report(subject: Subject, compared: Sequence[Subject]) -> None:
    page = write_report(
        subject.out,
        load_evaluated_run(subject),
        [load_evaluated_run(other) for other in compared],
        gallery_size=subject.eval.gallery_size,
    )
    logger.info("report: %s", page)


def _load_view(subject: Subject, name: str) -> View:
    paths = {
        images: _embeddings_path(subject, name, images)
        for images in ("generations", "references", "heldout")
    }
    embeddings = {k: load_embeddings(p) for k, p in paths.items() if p.exists()}
    facts = json.loads(_search_facts_path(subject, name).read_text())
    row = {name: i for i, name in enumerate(embeddings["references"].ids)}
    neighbours = {}
    for queries, found in facts.items():
        table = _read_table(subject, name, queries)
        k = int(table["rank"].max()) + 1
        neighbours[queries] = SearchResult(
            Neighbours(
                table["reference"].map(row).to_numpy(np.int32).reshape(-1, k),
                table["similarity"].to_numpy(np.float32).reshape(-1, k),
            ),
            *found,
        )
    with np.load(paths["references"], allow_pickle=False) as arrays:
        protocol = str(arrays["protocol"])
    return View(name, protocol, embeddings, neighbours)


def _query_column(queries: str) -> str:
    return "generation" if queries == "generations" else "query"


def _embeddings_path(subject: Subject, embedder: str, images: str) -> epath.Path:
    return subject.out / "embeddings" / f"{embedder}_{images}.npz"


def _table_path(subject: Subject, embedder: str, queries: str) -> epath.Path:
    """Finds a neighbour table; that of the headline embedder lies at the top."""
    if queries == "generations" and embedder == subject.eval.embedders[0]:
        return subject.out / "matches.parquet"
    return subject.out / "matches" / f"{embedder}_{queries}.parquet"


def _search_facts_path(subject: Subject, embedder: str) -> epath.Path:
    return subject.out / "matches" / f"{embedder}_search.json"


def _read_table(subject: Subject, embedder: str, queries: str) -> pd.DataFrame:
    return pd.read_parquet(_table_path(subject, embedder, queries))
