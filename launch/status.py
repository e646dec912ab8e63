"""Where the trials of a sweep stand, read from what lies in its directory."""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.claims import Claims, Record, Version, reaching
from launch.pool import find_products, gist, standing
from launch.trials import Plan, Task, unique_tasks

_READERS = 16  # files read at a time: those of a bucket take a while each
_COLUMNS = ("trial", "state", "progress", "ETA", "loss", "similarity")
# What is shown first where not all fits.
_STATES = (
    "training",
    "evaluating",
    "abandoned",
    "failed",
    "begun",
    "trained",
    "pending",
    "done",
)


class Row(NamedTuple):
    """A line of the table; None where nothing is known yet."""

    trial: str
    state: str
    progress: str
    eta: str
    loss: float | None
    similarity: float | None
    note: str


def to_text(rows: Sequence[Row], columns: int = 240) -> str:
    """Lays rows out for a terminal of a width, what runs and what failed first."""
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in _STATES if s in states)
    table = Table(box=None, pad_edge=False)
    table.add_column(_COLUMNS[0], overflow="fold")  # seeds differ at the end of names
    for name in _COLUMNS[1:]:
        table.add_column(name, no_wrap=True)
    for row in sorted(rows, key=lambda row: _STATES.index(row.state)):
        trial = f"{row.trial}\n  {row.note}" if row.note else row.trial
        loss = "" if row.loss is None else f"{row.loss:.4f}"
        similarity = "" if row.similarity is None else f"{row.similarity:.3f}"
        table.add_row(Text(trial), row.state, row.progress, row.eta, loss, similarity)
    console = Console(width=columns, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([f"{len(rows)} trials: {counts}", *lines])


def tabulate(
    plans: Sequence[Plan], root: str, max_attempts: int, claim_secs: float
) -> list[Row]:
    """Makes a row of each trial, whoever runs it.

    Args:
      claim_secs: without a sign of life, after which a pool is shown as dead; by the
        clocks of both hosts, which is good enough to look at.
    Raises:
      ConnectionError, ValueError: if the records cannot be read.
    """
    tasks = {task.key: task for task in unique_tasks(plans)}
    versions = Claims(root).read(tasks)
    products = find_products(tasks, versions, root)
    now = time.time()
    silent = frozenset(
        key
        for key, (record, _) in versions.items()
        if record and record.state == "running" and now - record.seen > claim_secs
    )
    states = standing(tasks, versions, products, silent, max_attempts)
    workdirs = list(dict.fromkeys(made.tasks[-1].workdir for made in plans))
    with reaching(root), ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda w: read_progress(epath.Path(root) / w), workdirs)
        paths = [epath.Path(root) / made.scores / "scores.json" for made in plans]
        scores = list(pool.map(_read_json, paths))
        progress = dict(zip(workdirs, found, strict=True))
    return [
        _row(made, states, versions, *progress[made.tasks[-1].workdir], known)
        for made, known in zip(plans, scores, strict=True)
    ]


def _row(
    made: Plan,
    states: Mapping[str, str],
    versions: Mapping[str, Version],
    last: Mapping[str, float],
    total: int,
    scores: Mapping[str, Any],
) -> Row:
    task = _current(made.tasks, states)
    done = states[made.tasks[-1].key] == "done"
    step, rate = int(last.get("step", 0)), last.get("steps_per_second", 0.0)
    state = "done" if done else _state_of(task, states, made.tasks, step)
    note = "" if done else _note(task, states[task.key], versions[task.key].record)
    progress = "100 %" if done else f"{step}/{total}" if last else ""
    trains = state == "training" and total and rate
    return Row(
        made.trial.name,
        state,
        progress,
        _duration((total - step) / rate) if trains else "",
        last.get("loss"),
        scores.get("dataset_similarity", last.get("online_dataset_similarity")),
        note,
    )


def _state_of(
    task: Task, states: Mapping[str, str], tasks: Sequence[Task], step: int
) -> str:
    """Says in people's words how far a trial is whose first open task this is."""
    if states[task.key] == "running":
        return "training" if task.program == "train.py" else "evaluating"
    if states[task.key] in ("silent", "failed", "blocked"):
        return "abandoned" if states[task.key] == "silent" else "failed"
    if any(states[t.key] == "done" for t in tasks):
        return "trained"
    return "begun" if step else "pending"  # by hand, or by another engine


def _note(task: Task, state: str, record: Record | None) -> str:
    if record is None:
        return ""
    host, pid, *_ = [*record.owner.split(), "", ""]
    place, what = f"on {host}, process {pid}", task.program.removesuffix(".py")
    if state == "running":
        return (
            f"{place}, sign of life {_duration(max(0, time.time() - record.seen))} ago"
        )
    if state == "silent":
        return f"{what} {place}, which died or was cut off: start a pool"
    if not record.attempts:
        return ""
    last = gist(record.error or "its pool died")
    return f"{what} failed {record.attempts}x: {last}"


def _current(tasks: Sequence[Task], states: Mapping[str, str]) -> Task:
    """Finds the first task of a trial that is not done."""
    return next((t for t in tasks if states[t.key] != "done"), tasks[-1])


def read_progress(workdir: epath.Path) -> tuple[dict[str, float], int]:
    """Returns the newest metrics of a training, each the last known, and all its steps."""
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


def _duration(seconds: float) -> str:
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
