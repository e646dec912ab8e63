"""The scores of all trials as one parquet, a Markdown table and a figure.

Into the sweep's directory: NAME.parquet (a row for each trial: its labels, its scores),
NAME.md (a row for each setting: means over seeds with intervals) and NAME.png.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from etils import epath
from scipy import stats

from configs.sweeps_types import Bars, Clusters, Curves, Score, SweepFunction, Tradeoff
from launch import figures
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
      ValueError: if no trial has any.
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
    text = to_markdown(table, labels, columns, title, missing)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    written = {f"{title}.parquet": buffer.getvalue(), f"{title}.md": text.encode()}
    points = read_points(plans, root) if _has_clusters(panels) else pd.DataFrame()
    if panels:
        written[f"{title}.png"] = figures.draw(panels, table, points, estimate)
    for name, content in written.items():
        # Launchers that finish together write the same; a reader never sees a half.
        partial = epath.Path(root) / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(epath.Path(root) / name)
    return [str(epath.Path(root) / name) for name in written], missing


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
        path = epath.Path(root) / made.scores / "scores.json"
        record = version.record
        # While an evaluation is made again, the scores may be of the one before.
        if record is None or record.state != "done" or not path.exists():
            continue
        scores = _flat(_read_scores(path))
        if clash := sorted(scores.keys() & made.trial.labels.keys()):
            raise ValueError(f"{made.trial.name}: label {clash[0]!r} is also a score")
        about = {"trial": made.trial.name, "directory": made.scores}
        rows.append(
            about | dict(made.trial.labels) | {"task_seconds": record.seconds} | scores
        )
    return pd.DataFrame(rows, columns=None if rows else ["trial"])


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
) -> str:
    """Lays the table out, a row for each setting in the order of the trials."""
    shown = [score for score in columns if present_key(table, score)]
    header = [*labels, "seeds", *(score.label for score in shown)]
    lines = [f"# {title}", "", _line(header), _line(["---"] * len(header))]
    groups = table.groupby(list(labels), sort=False, dropna=False) if labels else None
    for values, rows in groups if groups is not None else [((), table)]:
        cells = [str(value) for value in values]
        cells.append(str(rows["seed"].nunique() if "seed" in rows else len(rows)))
        cells += [_cell(estimate(rows, score), score.percent) for score in shown]
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
    if missing:
        lines += ["", f"Missing, {len(missing)} trials: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(found: Estimate | None, percent: bool) -> str:
    if found is None:
        return ""
    if np.isnan(found.low):
        return format_number(found.mean, percent)
    low, high = (format_number(value, percent) for value in found[1:3])
    return f"{format_number(found.mean, percent)} [{low}, {high}]"


def format_number(value: float, percent: bool = False) -> str:
    """Formats a score: shares in percent, others to three or four digits."""
    if percent:
        return f"{100 * value:.3g} %"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def read_points(plans: Sequence[Plan], root: str) -> pd.DataFrame:
    """Joins the generations of each trial with the clusters of its data.

    Returns:
      Columns similarity, image_similarity, caption_similarity, kind and the labels; only
      generations whose nearest training image belongs to a cluster.
    """
    parts = []
    for made in plans:
        generations = epath.Path(root) / made.scores / "generations.parquet"
        clusters = epath.Path(root) / made.clusters / "clusters.parquet"
        if not made.clusters or not generations.exists() or not clusters.exists():
            continue
        columns = ["example_id", "kind", "image_similarity", "caption_similarity"]
        known = pd.read_parquet(io.BytesIO(clusters.read_bytes()))[columns]
        known = known.drop_duplicates("example_id")
        made_images = pd.read_parquet(io.BytesIO(generations.read_bytes()))
        joined = made_images[["nearest_reference", "similarity"]].merge(
            known, left_on="nearest_reference", right_on="example_id"
        )
        parts.append(joined.assign(**made.trial.labels))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _has_clusters(panels: Sequence[Any]) -> bool:
    return any(isinstance(panel, Clusters) for panel in panels)


def _scores_of(panels: Sequence[Any]) -> list[Score]:
    scores: list[Score] = []
    for panel in panels:
        if isinstance(panel, Curves | Bars):
            scores += [panel.y] + ([panel.baseline] if panel.baseline else [])
        elif isinstance(panel, Tradeoff):
            scores += [panel.y, panel.x]
    return scores
