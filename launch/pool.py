"""Runs the tasks of a sweep on this machine until none is left, beside other pools.

Everything that is known about a task is its record (launch/claims.py) and what its program
leaves; a pool keeps nothing of its own and may be killed and started again at any time.
"""

import concurrent.futures
import contextlib
import logging
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from etils import epath

from copymit.interrupts import deferred, undone
from copymit.project import PROJECT
from launch.claims import Claim, Claims, Version, Watch, reaching
from launch.slots import Slot, deal_slots, tied
from launch.trials import Task, command_of

logger = logging.getLogger(__name__)

_ERROR_BYTES = 2000
_GRACE_SECS = 60  # a training that is told to stop saves a checkpoint first
_BEATS = 5  # signs of life in the time after which a pool counts as dead


class Options(NamedTuple):
    """How tasks are run.

    Attributes:
      num_workers: at a time.
      max_attempts: of a task, after which it is left alone.
      claim_secs: without a sign of life, after which a pool counts as dead.
      poll_secs: between two looks at the records.
      minutes: after which programs are told to save and are given back.
      on_done: called with the keys of all tasks that are done, whenever there are more.
      command_of: (task, root) -> the words that run it.
    """

    num_workers: int = 1
    max_attempts: int = 3
    claim_secs: float = 60.0
    poll_secs: float = 1.0
    minutes: float = math.inf
    on_done: Callable[[frozenset[str]], object] = lambda done: None
    command_of: Callable[[Task, str], Sequence[str]] = command_of


def standing(
    tasks: Mapping[str, Task],
    versions: Mapping[str, Version],
    products: Collection[str],
    silent: Collection[str],
    max_attempts: int,
) -> dict[str, str]:
    """Says of each task: pending, waiting, running, silent, done, failed or blocked.

    What will be tried again is `pending`, or `silent` if its pool died with it; `failed`
    and `blocked` are final. Without a record, a task is done when all that come after it
    are: nothing waits for a training whose evaluations there are.

    Args:
      products: keys of tasks without a record whose product is there.
      silent: keys of running tasks whose pool has died.
    """
    found: dict[str, str] = {}
    for key, task in tasks.items():
        record = versions[key].record
        above = {found[name] for name in task.after}
        if record and record.state == "running" and key not in silent:
            found[key] = "running"
        elif key in products or (record and record.state == "done"):
            found[key] = "done"
        elif record and record.attempts >= max_attempts:
            found[key] = "failed"
        elif key in silent:
            found[key] = "silent"
        elif above & {"failed", "blocked"}:
            found[key] = "blocked"
        else:
            found[key] = "pending" if above <= {"done"} else "waiting"
    after = Counter(key for task in tasks.values() for key in task.after)
    done = Counter(k for t in tasks.values() if found[t.key] == "done" for k in t.after)
    unneeded = [k for k in after & done if after[k] == done[k]]
    return found | {k: "done" for k in unneeded if versions[k].record is None}


def find_products(
    tasks: Mapping[str, Task], versions: Mapping[str, Version], root: str
) -> frozenset[str]:
    """Lists tasks that were finished without a pool, by hand or by another engine."""
    unknown = [t for t in tasks.values() if t.product and not versions[t.key].record]
    paths = [epath.Path(root) / task.product for task in unknown]
    with reaching(root), ThreadPoolExecutor(16) as executor:  # a bucket takes a while
        there = list(executor.map(lambda path: path.exists(), paths))
    return frozenset(t.key for t, exists in zip(unknown, there, strict=True) if exists)


def run_tasks(tasks: Sequence[Task], root: str, options: Options) -> dict[str, str]:
    """Runs tasks until each is done or has failed for good, here or elsewhere.

    Returns:
      The standing of each task at the end.
    Raises:
      SystemExit: after Ctrl-C or SIGTERM, with code 128 + signal; what ran is given back.
      ConnectionError: if the records cannot be reached; what runs here is ended.
      ValueError: for options that cannot be.
    """
    if options.max_attempts < 1:
        raise ValueError(f"--max_attempts={options.max_attempts} must be at least 1")
    if not options.minutes > 0:
        raise ValueError(f"--minutes={options.minutes:g} must be above 0")
    slots = deal_slots(options.num_workers, f"{root}/.jax_cache")
    saying = "programs are told to save, and their tasks given back"
    with (
        tempfile.TemporaryDirectory() as scratch,
        deferred(saying) as stop,
        _after(options.minutes, stop.wished.set),
    ):
        logs = Path(scratch if "://" in root else root)
        pool = Pool(tasks, root, options, slots, logs, stop.wished)
        with undone(pool.kill):
            found = pool.run()
    if stop.code and set(found.values()) != {"done"}:
        raise SystemExit(stop.code)
    return found


class Pool:
    """The tasks, and what runs here: a thread for each program."""

    def __init__(
        self,
        tasks: Sequence[Task],
        root: str,
        options: Options,
        slots: list[Slot],
        logs: Path,
        stop: threading.Event,
    ):
        self._tasks = {task.key: task for task in tasks}
        self._root, self._options, self._logs, self._stop = root, options, logs, stop
        self._free, self._jobs = slots, dict[Future, tuple[str, Slot]]()
        self._processes = set[subprocess.Popen]()
        self._claims, self._watch = Claims(root), Watch(options.claim_secs)
        self._versions = self._claims.read(self._tasks)
        self._products = find_products(self._tasks, self._versions, root)
        self._done: frozenset[str] = frozenset()

    def run(self) -> dict[str, str]:
        """Runs what there is, until `stop`; returns the standing at the end."""
        final = {"done", "failed", "blocked"}
        with ThreadPoolExecutor(self._options.num_workers) as executor:
            try:
                state = self._standing()
                while not self._stop.is_set() and not set(state.values()) <= final:
                    started = self._start_one(state, executor)
                    self._wait(0.0 if started else self._options.poll_secs)
                    open_ = [key for key in state if state[key] != "done"]
                    self._versions |= self._claims.read(open_)
                    state = self._standing()
                if self._jobs:
                    self._end_all(signal.SIGTERM)
            finally:
                self._stop.set()
                self._end_all(signal.SIGKILL)
        self._versions = self._claims.read(self._tasks)
        return self._standing()

    def kill(self) -> None:
        """Kills the programs with all their children, and waits for nothing."""
        for process in list(self._processes):
            _signal(process, signal.SIGKILL)

    def _standing(self) -> dict[str, str]:
        silent = [
            key
            for key, version in self._versions.items()
            if version.record
            and version.record.state == "running"
            and self._watch.is_abandoned(key, version)
        ]
        tries = self._options.max_attempts
        found = standing(self._tasks, self._versions, self._products, silent, tries)
        done = frozenset(key for key, state in found.items() if state == "done")
        if done != self._done:
            self._done = done
            self._options.on_done(done)
        return found

    def _start_one(
        self, state: Mapping[str, str], executor: ThreadPoolExecutor
    ) -> bool:
        """Claims and starts a task, those tried least first, if there is room for it."""
        ours = {key for key, _ in self._jobs.values()}
        waiting = [
            k for k in state if state[k] in ("pending", "silent") and k not in ours
        ]
        for key in sorted(waiting, key=self._attempts) if self._free else ():
            claim = self._claims.claim(key, self._versions[key])
            if claim is None:
                continue  # another pool was quicker
            task, slot = self._tasks[key], self._free.pop(0)
            if state[key] == "silent":
                logger.warning("%s: taken over from a pool that died", task.label)
            self._jobs[executor.submit(self._run_task, task, claim, slot)] = key, slot
            return True
        return False

    def _attempts(self, key: str) -> int:
        record = self._versions[key].record
        return record.attempts if record else 0

    def _wait(self, seconds: float) -> None:
        """Waits for a program to end, for so long; raises what its thread has raised."""
        if not self._jobs:
            self._stop.wait(seconds)
        for future in concurrent.futures.wait(self._jobs, seconds, "FIRST_COMPLETED")[
            0
        ]:
            self._free.append(self._jobs.pop(future)[1])
            future.result()

    def _run_task(self, task: Task, claim: Claim, slot: Slot) -> None:
        """Runs a program to its end and notes how it went; in a thread of its own."""
        log = self._logs / f"{task.key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        logger.info("%s: started", task.label)
        with log.open("ab") as output:
            process = subprocess.Popen(
                tied(self._options.command_of(task, self._root), slot),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=PROJECT,
                env=os.environ | dict(slot.environment),
                start_new_session=True,  # so that Ctrl-C reaches the pool alone
            )
        self._processes.add(process)
        if self._stop.is_set():  # since a moment ago
            _signal(process, signal.SIGTERM)
        try:
            while _runs(process, self._options.claim_secs / _BEATS) and claim.update():
                pass
        finally:
            code = process.poll()
            _signal(process, signal.SIGKILL)  # also what it has left behind
            process.wait()
            self._processes.discard(process)
        if code is None:
            logger.warning("%s: taken over by another pool, ended here", task.label)
        else:
            self._note_end(task, claim, code, log, time.monotonic() - started)
        self._keep_log(task, log)

    def _note_end(
        self, task: Task, claim: Claim, code: int, log: Path, seconds: float
    ) -> None:
        """Writes the end of a program into its record, before anything is uploaded."""
        if self._stop.is_set() and code:
            claim.update(state="pending", attempts=claim.record.attempts - 1)
            return
        error = f"exit code {code}: {_tail(log)}" if code else ""
        product = epath.Path(self._root) / task.product
        with reaching(self._root):
            if not code and task.product and not product.exists():
                error = f"ended without {product}: {_tail(log)}"
        state = "failed" if error else "done"
        if not claim.update(state=state, error=error, seconds=round(seconds, 3)):
            logger.warning("%s: ended here, but belongs to another pool", task.label)
        elif error:
            logger.error("%s: failed, %s", task.label, gist(error))
        else:
            logger.info("%s: done", task.label)

    def _keep_log(self, task: Task, log: Path) -> None:
        """Copies a log beside its record where it was not written there."""
        if "://" in self._root:
            with reaching(self._root):
                (epath.Path(self._root) / f"{task.key}.log").write_bytes(
                    log.read_bytes()
                )

    def _end_all(self, how: signal.Signals) -> None:
        """Ends the programs with all their children, and waits for their threads."""
        for process in list(self._processes):
            _signal(process, how)
        concurrent.futures.wait(self._jobs, _GRACE_SECS)


def _runs(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a program still runs after waiting so long for its end."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _signal(process: subprocess.Popen, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def gist(error: str) -> str:
    """Picks the line of an error that people want: its last that says so, or its last."""
    lines = error.strip().splitlines()
    return next((line for line in reversed(lines) if "rror: " in line), lines[-1])


def _tail(log: Path) -> str:
    """Returns the end of a log; what a program says last is what went wrong."""
    said = log.read_bytes()[-_ERROR_BYTES:].decode("utf-8", errors="replace")
    return said.strip() or "no output"


@contextlib.contextmanager
def _after(minutes: float, call: Callable[[], object]) -> Iterator[None]:
    """Calls it unless it is left earlier."""
    timer = threading.Timer(min(minutes * 60, threading.TIMEOUT_MAX), call)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
