"""Where the trials of a sweep stand, read from what lies in its directory."""

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath

from launch.lease import Ledger, Version, Watch, reaching
from launch.trials import Plan, Task, unique_tasks
from launch.worker import standing

_REFRESH_SECS = 2.0
_READERS = 16  # files read at a time: those of a bucket take a while each
_HEADER = ("trial", "state", "progress", "ETA", "loss", "similarity")
_FEWEST_OF_NAME = 24  # characters, however narrow the terminal
# What is shown first where not all fits.
_STATES = (
    "training",
    "evaluating",
    "abandoned",
    "failed",
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


def show(plans: Sequence[Plan], root: str, max_failures: int, watch: Watch) -> None:
    """Prints the table: again and again at a terminal until all is done, else once."""
    if not sys.stdout.isatty():
        print(to_text(tabulate(plans, root, max_failures, watch)))
        return
    rows: list[Row] = []
    try:
        while not rows or not all(row.state in ("done", "failed") for row in rows):
            time.sleep(_REFRESH_SECS if rows else 0.0)
            trouble = ""
            try:
                rows = tabulate(plans, root, max_failures, watch)
            except ConnectionError as error:
                if not rows:
                    raise
                trouble = f"\n{error}; trying again"
            size = shutil.get_terminal_size()
            text = to_text(rows, size.columns, size.lines - 2)
            print(f"\033[H\033[J{text}{trouble}", flush=True)
    except KeyboardInterrupt:
        return


def tabulate(
    plans: Sequence[Plan], root: str, max_failures: int, watch: Watch
) -> list[Row]:
    """Makes a row of each trial.

    Raises:
      ConnectionError, ValueError: if the records cannot be read.
    """
    tasks = {task.key: task for task in unique_tasks(plans)}
    versions = dict(zip(tasks, Ledger(root).read(list(tasks)), strict=True))
    states = standing(tasks, versions, max_failures)
    for key, state in states.items():
        if state == "running" and watch.is_abandoned(key, versions[key]):
            states[key] = "abandoned"
    workdirs = list(dict.fromkeys(made.tasks[-1].workdir for made in plans))
    with reaching(root), ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda w: _read_progress(epath.Path(root) / w), workdirs)
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
    state, record = states[task.key], versions[task.key].record
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
        place = f"on {record.owner.host}, process {record.owner.pid}"
        if state in ("training", "evaluating"):
            note = place
        elif state == "abandoned":
            note = f"{what} {place}, which died or was cut off: start a launcher"
        elif record.error:
            last_line = record.error.strip().splitlines()[-1]
            note = f"{what} failed {record.failures}x: {last_line}"
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


def to_text(rows: Sequence[Row], columns: int = 0, lines: int = 0) -> str:
    """Lays rows out for a terminal of a size (0 = any), with a summary.

    Where not all fits, what runs and what failed is shown first.
    """
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    summary = f"{len(rows)} trials: {counts}"
    if lines and len(rows) + sum(bool(row.note) for row in rows) + 2 > lines:
        rows = sorted(rows, key=lambda row: _STATES.index(row.state))
    cells = [_HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if columns:
        taken = sum(widths[1:]) + 2 * len(widths[1:])
        widths[0] = min(widths[0], max(columns - taken, _FEWEST_OF_NAME))
    text: list[str] = []
    for (name, *others), note in zip(cells, ["", *(r.note for r in rows)], strict=True):
        first = _shorten(name, widths[0])
        padded = map(str.ljust, (first, *others), widths)
        block = ["  ".join(padded).rstrip(), *([f"    {note}"] if note else [])]
        if lines and len(text) + len(block) > lines - 2:
            text.append("and more")
            break
        text += block
    return "\n".join(line[: columns or None] for line in [*text, summary])


def _cells(row: Row) -> tuple[str, ...]:
    loss = "" if row.loss is None else f"{row.loss:.4f}"
    similarity = "" if row.similarity is None else f"{row.similarity:.3f}"
    return row.trial, row.state, row.progress, row.eta, loss, similarity


def _shorten(name: str, width: int) -> str:
    """Leaves out the middle: trials of one setting differ at the end."""
    if len(name) <= width:
        return name
    end = width // 2
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _duration(seconds: float) -> str:
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
