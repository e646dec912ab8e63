"""The stages of an evaluation, and digests of what goes into them.

There is one notion of "unchanged": a digest of the settings and of the files, these by
relative name, size and time of change (nanoseconds on disk); what lies in memory, by its
content.
"""

import glob
import hashlib
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from copymit.storage import is_remote

STAGES = ("generate", "embed", "search", "score", "detect", "report")
OPTIONAL_STAGES = ("detect",)
"""Run only where they are asked for; no other stage needs them."""
DEFAULT_STAGES = tuple(stage for stage in STAGES if stage not in OPTIONAL_STAGES)


def compute_digest(inputs: Any) -> str:
    """Hashes what can be written as JSON."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(path: str | Path) -> str:
    """Hashes names, sizes and times of the files of a folder, a file or a pattern.

    Not their content: that would take as long as to read every image. What is no file,
    such as a hub id, is its name.
    """
    if is_remote(path):
        return _remote_digest(epath.Path(path))
    if os.path.isdir(path):
        files = [
            os.path.join(root, name)
            for root, _, names in os.walk(path, followlinks=True)
            for name in names
        ]
        start = path
    else:
        files = glob.glob(str(path), recursive=True)
        start = os.path.dirname(str(path).partition("*")[0]) or "."
    rows: list[Any] = [] if files else [str(path)]
    for file in sorted(files):
        status = os.stat(file)
        name = os.path.relpath(file, start)
        rows.append([name, status.st_size, status.st_mtime_ns])
    return compute_digest(rows)


def _remote_digest(path: epath.Path) -> str:
    """Does the same in a bucket, by one listing; its generations tell times."""
    bucket, where = fsspec.core.url_to_fs(str(path))
    bucket.invalidate_cache()
    find = bucket.glob if "*" in where else bucket.find
    files = find(where, detail=True)
    start = where.partition("*")[0].rpartition("/")[0]
    rows: list[Any] = [] if files else [str(path)]
    for name, about in sorted(files.items()):
        written = about.get("generation") or about.get("mtime") or about.get("updated")
        rows.append([name.removeprefix(start), about["size"], str(written)])
    return compute_digest(rows)


def images_digest(images: Any) -> str:
    """Hashes what images of any kind depend on: files as above, pixels in memory.

    Args:
      images: whatever `open_images` knows.
    """
    if isinstance(images, str | Path):
        return content_digest(images)
    if isinstance(images, np.ndarray):
        array = np.ascontiguousarray(images)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
        return digest.hexdigest()
    if isinstance(images, Image.Image):
        return images_digest(np.asarray(images.convert("RGB")))
    if isinstance(images, list | tuple):
        return compute_digest([images_digest(image) for image in images])
    return uuid.uuid4().hex  # of what nothing is known, nothing is reused


def data_digest(data: ConfigDict) -> list[str]:
    """Digests the files that the `data` section names."""
    # The embedded set comes with this program, whatever a folder here is called.
    return [
        path if path in ("", "fluent_emoji") else content_digest(path)
        for path in (data.source, data.captions, data.manifest)
    ]


class Share(NamedTuple):
    """Share `number` (from 0) of `total` processes that know nothing of each other."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"--shard={self.number}/{self.total}"


def parse_share(text: str) -> Share:
    """Reads `i/n`.

    Raises:
      ValueError: if it is anything else, or i is not below n.
    """
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"--shard={text}: give i/n, share i of n, with i from 0 to n - 1, such as "
            "--shard=0/4"
        )
    return Share(int(match[1]), int(match[2]))


def check_stages(names: list[str], share: Share | None = None) -> None:
    """Refuses stages that are not known, or cannot be shared.

    Raises:
      ValueError: lists those that can be given.
    """
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise ValueError(
            f"--stages={','.join(names)}: use some of {','.join(STAGES)}, in this order"
        )
    if share and names != ["embed"]:
        raise ValueError(
            f"{share} shares the embed stage alone: add --stages=embed; when all shares "
            "are done, run once without --shard"
        )
