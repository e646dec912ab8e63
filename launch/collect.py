"""The scores of all trials as one parquet, a Markdown table, a figure and a page.

Into the sweep's directory: NAME.parquet (a row for each trial: its labels, its scores),
NAME.md (a row for each setting: means over seeds with intervals), NAME.png and NAME.html
(generations of each trial beside training images).
"""

import functools
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from configs.sweeps_base import BY_DUPLICATION
from configs.sweeps_types import Roc, Score, SweepFunction
from copymit.scores.detection import COMPARISONS
from copymit.storage import write_whole
from launch.claims import Claims, Version
from launch.figures.figure import draw
from launch.pictures import draw_page
from launch.pool import find_products, gist
from launch.status import read_progress
from launch.tables import LOSS, lay_out, to_markdown
from launch.trials import Plan, unique_tasks

# Columns that every table has, where the trials have them.
_USUAL = (
    Score("dataset similarity", ("dataset_similarity",)),
    Score("mean similarity", ("similarity_mean",)),
    Score("FID", ("fid",)),
    Score("Frechet distance (EfficientNet)", ("fd_efficientnet_lite0",)),
    Score("CLIP score", ("clip_score",)),
    *BY_DUPLICATION,
    LOSS,
)


class NothingYetError(ValueError):
    """No trial of a sweep has scores."""


def collect(
    sweep: SweepFunction, plans: Sequence[Plan], root: str, title: str
) -> tuple[list[str], list[str]]:
    """Writes the files of a sweep.

    Args:
      title: name of the sweep and of the files.
    Returns:
      The paths written, and the names of trials that have no scores yet.
    Raises:
      ValueError: if no trial has any, or a generation lacks what a panel draws.
    """
    tasks = {task.key: task for task in unique_tasks(plans)}
    versions = Claims(root).read(tasks)
    finished = find_products(tasks, versions, root) | {
        key
        for key, there in versions.items()
        if there.record and there.record.state == "done"
    }
    # While an evaluation is made again, the scores may be of the one before.
    table = read_table(
        [p for p in plans if p.tasks[-1].key in finished], root, versions
    )
    known = [made for made in plans if made.trial.name in set(table.trial)]
    missing = [made for made in plans if made not in known]
    if table.empty:
        raise NothingYetError(
            f"no trial of {title} in {root} has scores yet: run the sweep first, or "
            "look at --status"
        )
    panels = sweep.panels  # type: ignore[attr-defined]
    scores = [score for panel in panels for score in getattr(panel, "scores", ())]
    columns = tuple(sweep.columns) or tuple(  # type: ignore[attr-defined]
        dict.fromkeys((*scores, *_USUAL))
    )
    changes = sweep.changes  # type: ignore[attr-defined]
    laid_out = lay_out(table, [made.trial for made in plans], columns, changes)
    reasons = _why(missing, versions)
    text = to_markdown(laid_out, title, reasons)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    written = {f"{title}.parquet": buffer.getvalue(), f"{title}.md": text.encode()}
    if panels:
        drawn = [name for panel in panels for name in getattr(panel, "columns", ())]
        points = read_points(known, root, list(dict.fromkeys(drawn)))
        if any(isinstance(panel, Roc) for panel in panels):
            points = pd.concat([points, read_detected(known, root)])
        lack = f"INCOMPLETE: {len(missing)} of {len(plans)} trials lack scores"
        written[f"{title}.png"] = draw(panels, table, points, lack if missing else "")
    written[f"{title}.html"] = draw_page(
        laid_out, plans, root, title, missing=reasons, has_figure=bool(panels)
    )
    for name, content in written.items():
        write_whole(epath.Path(root) / name, content)
    return [str(epath.Path(root) / name) for name in written], [
        made.trial.name for made in missing
    ]


def join_tables(root: str, titles: Sequence[str]) -> str:
    """Writes the tables of several sweeps as one, `trials.parquet`; returns its path."""
    paths = {title: epath.Path(root) / f"{title}.parquet" for title in titles}
    tables = [
        pd.read_parquet(io.BytesIO(path.read_bytes())).assign(sweep=title)
        for title, path in paths.items()
        if path.exists()
    ]
    buffer = io.BytesIO()
    # A label may be a number in one sweep and a word in another.
    joined = pd.concat(tables, ignore_index=True)
    texts = joined.select_dtypes("object").columns
    joined[texts] = joined[texts].astype("string")
    joined.to_parquet(buffer, index=False)
    write_whole(epath.Path(root) / "trials.parquet", buffer.getvalue())
    return str(epath.Path(root) / "trials.parquet")


def _why(missing: Sequence[Plan], versions: Mapping[str, Version]) -> dict[str, str]:
    """Says of each trial without scores what is known about it."""
    reasons = {}
    for made in missing:
        found = [record for t in made.tasks if (record := versions[t.key].record)]
        errors = [record.error for record in found if record.state == "failed"]
        running = any(record.state == "running" for record in found)
        reason = gist(errors[0]) if errors else ""
        reasons[made.trial.name] = reason or ("running" if running else "not run yet")
    return reasons


def read_table(
    plans: Sequence[Plan], root: str, versions: Mapping[str, Version]
) -> pd.DataFrame:
    """Reads the scores of trials that are finished.

    Raises:
      ValueError: for a scores.json that is damaged, or a label named as a score.
    """
    rows = []
    # Many evaluations may be of one training.
    progress = functools.cache(
        lambda workdir: read_progress(epath.Path(root) / workdir)
    )
    for made in plans:
        directory = epath.Path(root) / made.scores
        name = "detection.json" if made.trial.detector else "scores.json"
        if not (directory / name).exists():
            continue
        scores = _read_scores(directory / name)
        if made.trial.detector:
            scores = _scores_of_detector(scores, made.trial.detector)
        timings = directory / "timings.json"
        scores = _flat(scores | (_read_scores(timings) if timings.exists() else {}))
        if clash := sorted(scores.keys() & made.trial.labels.keys()):
            raise ValueError(f"{made.trial.name}: label {clash[0]!r} is also a score")
        about: dict[str, Any] = {"trial": made.trial.name, "directory": made.scores}
        if record := versions[made.tasks[-1].key].record:
            about["task_seconds"] = record.seconds
        newest, _ = progress(made.tasks[-1].workdir)
        if "loss" in newest:
            about["train_loss"] = newest["loss"]
        rows.append(about | dict(made.trial.labels) | scores)
    return pd.DataFrame(rows, columns=None if rows else ["trial"])


def _scores_of_detector(detection: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Joins a detector's scores against training captions and against unseen ones.

    Where no prompt was memorised, or all were, there are but their numbers.
    """
    counts = {k: v for k, v in detection.items() if k.startswith("num_")}
    against = {kind: detection.get(kind, {}).get(name, {}) for kind in COMPARISONS}
    unseen = {f"unseen_{k}": v for k, v in against["unseen"].items()}
    return counts | against["unmemorised"] | unseen


def _read_scores(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): delete it and the record of its "
            "evaluation beside it, and run the sweep again"
        ) from error


def _flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps numbers and short texts; intervals become two columns."""
    flat: dict[str, Any] = {}
    for key, value in scores.items():
        if key.endswith("_ci95"):
            if value is not None:
                flat[f"{key}_low"], flat[f"{key}_high"] = value
        elif isinstance(value, bool | int | float) or value is None:
            flat[key] = np.nan if value is None else float(value)
        elif isinstance(value, str):
            flat[key] = value
    return flat


def read_points(
    plans: Sequence[Plan], root: str, columns: Sequence[str]
) -> pd.DataFrame:
    """Reads the generations of each trial, with the clusters of its data if it has any.

    Args:
      columns: of generations.parquet.
    Returns:
      These columns and the labels; image_similarity and caption_similarity where the
      nearest training image belongs to a cluster of an analysis, else NaN.
    Raises:
      ValueError: if generations lack a column, such as those of an older copymit.
    """
    parts = []
    for made in plans if columns else ():
        path = epath.Path(root) / made.scores / "generations.parquet"
        if not path.exists():
            continue
        generations = pd.read_parquet(io.BytesIO(path.read_bytes()))
        if lacking := [name for name in columns if name not in generations]:
            raise ValueError(
                f"{path} has no column {lacking[0]!r}: if an older copymit made it, "
                f"delete {made.tasks[-1].key}.json in {root} and run the sweep again; "
                f"the columns are {', '.join(generations)}"
            )
        part = generations[list(columns)]
        clusters = epath.Path(root) / made.clusters / "clusters.parquet"
        if made.clusters and "nearest_reference" in part and clusters.exists():
            known = pd.read_parquet(io.BytesIO(clusters.read_bytes()))
            part = _with_clusters(part, known)
        parts.append(part.assign(**made.trial.labels))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_detected(plans: Sequence[Plan], root: str) -> pd.DataFrame:
    """Reads what each trial's detector says of each prompt.

    Returns:
      Columns kind, memorised, detected (the higher, the likelier memorised), and labels.
    """
    parts = []
    for made in plans:
        path = epath.Path(root) / made.scores / "detection.parquet"
        if made.trial.detector and path.exists():
            table = pd.read_parquet(io.BytesIO(path.read_bytes()))
            table["detected"] = table[made.trial.detector]
            part = table[["kind", "memorised", "detected"]]
            parts.append(part.assign(**made.trial.labels))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _with_clusters(generations: pd.DataFrame, clusters: pd.DataFrame) -> pd.DataFrame:
    """Joins generations with the first cluster of their match."""
    columns = ["example_id", "image_similarity", "caption_similarity"]
    first = clusters[columns].drop_duplicates("example_id")
    return generations.merge(
        first, "left", left_on="nearest_reference", right_on="example_id"
    )
