"""Runs the tasks of a sweep until none is left, beside other launchers that do the same.

Everything that is known about a task is its record (launch/lease.py); a launcher keeps
nothing of its own and may be killed and started again at any time.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from etils import epath

from launch.backends import Backend
from launch.lease import Lease, Ledger, Version, Watch, claim, may_start, reaching
from launch.trials import PROJECT, Task, digest_of

logger = logging.getLogger(__name__)

_ERROR_CHARACTERS = 2000
_GRACE_SECS = 60  # a training that is told to stop saves a checkpoint first


class Options(NamedTuple):
    """How tasks are run.

    Attributes:
      num_workers: at a time.
      max_failures: of a task, after which it is left alone.
      poll_secs: between two looks at everything.
      beat_secs: between two signs of life; a fraction of the patience of a `Watch`.
    """

    num_workers: int = 1
    max_failures: int = 3
    poll_secs: float = 1.0
    beat_secs: float = 15.0


class Site(NamedTuple):
    """Where a launcher works and with what.

    Attributes:
      root: directory of the sweep.
      logs: directory for output that cannot be written into `root` as it comes.
    """

    root: str
    logs: str
    ledger: Ledger
    watch: Watch
    backend: Backend
    options: Options


class Job(NamedTuple):
    """A task that runs here."""

    task: Task
    lease: Lease
    process: subprocess.Popen
    slot: int
    log: Path


def standing(
    tasks: Mapping[str, Task], versions: Mapping[str, Version], max_failures: int
) -> dict[str, str]:
    """Says of each task: pending, waiting, running, done, failed or blocked.

    `failed` and `blocked` are final; a failure that will be tried again is `pending`.
    """
    found: dict[str, str] = {}
    for key, task in tasks.items():
        record = versions[key].record
        above = [found[name] for name in task.after]
        current = record is not None and record.digest == digest_of(task, tasks)
        if record is not None and record.state == "running":
            found[key] = "running"
        elif record is not None and current and record.state == "done":
            found[key] = "done"
        elif {"failed", "blocked"} & set(above):
            found[key] = "blocked"
        elif record is not None and current and record.failures >= max_failures:
            found[key] = "failed"
        else:
            found[key] = "pending" if set(above) <= {"done"} else "waiting"
    return found


def work(
    tasks: Sequence[Task],
    root: str,
    watch: Watch,
    backend: Backend,
    options: Options,
) -> dict[str, str]:
    """Runs tasks until each is done or has failed for good, here or elsewhere.

    Returns:
      The standing of each task at the end.
    """
    by_key = {task.key: task for task in tasks}
    ledger = Ledger(root)
    versions = _read(ledger, list(by_key))
    jobs: list[Job] = []
    reached = False
    last_beat = last_answer = time.monotonic()
    with _stop_requests() as stopped, tempfile.TemporaryDirectory() as logs:
        site = Site(root, logs, ledger, watch, backend, options)
        try:
            while not stopped():
                state = standing(by_key, versions, options.max_failures)
                if not jobs and _nothing_left(state):
                    return state
                try:
                    job = _start_one(by_key, state, versions, jobs, site)
                except ConnectionError as error:
                    if not reached:
                        raise  # nothing is lost, and somebody looks on
                    logger.warning("%s; trying again", error)
                    job = None
                reached = reached or job is not None
                jobs += [job] if job else []
                time.sleep(0 if job else options.poll_secs)
                jobs = [job for job in jobs if not _ended(job, site)]
                now = time.monotonic()
                if now - last_beat >= options.beat_secs:
                    jobs = [job for job in jobs if _beats(job)]
                    last_beat = now
                try:
                    unfinished = [key for key in state if state[key] != "done"]
                    versions |= _read(ledger, unfinished)
                    last_answer = now
                except ConnectionError as error:
                    if now - last_answer > watch.patience_secs:
                        raise  # by now somebody else may have taken our tasks over
                    logger.warning("%s; trying again", error)
            logger.warning("stopping: what runs here is told to save, and given back")
            _give_back(jobs, site)
        finally:
            _stop(jobs, signal.SIGKILL)
    return standing(by_key, _read(ledger, list(by_key)), options.max_failures)


def _nothing_left(state: Mapping[str, str]) -> bool:
    return not {"pending", "waiting", "running"} & set(state.values())


def _read(ledger: Ledger, keys: list[str]) -> dict[str, Version]:
    return dict(zip(keys, ledger.read(keys), strict=True))


def _start_one(
    tasks: Mapping[str, Task],
    state: Mapping[str, str],
    versions: Mapping[str, Version],
    jobs: Sequence[Job],
    site: Site,
) -> Job | None:
    """Claims and starts a task, if there is one and room for it."""
    free = set(range(site.options.num_workers)) - {job.slot for job in jobs}
    if not free:
        return None
    ours = {job.task.key for job in jobs}
    candidates = [
        k for k in tasks if state[k] in ("pending", "running") and k not in ours
    ]
    for key in sorted(candidates, key=lambda k: _failures(versions[k])):
        digest, version = digest_of(tasks[key], tasks), versions[key]
        if not may_start(key, digest, version, site.watch, site.options.max_failures):
            continue
        lease = claim(site.ledger, key, digest, version, site.watch)
        if lease is None:
            continue  # another launcher was quicker
        if version.record is not None and version.record.state == "running":
            logger.warning("%s: taken over from a launcher that died", tasks[key].label)
        return _start(tasks[key], lease, min(free), site)
    return None


def _failures(version: Version) -> int:
    return 0 if version.record is None else version.record.failures


def _start(task: Task, lease: Lease, slot: int, site: Site) -> Job:
    command = site.backend(task, slot)
    log = Path(site.logs if _is_remote(site) else site.root) / f"{task.key}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cores = ",".join(map(str, command.cores))
    tied = [sys.executable, "-m", "launch.child", f"--parent={os.getpid()}"]
    tied += [f"--cores={cores}"] if cores else []
    logger.info("%s: started", task.label)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*tied, "--", *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=os.environ | dict(command.environment),
            start_new_session=True,  # so that Ctrl-C reaches the launcher alone
        )
    return Job(task, lease, process, slot, log)


def _ended(job: Job, site: Site) -> bool:
    """Notes the end of a job that has ended; says whether it has."""
    code = job.process.poll()
    if code is None:
        return False
    try:
        error = _error_of(job, code, site)
        _keep_log(job, site)
        ours = job.lease.finish(error)
    except ConnectionError as failure:
        logger.warning("%s: %s; trying again", job.task.label, failure)
        return False
    if not ours:
        logger.warning(
            "%s: ended here, but belongs to another launcher", job.task.label
        )
    elif error:
        logger.error("%s: failed, %s", job.task.label, error.splitlines()[-1])
    else:
        logger.info("%s: done", job.task.label)
    return True


def _error_of(job: Job, code: int, site: Site) -> str | None:
    """Says why an ended job has failed, or None.

    Raises:
      ConnectionError: if the bucket cannot be reached.
    """
    if code:
        return f"exit code {code}: {_tail(job.log)}"
    product = epath.Path(site.root) / job.task.product
    with reaching(site.root):
        if job.task.product and not product.exists():
            return f"ended without {product}: {_tail(job.log)}"
    return None


def _beats(job: Job) -> bool:
    """Gives a sign of life for a job; ends it if it is no longer ours."""
    try:
        if job.lease.beat():
            return True
    except ConnectionError as error:
        logger.warning("%s: %s", job.task.label, error)
        return True  # the loop gives up when this lasts
    logger.warning("%s: taken over by another launcher, ended here", job.task.label)
    _stop([job], signal.SIGKILL)
    return False


def _stop(jobs: Sequence[Job], how: signal.Signals) -> None:
    """Ends jobs with all their children, and waits until they have ended."""
    for job in jobs:
        _signal(job, how)
    deadline = time.monotonic() + _GRACE_SECS
    for job in jobs:
        try:
            job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(job, signal.SIGKILL)
            job.process.wait()


def _give_back(jobs: Sequence[Job], site: Site) -> None:
    """Ends jobs so that they can go on elsewhere."""
    _stop(jobs, signal.SIGTERM)
    for job in jobs:
        try:
            job.lease.release()
            _keep_log(job, site)
        except ConnectionError as error:
            logger.warning("%s: %s", job.task.label, error)


def _signal(job: Job, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, how)


def _tail(log: Path) -> str:
    """Returns the end of a log; what a program says last is what went wrong."""
    with log.open("rb") as file:
        return _last_characters(file).strip() or "no output"


def _last_characters(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ERROR_CHARACTERS))
    return file.read().decode("utf-8", errors="replace")


def _is_remote(site: Site) -> bool:
    return "://" in site.root


def _keep_log(job: Job, site: Site) -> None:
    """Copies a log beside its record where it was not written there."""
    if _is_remote(site):
        path = epath.Path(site.root) / f"{job.task.key}.log"
        with reaching(site.root):
            path.write_bytes(job.log.read_bytes())


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or Ctrl-C came; a second one kills."""
    received: list[int] = []

    def note(number: int, _) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
