"""Who runs a task: one small record for each, on disk or in a bucket.

A record is only ever replaced by someone who has read the very version that is replaced
(tensorstore's conditional write, on a bucket Google's `ifGenerationMatch`). So of several
pools one wins, without a server.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple

import tensorstore as ts

# A bucket may be away for a minute; who does not reach it for longer has to say so.
_RETRIES = {"max_retries": 10, "initial_delay": "1s", "max_delay": "8s"}
_PATIENCE_SECS = 120  # where nothing is refused, and nothing answered
_FAULTS = (AssertionError, AttributeError, ImportError, LookupError, TypeError)


class Record(NamedTuple):
    """What is known of a task.

    Attributes:
      owner: "HOST PID ID" of who runs it, or ran it last; each claim has an id of its own.
      seen: the owner's last sign of life, in seconds since 1970 by its own clock.
      attempts: starts that were not given back, whether they failed or their pool died.
      error: of the last attempt that failed.
      seconds: that the last attempt took.
    """

    state: Literal["pending", "running", "done", "failed"]
    owner: str = ""
    seen: float = 0.0
    attempts: int = 0
    error: str = ""
    seconds: float = 0.0


class Version(NamedTuple):
    """A record as it was read, and the mark by which to replace it."""

    record: Record | None
    generation: bytes


class Claims:
    """The records below one directory, on disk or gs://."""

    def __init__(self, root: str | os.PathLike):
        self.root = str(root)
        context = ts.Context({"gcs_request_retries": _RETRIES})
        self._store = ts.KvStore.open(_spec(self.root), context=context).result()

    def read(self, keys: Collection[str]) -> dict[str, Version]:
        """Reads records, all at once.

        Raises:
          ValueError: for one that is damaged; names it.
          ConnectionError: if they cannot be reached.
        """
        pending = {key: self._store.read(f"{key}.json") for key in keys}
        found = {key: self._wait_for(future) for key, future in pending.items()}
        return {
            k: Version(_parse(k, v.value), v.stamp.generation) for k, v in found.items()
        }

    def claim(self, key: str, there: Version) -> "Claim | None":
        """Takes a task in place of that version; None if another pool was quicker."""
        old = there.record or Record("pending")
        owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        claim = Claim(self, key, old._replace(owner=owner), there.generation)
        mine = claim.update(state="running", attempts=old.attempts + 1)
        return claim if mine else None

    def swap(self, key: str, record: Record, generation: bytes) -> bytes:
        """Writes a record in place of that version, or of another by the same owner.

        An answer to an earlier attempt of ours may have been lost on the way.

        Returns:
          The mark of the new version; b"" if it belongs to somebody else by now.
        """
        for _ in range(2):
            text = json.dumps(record._asdict(), indent=1).encode()
            written = self._store.write(f"{key}.json", text, if_equal=generation)
            if mark := self._wait_for(written).generation:
                return mark
            there, generation = self.read([key])[key]
            if there is None or there.owner != record.owner:
                break
        return b""

    def _wait_for(self, future: Any) -> Any:
        try:
            return future.result(timeout=_PATIENCE_SECS)
        except TimeoutError:
            future.cancel()
            reason = f"no answer in {_PATIENCE_SECS} s"
        except Exception as error:  # tensorstore's have no common kind
            reason = str(error)
        raise ConnectionError(f"{self.root} cannot be reached: {reason}")


class Claim:
    """A task that is ours, until `update` says that it no longer is."""

    def __init__(self, claims: Claims, key: str, record: Record, generation: bytes):
        self.record = record
        self._claims, self._key, self._generation = claims, key, generation

    def update(self, **changes: Any) -> bool:
        """Gives a sign of life and changes fields of the record.

        Raises:
          ConnectionError: if it cannot be reached; it may have been written or not.
        """
        record = self.record._replace(seen=time.time(), **changes)
        generation = self._claims.swap(self._key, record, self._generation)
        if generation:
            self.record, self._generation = record, generation
        return bool(generation)


class Watch:
    """Tells pools that work from those that have died.

    A claim is abandoned when it was seen unchanged for `patience_secs` by the clock of
    whoever looks: clocks of different hosts are never compared. Only time in which it was
    looked at counts: who could not look, since the bucket was away or the machine asleep,
    knows nothing of the owner.
    """

    def __init__(
        self, patience_secs: float, clock: Callable[[], float] = time.monotonic
    ):
        self.patience_secs, self._clock = patience_secs, clock
        self._seen: dict[str, tuple[bytes, float, float]] = {}

    def is_abandoned(self, key: str, version: Version) -> bool:
        """Looks at a running record once more."""
        now = self._clock()
        generation, silent, looked = self._seen.get(key, (b"", 0.0, now))
        silent += min(now - looked, self.patience_secs / 4)
        if generation != version.generation:
            silent = 0.0
        self._seen[key] = version.generation, silent, now
        return silent >= self.patience_secs


@contextlib.contextmanager
def reaching(root: str) -> Iterator[None]:
    """Gives what gcsfs raises, of many kinds and after all its retries, one name.

    Raises:
      ConnectionError: if `root` is in a bucket, for all that is not about the content
        (ValueError) and no fault of the program.
    """
    try:
        yield
    except (ConnectionError, ValueError, *_FAULTS):
        raise
    except Exception as error:
        if "://" not in root:
            raise
        raise ConnectionError(f"{root} cannot be reached: {error}") from error


def _spec(root: str) -> dict[str, str]:
    if root.startswith("gs://"):
        bucket, _, path = root.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path.rstrip('/')}/"}
    return {"driver": "file", "path": f"{os.path.abspath(root)}/"}


def _parse(key: str, value: bytes) -> Record | None:
    if not value:
        return None
    try:
        return Record(**json.loads(value))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{key}.json is not a record of this version of copymit ({error}): delete "
            "it, and the task starts again"
        ) from error
