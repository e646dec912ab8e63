"""Where the images of a subject lie: what tells one subject from another."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copymit.evaluation.stages import compute_digest, images_digest
from copymit.storage import is_remote


def place_of(images: Any) -> Any:
    """Is where images lie: absolute paths; of images in memory, their digest."""
    if isinstance(images, str | Path):
        return str(images) if is_remote(images) else os.path.abspath(images)
    if isinstance(images, list | tuple) and all_paths(images):
        return [place_of(image) for image in images]
    return {"in memory": images_digest(images)}


def all_paths(images: Sequence[Any]) -> bool:
    """Says whether a list is one of paths."""
    return all(isinstance(image, str | Path) for image in images)


def title_of(images: Any) -> str:
    """Names images after their folder or file; of a pattern, what is before wildcards."""
    if not isinstance(images, str | Path):
        return "generations"
    path = str(images)
    return (
        Path(path.partition("*")[0] + "x").parent.name
        if "*" in path
        else Path(path).name
    )


def name_after(images: Any, places: Any) -> str:
    """Names an evaluation after its images, differently for those of other places."""
    words = re.sub(r"[^\w.-]+", "-", Path(title_of(images)).stem).strip("-.")
    return f"{words or 'images'}-{compute_digest(places)[:8]}"
