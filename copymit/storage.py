"""Directories on disk or in a bucket: where they lie, and whether they can be used.

Everything below is reached through etils' epath or tensorstore, which try again, with
backoff, what a bucket refuses for a while.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
from etils import epath

from copymit.interrupts import undone

logger = logging.getLogger(__name__)

# What several processes write is not to be remembered as it was: gcsfs would.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False

_NO_ROOM = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
_PATIENCE_SECS = 90  # more than the retries of the client library take together


def is_remote(path: str | os.PathLike) -> bool:
    """Says whether a path is in a bucket, such as gs://bucket/run."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Makes a path on disk absolute; one in a bucket is, though epath does not know."""
    path = epath.Path(path)
    return path if is_remote(path) else path.absolute()


class FullDiskError(OSError):
    """There was no room for a file; the message names it and says what was lost."""


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Names the file where the system only says that there is no room for it.

    Raises:
      FullDiskError: for a full disk, a used-up quota or a limit on sizes.
    """
    try:
        yield
    except FullDiskError:
        raise
    except (OSError, ValueError) as error:  # tensorstore's are texts
        reasons = [reason for reason in _NO_ROOM if reason in str(error)]
        if not reasons:
            raise
        raise FullDiskError(_describe_full_disk(path, reasons[0])) from error


def check_room(path: epath.Path, num_bytes: int) -> None:
    """Refuses to begin what the disk has no room for.

    Args:
      path: is written into a directory that is there.
    Raises:
      FullDiskError: says how much is missing.
    """
    if is_remote(path):
        return
    free = shutil.disk_usage(path.parent).free
    if num_bytes > free:
        sizes = f"it takes {num_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free"
        raise FullDiskError(_describe_full_disk(path, sizes))


def _describe_full_disk(path: epath.PathLike, reason: str) -> str:
    return (
        f"no room for {path} ({reason}). It is not written, and what was finished before "
        "it stays: make room, and the same command goes on from there"
    )


@contextlib.contextmanager
def whole(path: epath.Path, partial: epath.Path | None = None) -> Iterator[epath.Path]:
    """Yields the name of a file to write, which becomes `path`, or nothing stays of it.

    An object in a bucket is never seen half written; there a second name would only add
    a move, which is not safe to try again.

    Args:
      partial: its name until it is whole; by default beside `path`, and this process's.
    Raises:
      FullDiskError: see `writing`.
    """
    if is_remote(path):
        yield path
        return
    writer = f"{socket.gethostname()}-{os.getpid()}"  # of several on one file system
    partial = partial or path.with_name(f"{path.name}.{writer}.partial")
    remove = functools.partial(partial.unlink, missing_ok=True)
    with writing(path), undone(remove):
        try:
            yield partial
            partial.replace(path)
        except BaseException:
            remove()
            raise


def write_whole(
    path: epath.Path, data: bytes, partial: epath.Path | None = None
) -> None:
    """Writes a file so that a kill leaves the old one or the new one; see `whole`."""
    with whole(path, partial) as file:
        file.write_bytes(data)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Makes a folder of the machine that goes at the end, and with the process."""
    with tempfile.TemporaryDirectory() as name, undone(lambda: shutil.rmtree(name)):
        yield Path(name)


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
