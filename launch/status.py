"""Where the trials of a sweep stand, read from what lies in its directory."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from launch.lease import Ledger, Record
from launch.trials import Plan, Task, unique_tasks
from launch.worker import standing

_REFRESH_SECS = 2.0
_MAX_NAME = 44


class Row(NamedTuple):
    """A line of the table; None where nothing is known yet."""

    trial: str
    state: str
    progress: str
    eta: str
    loss: float | None
    similarity: float | None
    note: str


def show(plans: Sequence[Plan], root: str, max_failures: int) -> None:
    """Prints the table: again and again at a terminal until all is done, else once."""
    live = sys.stdout.isatty()
    while True:
        rows = tabulate(plans, root, max_failures)
        if live:
            print("\033[H\033[J", end="")
        print(to_text(rows), flush=True)
        if not live or all(row.state in ("done", "failed") for row in rows):
            return
        try:
            time.sleep(_REFRESH_SECS)
        except KeyboardInterrupt:
            return


def tabulate(plans: Sequence[Plan], root: str, max_failures: int) -> list[Row]:
    """Makes a row of each trial.

    Raises:
      ConnectionError, ValueError: if the records cannot be read.
    """
    tasks = {task.key: task for task in unique_tasks(plans)}
    versions = dict(zip(tasks, Ledger(root).read(list(tasks)), strict=True))
    states = standing(tasks, versions, max_failures)
    metrics: dict[str, tuple[dict, int]] = {}
    rows = []
    for made in plans:
        workdir = made.tasks[-1].workdir
        if workdir not in metrics:
            metrics[workdir] = _read_progress(epath.Path(root) / workdir)
        rows.append(
            _row(
                made,
                states,
                {key: version.record for key, version in versions.items()},
                *metrics[workdir],
                _read_json(epath.Path(root) / made.scores / "scores.json"),
            )
        )
    return rows


def _row(
    made: Plan,
    states: Mapping[str, str],
    records: Mapping[str, Record | None],
    last: Mapping[str, float],
    total: int,
    scores: Mapping[str, Any],
) -> Row:
    task = _current(made.tasks, states)
    state, record = states[task.key], records[task.key]
    what = task.key.rpartition("/")[2].partition("-")[0]
    if state == "running":
        state = "training" if what == "train" else "evaluating"
    elif state in ("waiting", "blocked"):
        state = "pending" if state == "waiting" else "failed"
    if state == "pending" and any(states[t.key] == "done" for t in made.tasks):
        state = "trained"
    step = int(last.get("step", 0))
    rate = last.get("steps_per_second", 0.0)
    trains = state == "training" and total
    done = states[made.tasks[-1].key] == "done"
    progress = "100 %" if done else f"{step}/{total}" if last else ""
    note = ""
    if record is not None and not done:
        if state in ("training", "evaluating"):
            note = f"on {record.owner.host}, process {record.owner.pid}"
        elif record.error:
            last_line = record.error.strip().splitlines()[-1]
            note = f"{what} failed {record.failures}x: {last_line[:90]}"
    return Row(
        made.trial.name,
        "done" if done else state,
        progress,
        _duration((total - step) / rate) if trains and rate else "",
        last.get("loss"),
        scores.get("dataset_similarity", last.get("online_dataset_similarity")),
        note,
    )


def _current(tasks: Sequence[Task], states: Mapping[str, str]) -> Task:
    """Finds the first task of a trial that is not done."""
    return next((t for t in tasks if states[t.key] != "done"), tasks[-1])


def _read_progress(workdir: epath.Path) -> tuple[dict[str, float], int]:
    """Returns the newest metrics, each the last known, and the number of all steps."""
    newest: dict[str, float] = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            newest |= json.loads(line)
        except ValueError:
            continue  # being written, or cut short by a kill
    config = _read_json(workdir / "config.json").get("config", {})
    return newest, int(config.get("train", {}).get("steps", 0))


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}  # being written


def to_text(rows: Sequence[Row]) -> str:
    """Lays rows out for a terminal, with a summary."""
    header = ("trial", "state", "progress", "ETA", "loss", "similarity", "")
    table = [header] + [
        (
            row.trial
            if len(row.trial) <= _MAX_NAME
            else row.trial[: _MAX_NAME - 1] + "…",
            row.state,
            row.progress,
            row.eta,
            "" if row.loss is None else f"{row.loss:.4f}",
            "" if row.similarity is None else f"{row.similarity:.3f}",
            row.note,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return "\n".join([*lines, f"{len(rows)} trials: {counts}"])


def _duration(seconds: float) -> str:
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
