"""Directories on disk or in a bucket: where they lie, and whether they can be used.

Everything below is reached through etils' epath or tensorstore, which try again, with
backoff, what a bucket refuses for a while.
"""

import contextlib
import io
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterable

import fsspec
from etils import epath

logger = logging.getLogger(__name__)

# What several processes write is not to be remembered as it was: gcsfs would.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

_PATIENCE_SECS = 90  # more than the retries of the client library take together


def is_remote(path: str | os.PathLike) -> bool:
    """Says whether a path is in a bucket, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Makes a path on disk absolute; one in a bucket is, though epath does not know."""
    path = epath.Path(path)
    return path if is_remote(path) else path.absolute()


def write_whole(path: epath.Path, data: bytes) -> None:
    """Writes a file so that a kill leaves the old one or the new one.

    An object in a bucket is never seen half written; there a second name would only add
    a move, which is not safe to try again.
    """
    if is_remote(path):
        path.write_bytes(data)
        return
    writer = f"{socket.gethostname()}-{os.getpid()}"  # of several on one file system
    partial = path.with_name(f"{path.name}.{writer}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def create_whole(path: epath.Path, data: bytes) -> bool:
    """Writes a file unless it is there; of several processes, one succeeds.

    Returns:
      Whether this one did.
    """
    import tensorstore as ts  # the only one that does so in a bucket, too

    parent = path.parent if is_remote(path) else f"file://{absolute(path.parent)}"
    store = ts.KvStore.open(f"{str(parent).rstrip('/')}/").result()
    there = store.read(path.name).result()
    if there.state == "value":
        return False
    absent = there.stamp.generation
    return bool(store.write(path.name, data, if_equal=absent).result().generation)


class GrowingObject:
    """A file in a bucket that is appended to: every `flush` writes it anew.

    What the bucket refuses even after all retries is noted, and left to the next flush.
    """

    def __init__(self, path: epath.PathLike, data: bytes = b""):
        self._path = epath.Path(path)
        self._data = io.BytesIO()
        self._data.write(data)

    def write(self, data: bytes) -> int:
        """Appends."""
        return self._data.write(data)

    def flush(self) -> None:
        """Writes everything so far."""
        try:
            self._path.write_bytes(self._data.getvalue())
        except Exception as error:  # each client library has kinds of its own
            logger.warning("%s is not up to date: %s", self._path, error)

    def close(self) -> None:
        """Writes everything a last time."""
        self.flush()


def check_buckets(workdir: epath.PathLike, read: Iterable[object] = ()) -> None:
    """Tries out the buckets of a run, before anything that is expensive.

    Args:
      workdir: must be writable; nothing is tried out on disk.
      read: settings; those that are paths in a bucket must be readable.
    Raises:
      ValueError: names the bucket and says what to do.
    """
    if is_remote(workdir):
        _attempt(_write_and_remove, epath.Path(workdir), "written to")
    for value in read:
        if isinstance(value, str) and value.startswith("gs://"):
            _attempt(_look_into, epath.Path(value), "read")


def _write_and_remove(directory: epath.Path) -> None:
    probe = directory / f".probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"copymit can write here")
    probe.unlink(missing_ok=True)  # the answer to a first attempt may have been lost


def _look_into(path: epath.Path) -> None:
    # A pattern is not a path, but its bucket is.
    if not path.exists() and not list(epath.Path(_bucket(path)).iterdir()):
        raise FileNotFoundError(path)


def _attempt(action, path: epath.Path, what: str) -> None:
    """Calls `action` in a thread that may never come back."""
    with contextlib.suppress(ImportError):  # which the action will say
        fsspec.get_filesystem_class("gcs")  # a slow import is no silence of the bucket
    failures: list[BaseException | None] = []

    def run() -> None:
        try:
            action(path)
            failures.append(None)
        except Exception as error:  # each client library has kinds of its own
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECS)
    if not failures:
        raise ValueError(_advice(path, what, f"no answer in {_PATIENCE_SECS} s"))
    if failures[0] is not None:
        error = failures[0]
        raise ValueError(
            _advice(path, what, f"{type(error).__name__}: {error}")
        ) from error


def _bucket(path: epath.Path) -> str:
    return "/".join(str(path).split("/")[:3])


def _advice(path: epath.Path, what: str, reason: str) -> str:
    return (
        f"{path} cannot be {what} ({reason}). Check that the bucket {_bucket(path)} "
        "exists, that this machine's account may use it (`gcloud storage ls "
        f"{_bucket(path)}`; on a VM its access scopes must hold storage), and that gcsfs "
        "is installed (pip install 'etils[epath-gcs]')"
    )
