"""Who works on what, in one small file for each task, on disk or in a bucket.

A record is only ever replaced by someone who has read the very version that is replaced
(compare and swap: tensorstore's conditional write, which on a bucket is the precondition
`ifGenerationMatch`). So of several launchers one wins, without a server.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tensorstore as ts

# Half a minute in all: who does not reach the records for long has to say so.
_RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "8s"}
_PATIENCE_SECS = 60  # where nothing is refused, and nothing answered

_FAULTS = (AssertionError, AttributeError, LookupError, TypeError)

State = Literal["pending", "running", "done", "failed"]


class Owner(NamedTuple):
    """A launcher, unlike any other that ever ran.

    Attributes:
      host: name, for people.
      machine: of this boot and this space of process ids.
      pid: process id.
      started: when, in ticks since the boot; ids of processes are used again.
    """

    host: str
    machine: str
    pid: int
    started: str

    def is_dead(self, me: "Owner") -> bool:
        """Whether this launcher is known to have ended; `me` is who asks."""
        if not self.machine or self.machine != me.machine:
            return False
        return _ticks_at_start(self.pid) != self.started


class Record(NamedTuple):
    """What is known of a task.

    Attributes:
      digest: of the command; another one means that the task has changed.
      owner: who runs it, or ran it last.
      beat: counts the owner's signs of life.
      since: when the state began, in seconds since 1970, by the owner's clock.
      failures: so far, with this command.
      takeovers: from launchers that died, with this command.
      error: of the last failure.
      seconds: that the last run took.
    """

    state: State
    digest: str
    owner: Owner = Owner("", "", 0, "")
    beat: int = 0
    since: float = 0.0
    failures: int = 0
    takeovers: int = 0
    error: str = ""
    seconds: float = 0.0


class Version(NamedTuple):
    """A record as it was read, and the mark by which to replace it."""

    record: Record | None
    generation: bytes


class Ledger:
    """The records below one directory.

    Args:
      root: on disk or gs://.
    """

    def __init__(self, root: str | os.PathLike):
        self._root = str(root)
        context = ts.Context({"gcs_request_retries": _RETRIES})
        self._store = ts.KvStore.open(_spec(self._root), context=context).result()

    def read(self, keys: Sequence[str]) -> list[Version]:
        """Reads records, all at once.

        Raises:
          ValueError: for one that is damaged; names it.
          ConnectionError: if they cannot be reached.
        """
        pending = [self._store.read(f"{key}.json") for key in keys]
        results = [self._wait_for(future) for future in pending]
        return [
            Version(_parse(key, result.value), result.stamp.generation)
            for key, result in zip(keys, results, strict=True)
        ]

    def replace(self, key: str, record: Record, generation: bytes) -> bytes | None:
        """Writes a record in place of that version; None if it is no longer there.

        Raises:
          ConnectionError: if it cannot be reached; it may have been written or not.
        """
        text = json.dumps(
            record._asdict() | {"owner": record.owner._asdict()}, indent=1
        )
        stamp = self._wait_for(
            self._store.write(f"{key}.json", text.encode(), if_equal=generation)
        )
        if stamp.generation:
            return stamp.generation
        # The answer to an earlier attempt of ours may have been lost on the way.
        (version,) = self.read([key])
        return version.generation if version.record == record else None

    def _wait_for(self, future: Any) -> Any:
        try:
            return future.result(timeout=_PATIENCE_SECS)
        except TimeoutError:
            future.cancel()
            reason = f"no answer in {_PATIENCE_SECS} s"
        except Exception as error:  # tensorstore's have no common kind
            reason = str(error)
        raise ConnectionError(f"{self._root} cannot be reached: {reason}")


@contextlib.contextmanager
def reaching(root: str) -> Iterator[None]:
    """Gives what gcsfs raises, of many kinds and after all its retries, one name.

    Raises:
      ConnectionError: if `root` is in a bucket, for all that is not about the content
        (ValueError) and no fault of the program.
    """
    try:
        yield
    except (ConnectionError, ImportError, ValueError, *_FAULTS):
        raise
    except Exception as error:
        if "://" not in root:
            raise
        raise ConnectionError(f"{root} cannot be reached: {error}") from error


class Lease:
    """A task that is ours, until it is finished or lost.

    `beat`, `finish` and `release` say whether it still was.
    """

    def __init__(self, ledger: Ledger, key: str, record: Record, generation: bytes):
        self.key = key
        self._ledger, self._record, self._generation = ledger, record, generation
        self._started = time.monotonic()

    def beat(self) -> bool:
        """Gives a sign of life."""
        return self._write(self._record._replace(beat=self._record.beat + 1))

    def finish(self, error: str | None) -> bool:
        """Notes the end of the task; `error` is None where it went well."""
        return self._write(
            self._record._replace(
                state="done" if error is None else "failed",
                failures=self._record.failures + (error is not None),
                error=error or "",
                since=time.time(),
                seconds=round(time.monotonic() - self._started, 3),
            )
        )

    def release(self) -> bool:
        """Gives the task back as if it had not been started."""
        return self._write(self._record._replace(state="pending", since=time.time()))

    def _write(self, record: Record) -> bool:
        generation = self._ledger.replace(self.key, record, self._generation)
        if generation is None:
            # A sign of life that was given up may have arrived after all.
            (there,) = self._ledger.read([self.key])
            if there.record is None or there.record.owner != record.owner:
                return False
            generation = self._ledger.replace(self.key, record, there.generation)
        if generation is None:
            return False
        self._record, self._generation = record, generation
        return True


class Watch:
    """Tells launchers that work from those that have died.

    A lease counts as abandoned when its owner is known to be dead, or when it was seen
    unchanged for `patience_secs` by the clock of whoever looks: clocks of different
    hosts are never compared. Only time in which it was looked at counts: who could not
    look, since the bucket was away or the machine asleep, knows nothing of the owner.
    """

    def __init__(self, me: Owner, patience_secs: float):
        self.me, self.patience_secs = me, patience_secs
        self._seen: dict[str, tuple[bytes, float, float]] = {}

    def is_abandoned(self, key: str, version: Version) -> bool:
        """Looks at a running record once more."""
        assert version.record is not None
        if version.record.owner.is_dead(self.me):
            return True
        now = time.monotonic()
        generation, silent, looked = self._seen.get(key, (b"", 0.0, now))
        silent += min(now - looked, self.patience_secs / 4)
        if generation != version.generation:
            silent = 0.0
        self._seen[key] = version.generation, silent, now
        return silent >= self.patience_secs


def claim(
    ledger: Ledger, key: str, digest: str, version: Version, watch: Watch
) -> Lease | None:
    """Takes a task that `may_start`; None if another launcher was quicker."""
    old = version.record
    same = old is not None and old.digest == digest
    record = Record(
        state="running",
        digest=digest,
        owner=watch.me,
        since=time.time(),
        failures=old.failures if old is not None and same else 0,
        takeovers=old.takeovers + (old.state == "running")
        if old is not None and same
        else 0,
        error=old.error if old is not None and same else "",
    )
    generation = ledger.replace(key, record, version.generation)
    return None if generation is None else Lease(ledger, key, record, generation)


def may_start(
    key: str, digest: str, version: Version, watch: Watch, max_failures: int
) -> bool:
    """Whether a task waits for somebody to run it."""
    record = version.record
    if record is None or record.state == "pending":
        return True
    if record.state == "running":
        return watch.is_abandoned(key, version)
    if record.digest != digest:
        return True
    return record.state == "failed" and record.failures < max_failures


def this_process() -> Owner:
    """Describes the launcher that calls."""
    return Owner(
        socket.gethostname(), _machine(), os.getpid(), _ticks_at_start(os.getpid())
    )


def _machine() -> str:
    """Names the space in which process ids mean something; "" where it has no name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _ticks_at_start(pid: int) -> str:
    try:
        # The name of the program, in brackets, may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _spec(root: str) -> dict[str, str]:
    if root.startswith("gs://"):
        bucket, _, path = root.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{path.rstrip('/')}/"}
    return {"driver": "file", "path": f"{os.path.abspath(root)}/"}


def _parse(key: str, value: bytes) -> Record | None:
    if not value:
        return None
    try:
        fields: dict[str, Any] = json.loads(value)
        return Record(**(fields | {"owner": Owner(**fields["owner"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{key}.json is not a record of this launcher ({error}): delete it, and the "
            "task starts again"
        ) from error
