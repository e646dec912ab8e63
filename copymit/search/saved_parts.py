"""Indexes of parts of the references, kept on disk so that each is built once.

A part of the references enters; a ScaNN searcher of it leaves, loaded where the folder
has one of the same rows, built the same way by the same version. A part is a folder of
ScaNN's own files and a `part.json` with the digest of its rows; it is written under
another name and renamed, so a killed search leaves whole parts only.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from copymit.interrupts import undone
from copymit.search.scann_index import ScannSettings, build_scann, scann_recipe
from copymit.search.vectors import Vectors, blocks, row_range
from copymit.storage import writing

logger = logging.getLogger(__name__)

_FACTS = "part.json"


def open_part(
    scann: Any,
    part: Vectors,
    settings: ScannSettings,
    number: int,
    index_dir: str | os.PathLike[str] | None,
) -> Any:
    """Returns a searcher of the part, and saves it if it is new.

    Args:
      number: of the part, which names its folder.
      index_dir: local folder of all parts; None saves nothing.
    Raises:
      ValueError: if a row is not a finite unit vector, or the folder is not local.
    """
    recipe = scann_recipe(part.num_rows, settings)
    if index_dir is None:
        for _ in blocks(part):
            pass  # Checks them.
        return build_scann(scann, row_range(part, 0, part.num_rows), recipe, settings)
    if "://" in os.fspath(index_dir):
        raise ValueError(
            f"index_dir is {os.fspath(index_dir)}, but ScaNN saves to local disks only: "
            "give a folder on one, or None"
        )
    folder = Path(index_dir) / f"part-{number:05d}"
    facts = {
        "scann": importlib.metadata.version("scann"),
        "rows": part.num_rows,
        "dim": part.dim,
        "sha256": _digest(part),
        **recipe,
    }
    searcher = _load(scann, folder, facts)
    if searcher is None:
        rows = row_range(part, 0, part.num_rows)
        searcher = build_scann(scann, rows, recipe, settings)
        _save(searcher, folder, facts)
    return searcher


def _digest(part: Vectors) -> str:
    """Hashes the rows, and checks them on the way."""
    digest = hashlib.sha256()
    for _, rows in blocks(part):
        digest.update(rows.data)
    return digest.hexdigest()


def _load(scann: Any, folder: Path, facts: dict[str, Any]) -> Any | None:
    """Returns the saved searcher, or None if there is none that fits and is whole."""
    try:
        saved = json.loads((folder / _FACTS).read_text())
    except (FileNotFoundError, ValueError):
        return None
    files = saved.pop("files", None) if isinstance(saved, dict) else None
    # Anything else in the folder is not ScaNN's: it would unpickle ids that it finds.
    if saved != facts or files != _sizes(folder):
        logger.info("%s is of other references or settings: building it again", folder)
        return None
    return scann.scann_ops_pybind.load_searcher(
        os.fspath(folder), assets_backcompat_shim=False
    )


def _save(searcher: Any, folder: Path, facts: dict[str, Any]) -> None:
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with writing(folder), undone(lambda: shutil.rmtree(unfinished)):
        searcher.serialize(os.fspath(unfinished), relative_path=True)
        text = json.dumps(facts | {"files": _sizes(unfinished)}, indent=1)
        (unfinished / _FACTS).write_text(text + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Returns the size in bytes of every file but `part.json`."""
    return {
        path.name: path.stat().st_size
        for path in sorted(folder.iterdir())
        if path.name != _FACTS
    }
