"""A finished run reduced to what tables, figures and pages are made of.

Kept are scores, the table of generations and some of them as JPEG: some hundred kilobytes,
where a run has gigabytes. What has gone is made again when another evaluation needs it.
"""

import io
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from launch.trials import Task

_PICTURES = 24
_JPEG_QUALITY = 90
_OF_A_RUN = ("config.json", "metrics.jsonl", "duplication.parquet", "launch", "eval")
_OF_AN_EVALUATION = (
    "scores.json",
    "timings.json",
    "detection.json",
    "detection.parquet",
    "generations.parquet",
    "metrics_card.txt",
    "pictures",
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


def needed(tasks: Sequence[Task], done: Collection[str], root: str) -> list[Task]:
    """Leaves out trainings that nothing waits for, and repeats what was reduced too early.

    The evaluation of a reduced run is made again where something needs its artefacts.

    Args:
      done: keys of what is done; what is to be repeated loses its record.
    """
    open_ = {task.key for task in tasks} - set(done)
    for task in tasks:
        if task.key in open_ and not _waited_for(task, tasks):
            for key in task.after:
                before = next(t for t in tasks if t.key == key)
                product = before.product and Path(root) / before.product
                if key in done and product and not product.exists():
                    (Path(root) / f"{key}.json").unlink(missing_ok=True)
    kept = {
        task.key
        for task in tasks
        if task.key not in open_
        or not (behind := _waited_for(task, tasks))
        or behind & open_
    }
    return [
        task._replace(after=tuple(key for key in task.after if key in kept))
        for task in tasks
        if task.key in kept
    ]


def _waited_for(task: Task, tasks: Sequence[Task]) -> set[str]:
    return {other.key for other in tasks if task.key in other.after}


def _is_reduced(run: Path) -> bool:
    return not (run / "launch" / "train.json").exists()


def _reduce(run: Path) -> None:
    for evaluation in (run / "eval").iterdir() if (run / "eval").exists() else ():
        if (evaluation / "generations.parquet").exists():
            _keep_pictures(evaluation)
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


def _keep_pictures(evaluation: Path) -> None:
    """Writes generations as JPEG: the most similar half, and the rest evenly by rank."""
    import numpy as np  # Here, so that a pool starts without them.
    import pandas as pd
    from PIL import Image

    table = pd.read_parquet(evaluation / "generations.parquet")
    ranked = table.sort_values("similarity", ascending=False)["generation"].tolist()
    top, rest = ranked[: _PICTURES // 2], ranked[_PICTURES // 2 :]
    evenly = np.linspace(0, len(rest) - 1, min(len(rest), _PICTURES - len(top)))
    folder = evaluation / "pictures"
    folder.mkdir(exist_ok=True)
    for name in [*top, *(rest[round(i)] for i in evenly)]:
        path = evaluation / "generations" / f"{name}.png"
        if not path.exists():
            continue  # reduced before
        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
        (folder / f"{path.stem}.jpg").write_bytes(buffer.getvalue())
