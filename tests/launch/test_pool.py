"""Every task of a sweep is finished once, whatever happens to the pools."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from launch import pool
from launch.claims import Claims, Version, Watch
from launch.pool import find_products, standing
from launch.trials import plan, unique_tasks
from tests.launch.fake_sweep import QUICK, make_tasks, make_trials, run_fake

# A pool of its own, as `python -m launch.sweep` would be, with the fake programs.
POOL = """
import sys
from tests.launch.fake_sweep import make_tasks, run_fake
run_fake(make_tasks(), sys.argv[1], num_workers=int(sys.argv[2]), claim_secs=2.0)
"""


@pytest.fixture
def fake_tasks():
    return make_tasks()


def ends(root):
    """Counts how often each command was finished."""
    return Counter(
        (path.parent.name, line)
        for path in Path(root).glob("runs/*/ends")
        for line in path.read_text().split()
    )


def records(root):
    """Reads every record, whole or not at all."""
    found = []
    for path in Path(root).glob("runs/*/launch/*.json"):
        try:
            found.append((path, json.loads(path.read_text())))
        except (ValueError, FileNotFoundError):
            continue  # being replaced
    return found


@pytest.fixture
def start_pool(tmp_path):
    """Starts pools on `tmp_path` that do not outlive the test."""
    started = []

    def start(num_workers):
        words = [sys.executable, "-c", POOL, str(tmp_path), str(num_workers)]
        started.append(subprocess.Popen(words, cwd=Path(__file__).parents[2]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def hold(tmp_path):
    """While it exists, programs begin and do not end."""
    (tmp_path / "hold").touch()
    return tmp_path / "hold"


def wait_until(condition, *pools):
    while not condition():
        assert all(pool.poll() is None for pool in pools), "it has ended"
        time.sleep(0.02)


def test_trainings_come_before_their_evaluations(tmp_path, fake_tasks):
    assert set(run_fake(fake_tasks, tmp_path).values()) == {"done"}
    assert len(ends(tmp_path)) == 24
    assert set(ends(tmp_path).values()) == {1}


def test_what_is_done_is_not_done_again(tmp_path, fake_tasks):
    for _ in range(2):
        run_fake(fake_tasks[:2], tmp_path)
    assert sum(ends(tmp_path).values()) == 2


def test_what_another_engine_has_done_is_not_done_again(tmp_path):
    tasks = make_tasks(1, 1)
    run_fake(tasks, tmp_path)
    for path, _ in records(tmp_path):
        path.unlink()  # another engine writes none
    assert set(run_fake(tasks, tmp_path).values()) == {"done"}
    assert set(ends(tmp_path).values()) == {1}
    # A training is asked again where something waits for it, since only train.py knows
    # whether it has ended.
    (tmp_path / tasks[1].product).unlink()
    assert set(run_fake(tasks, tmp_path).values()) == {"done"}
    assert set(ends(tmp_path).values()) == {2}


def test_evaluations_of_one_training_share_it(tmp_path):
    trial = make_trials(1, 1)[0]
    other = trial._replace(name="more", evaluate={"eval.guidance_scale": 2.0})
    run_fake(unique_tasks([plan(trial), plan(other)]), tmp_path)
    assert sorted(Counter(name for _, name in ends(tmp_path)).values()) == [1, 1, 1]
    assert len({run for run, _ in ends(tmp_path)}) == 1


def test_a_failure_is_tried_again(tmp_path):
    tasks = make_tasks(1, 1, **{"data.on_corrupt": "fail-once"})
    assert set(run_fake(tasks, tmp_path).values()) == {"done"}
    log = next(tmp_path.glob("runs/*/launch/train.log")).read_text()
    assert "the disk is full" in log


def test_a_failure_that_stays_is_given_up_and_its_reason_kept(tmp_path):
    tasks = make_tasks(1, 1, **{"data.on_corrupt": "fail"})
    assert list(run_fake(tasks, tmp_path).values()) == ["failed", "blocked"]
    ((_, record),) = records(tmp_path)
    assert record["attempts"] == 2
    assert record["error"].endswith("error: no such data")
    state = run_fake(tasks, tmp_path, max_attempts=3)
    assert list(state.values()) == ["failed", "blocked"]
    assert records(tmp_path)[0][1]["attempts"] == 3


def test_a_program_that_leaves_nothing_has_failed(tmp_path, fake_tasks):
    silent = lambda task, root: [sys.executable, "-S", "-c", ""]  # noqa: E731
    state = run_fake(fake_tasks[:1], tmp_path, command_of=silent)
    assert set(state.values()) == {"done"}  # a training has no product of one name
    evaluation = fake_tasks[-1]._replace(after=())
    state = run_fake([evaluation], tmp_path, command_of=silent)
    assert set(state.values()) == {"failed"}
    assert any("ended without" in record["error"] for _, record in records(tmp_path))


def test_no_more_run_at_a_time_than_there_are_workers(
    tmp_path, fake_tasks, monkeypatch
):
    free, lock, most = [0, 1, 2], threading.Lock(), []

    def note(self, task, claim, slot):
        with lock:
            number = free.pop()
            most.append(3 - len(free))
        run(self, task, claim, slot)
        with lock:
            free.append(number)

    run = pool.Pool._run_task
    monkeypatch.setattr(pool.Pool, "_run_task", note)
    assert set(run_fake(fake_tasks, tmp_path).values()) == {"done"}
    assert max(most) <= 3


def test_two_pools_of_which_one_is_killed_finish_each_trial_once(tmp_path, start_pool):
    doomed, other = start_pool(1), start_pool(1)
    wait_until(lambda: len(ends(tmp_path)) >= 3, doomed, other)
    (tmp_path / "hold").touch()

    def in_the_middle():
        """Whether a program of the doomed one has begun, and so will not end."""
        return any(
            f" {doomed.pid} " in record["owner"]
            and record["state"] == "running"
            and _count(path.parents[1], "starts") > _count(path.parents[1], "ends")
            for path, record in records(tmp_path)
        )

    wait_until(in_the_middle, doomed)
    doomed.kill()
    doomed.wait()
    (tmp_path / "hold").unlink()
    assert other.wait() == 0
    finished = ends(tmp_path)
    assert len(finished) == 24
    assert set(finished.values()) == {1}
    attempts = Counter(record["attempts"] for _, record in records(tmp_path))
    assert attempts == {1: 23, 2: 1}


def _count(run, name):
    return len((run / name).read_text().split()) if (run / name).exists() else 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends them by itself")
def test_what_a_killed_pool_started_stops_writing(tmp_path, start_pool, hold):
    killed = start_pool(2)
    wait_until(lambda: list(tmp_path.glob("runs/*/starts")), killed)
    children = _children(killed.pid)
    assert children
    killed.kill()
    killed.wait()
    wait_until(lambda: not any(_lives(child) for child in children))


def test_a_pool_that_is_asked_to_stop_gives_its_tasks_back(tmp_path, start_pool, hold):
    stopped = start_pool(2)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/starts"))) == 2, stopped)
    children = _children(stopped.pid)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM
    assert not any(_lives(child) for child in children)
    found = [record for _, record in records(tmp_path)]
    assert [(r["state"], r["attempts"]) for r in found] == [("pending", 0)] * 2


def test_a_task_that_somebody_took_over_is_ended_here(tmp_path, start_pool, hold):
    robbed = start_pool(2)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/starts"))) == 2, robbed)
    thief, taken = Claims(tmp_path), {}
    children = [
        child for child in Path("/proc").glob("[0-9]*") if _is_fake(child, tmp_path)
    ]
    assert len(children) == 2
    while len(taken) < 2:  # between two signs of life
        for path, _ in records(tmp_path):
            key = str(path.relative_to(tmp_path).with_suffix(""))
            if key not in taken and (claim := thief.claim(key, thief.read([key])[key])):
                taken[key] = claim
    wait_until(lambda: not any(_is_fake(child, tmp_path) for child in children))


def test_deaths_of_pools_are_bounded_as_failures_are(tmp_path, fake_tasks):
    tasks = {task.key: task for task in fake_tasks[:1]}
    (key,) = tasks
    for _ in range(QUICK.max_attempts):  # pools that die with the task in hand
        claims = Claims(tmp_path)
        assert claims.claim(key, claims.read([key])[key])
    seconds = [0.0]
    watch = Watch(4, lambda: seconds[0])
    found = []
    for _ in range(6):
        versions = Claims(tmp_path).read(tasks)
        silent = {
            k for k, version in versions.items() if watch.is_abandoned(k, version)
        }
        found += [standing(tasks, versions, (), silent, most)[key] for most in (2, 3)]
        seconds[0] += 1
    assert found[:2] == ["running", "running"]
    assert found[-2:] == ["failed", "silent"]


def test_the_standing_says_what_waits_for_what(tmp_path, fake_tasks):
    tasks = {task.key: task for task in fake_tasks}
    versions = dict.fromkeys(tasks, Version(None, b""))
    assert find_products(tasks, versions, str(tmp_path)) == frozenset()
    states = standing(tasks, versions, (), (), 2)
    assert Counter(states.values()) == {"pending": 12, "waiting": 12}


def test_a_sign_of_life_does_not_wait_for_an_upload(tmp_path, monkeypatch):
    """A log that takes for ever is uploaded after the end of its task is known."""
    monkeypatch.chdir(tmp_path)
    uploading, done = threading.Event(), threading.Event()

    def keep(self, task, log):
        uploading.set()
        assert done.wait(600)

    monkeypatch.setattr(pool.Pool, "_keep_log", keep)
    runner = threading.Thread(target=pool.Pool.run, args=(_pool_of_one(tmp_path),))
    runner.start()
    assert uploading.wait(600)
    ((_, record),) = records(tmp_path)
    assert record["state"] == "done"
    done.set()
    runner.join()


def _pool_of_one(root):
    slots = pool.deal_slots(1, "")
    tasks = make_tasks(1, 1)[:1]
    return pool.Pool(tasks, str(root), QUICK, slots, root, threading.Event())


def test_a_pool_that_cannot_try_is_refused(tmp_path, fake_tasks):
    with pytest.raises(ValueError, match="--max_attempts=0 must be at least 1"):
        run_fake(fake_tasks, tmp_path, max_attempts=0)


def _children(pid):
    """Lists the children of all threads of a process."""
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def _is_fake(process, root):
    """Whether a process is a fake program that writes below `root`, and lives."""
    try:
        words = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"fake_program" in words and str(root).encode() in words


def _lives(pid):
    try:
        os.kill(pid, 0)
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_the_line_that_says_what_went_wrong_is_told():
    said = "step 3/9\nerror: no such data\n(--debug shows where this was found)"
    assert pool.gist(f"exit code 1: {said}") == "error: no such data"
    assert pool.gist("exit code 1: Killed") == "exit code 1: Killed"


def test_when_time_is_up_what_runs_is_given_back(tmp_path, fake_tasks, hold):
    state = run_fake(fake_tasks, tmp_path, minutes=0.01)  # nothing ends meanwhile
    assert set(state.values()) == {"pending", "waiting"}
    assert {record["attempts"] for _, record in records(tmp_path)} <= {0}
    hold.unlink()
    assert set(run_fake(fake_tasks, tmp_path).values()) == {"done"}


def test_no_time_at_all_is_refused(tmp_path, fake_tasks):
    with pytest.raises(ValueError, match=r"--minutes=0 must be above 0"):
        run_fake(fake_tasks, tmp_path, minutes=0)
