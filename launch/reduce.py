"""A finished run reduced to what tables, figures and pages are made of.

Kept are scores, the table of generations and the few pairs of pictures that the evaluation
wrote as JPEG: some hundred kilobytes, where a run has gigabytes. What has gone is made
again when another evaluation needs it.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from launch.trials import Task

_OF_A_RUN = ("config.json", "metrics.jsonl", "duplication.parquet", "launch", "eval")
_OF_AN_EVALUATION = (
    "scores.json",
    "timings.json",
    "detection.json",
    "detection.parquet",
    "generations.parquet",
    "metrics_card.txt",
    "pairs",
)


def reduce_runs(
    tasks: Mapping[str, Task], done: Collection[str], root: str
) -> list[str]:
    """Reduces the runs of which every task is done; returns their directories.

    Doing it twice, or beside another pool that does, changes nothing.
    """
    finished = []
    for workdir in dict.fromkeys(task.workdir for task in tasks.values()):
        own = [task for task in tasks.values() if task.workdir == workdir]
        trained = any(task.program == "train.py" for task in own)
        path = Path(root) / workdir
        if trained and {t.key for t in own} <= set(done) and not _is_reduced(path):
            _reduce(path)
            finished.append(workdir)
    return finished


def reopen(tasks: Sequence[Task], done: Collection[str], root: str) -> None:
    """Drops the record of evaluations that were reduced and that something waits for.

    Args:
      done: keys of what is done.
    """
    waited_for = {key for t in tasks if t.key not in done for key in t.after}
    for task in tasks:
        gone = task.product and not (Path(root) / task.product).exists()
        if task.key in waited_for & set(done) and gone:
            (Path(root) / f"{task.key}.json").unlink(missing_ok=True)


def _is_reduced(run: Path) -> bool:
    return not (run / "launch" / "train.json").exists()


def _reduce(run: Path) -> None:
    for evaluation in (run / "eval").iterdir() if (run / "eval").exists() else ():
        _keep(evaluation, _OF_AN_EVALUATION)
    _keep(run, _OF_A_RUN)
    # Last, since it says that the checkpoint is there.
    (run / "launch" / "train.json").unlink(missing_ok=True)


def _keep(folder: Path, names: Collection[str]) -> None:
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
