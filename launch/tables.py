"""The scores of a sweep as a table: a row for each setting, means over its seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from configs.sweeps_types import Changes, Score, Trial
from launch.estimates import Estimate, estimate, estimate_change, is_share, present_key

LOSS = Score("loss at the end", ("train_loss",))
# Seeds have other images, and these other losses: of 13 settings of 36 emoji, 11 were
# within this, and trainings of photos that had not learned were beyond it.
_ALIKE = 1.3


class Row(NamedTuple):
    """A setting.

    Attributes:
      values: of its labels.
      trials: by the name of each seed's trial, the first score of that alone, "" = none.
      num_known: of the trials that have scores.
      cells: a text for each score.
    """

    values: tuple[str, ...]
    trials: Mapping[str, str]
    num_known: int
    cells: tuple[str, ...]


class Table(NamedTuple):
    """Rows in the order of the trials.

    Attributes:
      labels: without the seed.
      columns: names of the scores, and of the changes.
      legend: how the intervals were made, and by what similarity was measured.
    """

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    legend: str


def lay_out(
    scores: pd.DataFrame,
    trials: Sequence[Trial],
    columns: Sequence[Score],
    changes: Changes | None = None,
) -> Table:
    """Makes the rows of all trials, of which perhaps not all have scores.

    Args:
      scores: a row for each trial that has any.
      columns: to show where a trial has them.
    """
    by_key = {present_key(scores, score): score for score in reversed(columns)}
    # Of two names of one score, the panels' own is first.
    shown = [s for s in columns if (k := present_key(scores, s)) and by_key[k] == s]
    compared = [s for s in shown if changes and s in changes.scores]
    labels = tuple(dict.fromkeys(n for t in trials for n in t.labels if n != "seed"))
    settings: dict[tuple[str, ...], list[str]] = {}
    for trial in trials:
        values = tuple(str(trial.labels.get(name, "")) for name in labels)
        settings.setdefault(values, []).append(trial.name)
    rows, unlike = [], []
    for values, names in settings.items():
        own = scores[scores["trial"].isin(names)]
        unlike += [f"{' '.join(values)} ({ends})"] if (ends := _unlike(own)) else []
        cells = [_to_cell(own, s) for s in shown]
        for s in compared:
            assert changes is not None
            found = estimate_change(own, scores, s, changes)
            cells.append(_cell(found, s.percent, len(own), signed=True))
        alone = {
            name: _to_cell(own[own["trial"] == name], shown[0]) if shown else ""
            for name in names
        }
        rows.append(Row(values, alone, len(own), tuple(cells)))
    named = (*(s.label for s in shown), *(f"change of {s.label}" for s in compared))
    legend = _legend(scores, shown, changes if compared else None)
    if unlike:
        legend += (
            "\nSeeds of one setting ended at unlike losses, perhaps because some did not "
            f"learn; look at their curves: {abridge(unlike)}.\n"
        )
    return Table(labels, named, tuple(rows), legend)


def to_markdown(
    table: Table, title: str, missing: Mapping[str, str] | None = None
) -> str:
    """Writes a table as Markdown.

    Args:
      missing: what is known of the trials that have no scores.
    """
    lines = [f"# {title}", ""]
    if missing:
        total = sum(len(row.trials) for row in table.rows)
        lines += [
            f"**INCOMPLETE: {len(missing)} of {total} trials lack scores.** "
            "Means are of the seeds that are there.",
            "",
        ]
        for reason in dict.fromkeys(missing.values()):
            names = [name for name, why in missing.items() if why == reason]
            lines.append(f"- {reason}: {abridge(names)}")
        lines.append("")
    header = [*table.labels, "seeds", *table.columns]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in table.rows:
        known, count = row.num_known, len(row.trials)
        seeds = str(count) if known == count else f"**{known} of {count}**"
        lines.append(_line([*row.values, seeds, *row.cells]))
    return "\n".join([*lines, "", table.legend])


def _unlike(rows: pd.DataFrame) -> str:
    """Says between which losses the seeds of one setting ended, if these are unlike."""
    losses = rows[LOSS.keys[0]].dropna() if LOSS.keys[0] in rows else []
    if len(losses) < 2 or max(losses) <= _ALIKE * min(losses):
        return ""
    return f"{min(losses):.3f} to {max(losses):.3f}"


def _to_cell(rows: pd.DataFrame, score: Score) -> str:
    """Writes a score of one setting's trials, with its interval."""
    return _cell(estimate(rows, score), score.percent, len(rows))


def abridge(names: Sequence[str], most: int = 5) -> str:
    """Lists the first names, and says how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _legend(
    table: pd.DataFrame, shown: Sequence[Score], changes: Changes | None
) -> str:
    """Says how the intervals were made, and by what similarity was measured."""
    text = (
        "Means with 95 % intervals: Student's over seeds, or of one seed its own "
        "bootstrap; cut where the score has an end."
    )
    if any(is_share(score, str(present_key(table, score))) for score in shown):
        text += (
            " Of shares and areas under the ROC curve: Student's on the logit scale, "
            "and never narrower than of as many independent draws."
        )
    if "embedder" in table:
        text += f" Similarity by {', '.join(sorted(table['embedder'].unique()))}."
    if changes:
        text += f" Changes: against {changes.label} {changes.baseline}, seed by seed."
    return text + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(
    found: Estimate | None, percent: bool, num_trials: int, *, signed: bool = False
) -> str:
    if found is None:
        return ""
    sign = "+" if signed and found.mean > 0 else ""
    text = sign + format_number(found.mean, percent)
    if not np.isnan(found.low):
        low, high = (format_number(value, percent) for value in found[1:3])
        text += f" [{low}, {high}]"
    if found.num_seeds < num_trials:
        text += f" ({found.num_seeds} seeds)"
    return text


def format_number(value: float, percent: bool = False) -> str:
    """Formats a score: shares in percent, others to three or four digits."""
    if percent:
        return f"{100 * value:.3g} %"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
