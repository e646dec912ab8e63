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
