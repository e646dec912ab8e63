"""The scores of all trials as one parquet, a Markdown table and a figure.

Into the sweep's directory: NAME.parquet (a row for each trial: its labels, its scores),
NAME.md (a row for each setting: means over seeds with intervals) and NAME.png.
"""

import io
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath
from scipy import stats

from configs.sweeps_types import (
    Bars,
    Changes,
    Clusters,
    Curves,
    Differences,
    Scatter,
    Score,
    SweepFunction,
    Tradeoff,
)
from launch.figures.figure import draw
from launch.lease import Ledger
from launch.trials import Plan

# Columns that every table has, where the trials have them.
_USUAL = (
    Score("dataset similarity", ("dataset_similarity",)),
    Score("mean similarity", ("similarity_mean",)),
    Score("FID", ("fid",)),
    Score("Frechet distance (EfficientNet)", ("fd_efficientnet_lite0",)),
    Score("CLIP score", ("clip_score",)),
)


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Attributes:
      low, high: NaN where nothing is known about the spread.
      num_seeds: that were averaged.
    """

    mean: float
    low: float
    high: float
    num_seeds: int


def collect(
    sweep: SweepFunction, plans: Sequence[Plan], root: str, title: str
) -> tuple[list[str], list[str]]:
    """Writes the three files of a sweep.

    Args:
      title: name of the sweep and of the files.
    Returns:
      The paths written, and the names of trials that have no scores yet.
    Raises:
      ValueError: if no trial has any, or a generation lacks what a panel draws.
    """
    table = read_table(plans, root)
    missing = [
        made.trial.name for made in plans if made.trial.name not in set(table.trial)
    ]
    if table.empty:
        raise ValueError(
            f"no trial of {title} in {root} has scores yet: run the sweep first, or "
            "look at --status"
        )
    panels = sweep.panels  # type: ignore[attr-defined]
    columns = tuple(sweep.columns) or tuple(  # type: ignore[attr-defined]
        dict.fromkeys((*_scores_of(panels), *_USUAL))
    )
    labels = [name for name in label_names(plans) if name != "seed"]
    changes = sweep.changes  # type: ignore[attr-defined]
    text = to_markdown(table, labels, columns, title, missing, changes)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    written = {f"{title}.parquet": buffer.getvalue(), f"{title}.md": text.encode()}
    if panels:
        known = [made for made in plans if made.trial.name in set(table.trial)]
        points = read_points(known, root, columns_of(panels))
        written[f"{title}.png"] = draw(panels, table, points, estimate, estimate_change)
    for name, content in written.items():
        _write_whole(epath.Path(root) / name, content)
    return [str(epath.Path(root) / name) for name in written], missing


def _write_whole(path: epath.Path, content: bytes) -> None:
    """Writes what a reader never sees half of, beside others that write the same."""
    if "://" in str(path):
        path.write_bytes(content)  # an object in a bucket is there whole or not at all
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def label_names(plans: Sequence[Plan]) -> list[str]:
    """Lists the labels that trials have, in order of appearance."""
    return list(dict.fromkeys(name for made in plans for name in made.trial.labels))


def read_table(plans: Sequence[Plan], root: str) -> pd.DataFrame:
    """Reads the scores of the trials that have any.

    Raises:
      ValueError: for a scores.json that is damaged, or a label named as a score.
    """
    records = Ledger(root).read([made.tasks[-1].key for made in plans])
    rows = []
    for made, version in zip(plans, records, strict=True):
        path = epath.Path(root) / made.tasks[-1].product
        record = version.record
        # While an evaluation is made again, the scores may be of the one before.
        if record is None or record.state != "done" or not path.exists():
            continue
        scores = _read_scores(path)
        if made.trial.detector:
            scores = _scores_of_detector(scores, made.trial.detector)
        timings = path.parent / "timings.json"
        scores = _flat(scores | (_read_scores(timings) if timings.exists() else {}))
        if clash := sorted(scores.keys() & made.trial.labels.keys()):
            raise ValueError(f"{made.trial.name}: label {clash[0]!r} is also a score")
        about = {"trial": made.trial.name, "directory": made.scores}
        rows.append(
            about | dict(made.trial.labels) | {"task_seconds": record.seconds} | scores
        )
    return pd.DataFrame(rows, columns=None if rows else ["trial"])


def _scores_of_detector(detection: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Joins a detector's scores against training captions and against unseen ones."""
    unseen = detection["unseen"][name]
    return detection["unmemorised"][name] | {f"unseen_{k}": unseen[k] for k in unseen}


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


def estimate(rows: pd.DataFrame, score: Score) -> Estimate | None:
    """Estimates a score from the trials of one setting that differ in their seed.

    The interval is Student's over seeds; of one seed, the trial's own bootstrap over
    prompted images.
    """
    key = present_key(rows, score)
    if key is None:
        return None
    known = rows.dropna(subset=[key])
    values = known[key].to_numpy(float)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        low, high = (
            float(known[name].iloc[0]) if name in known else np.nan
            for name in (f"{key}_ci95_low", f"{key}_ci95_high")
        )
        return Estimate(mean, low, high, 1)
    return _over_seeds(values)


def estimate_change(
    rows: pd.DataFrame, table: pd.DataFrame, score: Score, changes: Changes
) -> Estimate | None:
    """Estimates how far one setting lies from the baseline, from differences by seed.

    Args:
      rows: trials of the setting.
      table: all trials.
    Returns:
      None for the baseline itself, and where no seed has both.
    """
    key = present_key(rows, score)
    if key is None or (rows[changes.label] == changes.baseline).all():
        return None
    baseline = table[table[changes.label] == changes.baseline]
    pairing = ["seed", *changes.within]
    pairs = rows[[*pairing, key]].merge(baseline[[*pairing, key]], on=pairing)
    differences = (pairs[f"{key}_x"] - pairs[f"{key}_y"]).dropna().to_numpy(float)
    return _over_seeds(differences) if len(differences) else None


def _over_seeds(values: np.ndarray) -> Estimate:
    """Returns the mean with Student's interval, unknown for a single value."""
    mean, count = float(values.mean()), len(values)
    half = np.nan
    if count > 1:
        half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    return Estimate(mean, mean - float(half), mean + float(half), count)


def present_key(rows: pd.DataFrame, score: Score) -> str | None:
    """Finds the first key of a score of which there is a number."""
    return next((k for k in score.keys if k in rows and rows[k].notna().any()), None)


def to_markdown(
    table: pd.DataFrame,
    labels: Sequence[str],
    columns: Sequence[Score],
    title: str,
    missing: Sequence[str],
    changes: Changes | None = None,
) -> str:
    """Lays the table out, a row for each setting in the order of the trials."""
    shown = [score for score in columns if present_key(table, score)]
    compared = [s for s in shown if changes and s in changes.scores]
    header = [*labels, "seeds", *(score.label for score in shown)]
    header += [f"change of {score.label}" for score in compared]
    lines = [f"# {title}", "", _line(header), _line(["---"] * len(header))]
    groups = table.groupby(list(labels), sort=False, dropna=False) if labels else None
    for values, rows in groups if groups is not None else [((), table)]:
        cells = [str(value) for value in values]
        cells.append(str(rows["seed"].nunique() if "seed" in rows else len(rows)))
        cells += [_cell(estimate(rows, score), score.percent) for score in shown]
        if changes:
            found = [estimate_change(rows, table, s, changes) for s in compared]
            pairs = zip(found, compared, strict=True)
            cells += [_cell(f, s.percent, signed=True) for f, s in pairs]
        lines.append(_line(cells))
    embedders = (
        ", ".join(sorted(table["embedder"].unique())) if "embedder" in table else ""
    )
    lines += [
        "",
        "Means with 95 % intervals: Student's over seeds, or of one seed its own",
    ]
    lines[-1] += (
        f" bootstrap. Similarity by {embedders}." if embedders else " bootstrap."
    )
    if compared and changes:
        lines[-1] += f" Changes: against {changes.baseline}, seed by seed."
    if missing:
        lines += ["", f"Missing, {len(missing)} trials: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(found: Estimate | None, percent: bool, *, signed: bool = False) -> str:
    if found is None:
        return ""
    sign = "+" if signed and found.mean > 0 else ""
    mean = sign + format_number(found.mean, percent)
    if np.isnan(found.low):
        return mean
    low, high = (format_number(value, percent) for value in found[1:3])
    return f"{mean} [{low}, {high}]"


def format_number(value: float, percent: bool = False) -> str:
    """Formats a score: shares in percent, others to three or four digits."""
    if percent:
        return f"{100 * value:.3g} %"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def columns_of(panels: Sequence[Any]) -> list[str]:
    """Lists the columns of generations.parquet that panels draw."""
    columns: list[str] = []
    for panel in panels:
        if isinstance(panel, Clusters):
            columns += ["similarity", "nearest_reference"]
        elif isinstance(panel, Scatter):
            columns += [panel.x, panel.y]
    return list(dict.fromkeys(columns))


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


def _with_clusters(generations: pd.DataFrame, clusters: pd.DataFrame) -> pd.DataFrame:
    """Joins generations with the first cluster of their match."""
    columns = ["example_id", "image_similarity", "caption_similarity"]
    first = clusters[columns].drop_duplicates("example_id")
    return generations.merge(
        first, "left", left_on="nearest_reference", right_on="example_id"
    )


def _scores_of(panels: Sequence[Any]) -> list[Score]:
    scores: list[Score] = []
    for panel in panels:
        if isinstance(panel, Curves | Bars):
            scores += [panel.y] + ([panel.baseline] if panel.baseline else [])
        elif isinstance(panel, Tradeoff):
            scores += [panel.y, panel.x]
        elif isinstance(panel, Differences):
            scores.append(panel.y)
        elif isinstance(panel, Scatter):
            scores.append(panel.correlation)
    return scores
