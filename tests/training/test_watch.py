"""A process that waits in vain ends, says for what, and shows where it stood."""

import subprocess
import sys
from pathlib import Path

import pytest

from copymit.training import watch
from copymit.training.watch import HangWatch

_HANGS = """
import ctypes, threading
from copymit.training.watch import HangWatch
with HangWatch(0.1) as watch:
    watch.expect("the batch of step 3")
    {hang}
"""


def run(hang):
    return subprocess.run(
        [sys.executable, "-c", _HANGS.format(hang=hang)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_silent_process_ends_and_says_what_it_waited_for_and_what_to_do():
    done = run("threading.Event().wait()")
    assert done.returncode == 75
    line, _, stacks = done.stderr.partition("\n")
    assert line.startswith("error: waited 0.1 s for the batch of step 3: ")
    assert "Run the same command again" in line
    assert "raise train.hang_timeout_seconds" in line
    assert "(most recent call first)" in stacks
    assert 'File "<string>", line 6 in <module>' in stacks


def test_code_that_never_gives_pythons_lock_back_does_not_keep_the_process_alive():
    done = run("ctypes.PyDLL(None).pause()")
    assert done.returncode == 1
    assert 'File "<string>", line 6 in <module>' in done.stderr


@pytest.fixture
def armed(monkeypatch):
    """The limits that were set, in order; None where they were lifted."""
    limits = []
    monkeypatch.setattr(
        watch.faulthandler,
        "dump_traceback_later",
        lambda seconds, exit, file: limits.append(seconds),
    )
    monkeypatch.setattr(
        watch.faulthandler, "cancel_dump_traceback_later", lambda: limits.append(None)
    )
    return limits


def test_progress_starts_the_wait_anew_and_the_end_of_the_run_lifts_it(
    armed, monkeypatch
):
    now = 100.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    with HangWatch(1000) as hang_watch:
        assert armed == [1002]
        now += 0.5
        hang_watch.expect("the batch of step 1")  # so soon after, the old one will do
        assert armed == [1002]
        now += 10
        hang_watch.expect("the batch of step 2")
        assert armed == [1002, 1002]
    assert armed[-1] is None


def test_zero_watches_nothing(armed):
    with HangWatch(0) as hang_watch:
        hang_watch.expect("the batch of step 1")
    assert armed == []
