"""Which stages of an evaluation are finished, and with which inputs.

`stages.json` keeps, per stage, a digest of everything that went in: its settings and the
digest of the stage before. A stage whose digest has not changed is not run again.
"""

import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from etils import epath

from copymit.storage import is_remote, write_whole

STAGES = ("generate", "embed", "search", "score", "detect", "report")
OPTIONAL_STAGES = ("detect",)
"""Run only where they are asked for; no other stage needs them."""
DEFAULT_STAGES = tuple(stage for stage in STAGES if stage not in OPTIONAL_STAGES)


class StageRecord:
    """The finished stages of one evaluation directory."""

    def __init__(self, directory: epath.Path):
        self._path = directory / "stages.json"
        self._done: dict[str, str] = {}
        if self._path.exists():
            self._done = json.loads(self._path.read_text())

    def is_done(self, stage: str, digest: str) -> bool:
        """Says whether the stage finished with these inputs."""
        return self._done.get(stage) == digest

    def has(self, stage: str) -> bool:
        """Says whether the stage finished, and none before it began since."""
        return stage in self._done

    def begin(self, stage: str) -> None:
        """Forgets the stage and all after it, whose artefacts are now out of date."""
        for later in STAGES[STAGES.index(stage) :]:
            self._done.pop(later, None)
        self._write()

    def finish(self, stage: str, digest: str) -> None:
        """Notes that the stage finished with these inputs."""
        self._done[stage] = digest
        self._write()

    def _write(self) -> None:
        write_whole(self._path, f"{json.dumps(self._done, indent=1)}\n".encode())


def compute_digest(inputs: Any) -> str:
    """Hashes what can be written as JSON."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(path: str | Path) -> str:
    """Hashes names, sizes and times of the files of a folder, a file or a pattern.

    Not their content: that would take as long as to read every image.
    """
    if is_remote(path):
        return _remote_digest(epath.Path(path))
    if os.path.isdir(path):
        files = [
            os.path.join(root, name)
            for root, _, names in os.walk(path)
            for name in names
        ]
    else:
        files = glob.glob(str(path)) or [str(path)]
    rows = []
    for file in sorted(files):
        status = os.stat(file)
        rows.append([file, status.st_size, status.st_mtime_ns])
    return compute_digest(rows)


def _remote_digest(path: epath.Path) -> str:
    """Does the same in a bucket."""
    if "*" in path.name:
        files = list(path.parent.glob(path.name))
    elif path.is_dir():
        files = [root / name for root, _, names in path.walk() for name in names]
    else:
        files = [path]
    rows = []
    for file in sorted(files):
        status = file.stat()
        rows.append([str(file), status.length, status.mtime])
    return compute_digest(rows)


def check_stages(names: list[str]) -> None:
    """Raises a `ValueError` that lists the stages if one is not known."""
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise ValueError(
            f"--stages={','.join(names)}: use some of {','.join(STAGES)}, in this order"
        )
