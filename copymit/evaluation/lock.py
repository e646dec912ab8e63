"""One process at a time in the directory of an evaluation.

On disk the lock is the kernel's, and ends with the process that holds it. In a bucket it
is an object that only ever replaces the version that was read (a conditional write), and
that its owner writes anew while it lives.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import tensorstore as ts
from etils import epath

from copymit.storage import is_remote

_NAME = "evaluation.lock"
_BEAT_SECS = 15.0
# A lock that was not written anew for so long is of a process that died.
_DEAD_SECS = 4 * _BEAT_SECS


@contextlib.contextmanager
def sole_evaluation(directory: epath.Path) -> Iterator[None]:
    """Keeps other evaluations out of a directory.

    Raises:
      ValueError: if one is at work there; names the process.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    lock = _in_bucket if is_remote(directory) else _on_disk
    with lock(directory, owner):
        yield


@contextlib.contextmanager
def _on_disk(directory: epath.Path, owner: str) -> Iterator[None]:
    path = os.path.join(directory, _NAME)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise _taken(directory, file.read()) from error
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
            os.unlink(path)


@contextlib.contextmanager
def _in_bucket(directory: epath.Path, owner: str) -> Iterator[None]:
    store = ts.KvStore.open(f"{str(directory).rstrip('/')}/").result()
    owner += f" ({uuid.uuid4().hex[:8]})"
    generation = _claim(store, directory, owner)
    ended = threading.Event()

    def beat() -> None:
        mark = generation
        while mark and not ended.wait(_BEAT_SECS):
            with contextlib.suppress(Exception):  # the next beat tries again
                mark = _write(store, owner, mark)
        if mark:
            store.write(_NAME, None, if_equal=mark).result()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_BEAT_SECS)


def _claim(store: ts.KvStore, directory: epath.Path, owner: str) -> bytes:
    """Takes the lock if nobody has it, or who has it gives no sign of life."""
    seen, waited = store.read(_NAME).result(), 0.0
    while seen.value and waited < _DEAD_SECS:
        time.sleep(_BEAT_SECS / 3)
        waited += _BEAT_SECS / 3
        now = store.read(_NAME).result()
        if now.stamp.generation != seen.stamp.generation and now.value:
            raise _taken(directory, now.value.decode())
        seen = now
    if mark := _write(store, owner, seen.stamp.generation):
        return mark
    raise _taken(directory, store.read(_NAME).result().value.decode())


def _write(store: ts.KvStore, owner: str, generation: bytes) -> bytes:
    """Writes in place of that version; b"" if somebody else was quicker."""
    text = f"{owner}, {time.time():.0f}"
    if mark := store.write(_NAME, text, if_equal=generation).result().generation:
        return mark
    # It may be ours: the answer to a first attempt is lost on the way now and then.
    there = store.read(_NAME).result()
    return there.stamp.generation if there.value == text.encode() else b""


def _taken(directory: epath.Path, owner: str) -> ValueError:
    return ValueError(
        f"{directory} is being evaluated by {owner or 'another process'}: wait for it, or "
        "choose another name (--name) or --workdir"
    )
