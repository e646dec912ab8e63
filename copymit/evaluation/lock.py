"""One process at a time in the directory of an evaluation, or one for each of its shares.

On disk a lock is the kernel's, and ends with the process that holds it. In a bucket it
is an object that only ever replaces the version that was read (a conditional write), and
that its owner writes anew while it lives. Everybody first takes a lock of their own and
then looks at those that exclude it, so that of two who exclude each other at most one
goes on.
"""

import contextlib
import fcntl
import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import tensorstore as ts
from etils import epath

from copymit.evaluation.stages import Share
from copymit.interrupts import undone
from copymit.storage import is_remote

_NAME = "evaluation.lock"
_SHARE = "share-{}-of-{}.lock"
_BEAT_SECS = 15.0
# A lock that was not written anew for so long is of a process that died.
_DEAD_SECS = 4 * _BEAT_SECS


@contextlib.contextmanager
def sole_evaluation(
    directory: epath.Path, share: Share | None = None
) -> Iterator[None]:
    """Keeps other evaluations out of a directory; for a share, all but other shares.

    Raises:
      ValueError: if one is at work there, and names the process; or if the file system
        has no locks.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    remote = is_remote(directory)
    hold, look = (_in_bucket, _await_death) if remote else (_on_disk, _look_on_disk)
    name = _NAME
    if share:
        owner, name = f"{owner} ({share})", _SHARE.format(*share)
    with hold(directory, name, owner):
        shares = [path.name for path in directory.glob(_SHARE.format("*", "*"))]
        excluded = [_NAME] if share else shares
        with ThreadPoolExecutor() as pool:
            list(pool.map(functools.partial(look, directory), excluded))
        if not share:
            for left in shares:  # by processes that died
                (directory / left).unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _on_disk(directory: epath.Path, name: str, owner: str) -> Iterator[None]:
    path = os.path.join(directory, name)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a+"))
            _lock(file, fcntl.LOCK_EX, directory)
            # Who had it before may have removed the file between the two lines.
            if os.path.exists(path) and os.path.samestat(
                os.fstat(file.fileno()), os.stat(path)
            ):
                break
        file.truncate(0)
        file.write(owner)
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _look_on_disk(directory: epath.Path, name: str) -> None:
    """Raises if a lock is held."""
    path = os.path.join(directory, name)
    with contextlib.suppress(FileNotFoundError), open(path) as file:
        _lock(file, fcntl.LOCK_SH, directory)  # others may look at the same time


def _lock(file: IO[str], kind: int, directory: epath.Path) -> None:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise _taken(directory, file.read()) from error
    except OSError as error:
        raise ValueError(
            f"{directory} lies on a file system without locks ({error.strerror}), so that "
            "nothing would keep a second evaluation out: choose a --workdir on another, or "
            "mount it with flock"
        ) from error


@contextlib.contextmanager
def _in_bucket(directory: epath.Path, name: str, owner: str) -> Iterator[None]:
    store = _open(directory)
    owner += f" ({uuid.uuid4().hex[:8]})"
    generation = _write(store, name, owner, _await_death(directory, name))
    if not generation:
        raise _taken(directory, store.read(name).result().value.decode())
    ended = threading.Event()

    def beat() -> None:
        mark = generation
        while mark and not ended.wait(_BEAT_SECS):
            with contextlib.suppress(Exception):  # the next beat tries again
                mark = _write(store, name, owner, mark)
        if mark:
            store.write(name, None, if_equal=mark).result()

    def release() -> None:
        ended.set()
        thread.join(_DEAD_SECS)  # after which it counts as dead

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    with undone(release):
        try:
            yield
        finally:
            release()


def _open(directory: epath.Path) -> ts.KvStore:
    return ts.KvStore.open(f"{str(directory).rstrip('/')}/").result()


def _await_death(directory: epath.Path, name: str) -> bytes:
    """Returns the version of a lock that nobody has, or whose owner shows no life."""
    store = _open(directory)
    seen, waited = store.read(name).result(), 0.0
    while seen.value and waited < _DEAD_SECS:
        time.sleep(_BEAT_SECS / 3)
        waited += _BEAT_SECS / 3
        now = store.read(name).result()
        if now.stamp.generation != seen.stamp.generation and now.value:
            raise _taken(directory, now.value.decode())
        seen = now
    return seen.stamp.generation


def _write(store: ts.KvStore, name: str, owner: str, generation: bytes) -> bytes:
    """Writes in place of that version; b"" if somebody else was quicker."""
    text = f"{owner}, {time.time():.0f}"
    if mark := store.write(name, text, if_equal=generation).result().generation:
        return mark
    # It may be ours: the answer to a first attempt is lost on the way now and then.
    there = store.read(name).result()
    return there.stamp.generation if there.value == text.encode() else b""


def _taken(directory: epath.Path, owner: str) -> ValueError:
    return ValueError(
        f"{directory} is being evaluated by {owner or 'another process'}: wait for it, or "
        "choose another name (--name) or --workdir"
    )
