"""Every task of a sweep is finished once, whatever happens to the launchers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.backends import Command
from launch.lease import Ledger, Owner, Watch, claim, this_process
from launch.trials import digest_of, plan, unique_tasks
from launch.worker import Options, standing, work
from tests.launch.fake_sweep import make_backend, make_tasks, make_trials

QUICK = Options(num_workers=3, max_failures=2, poll_secs=0.02, beat_secs=0.1)
# A launcher of its own, as `python -m launch.sweep` would be, with the fake programs.
LAUNCHER = """
import sys
from launch.lease import Watch, this_process
from launch.worker import Options, work
from tests.launch.fake_sweep import make_backend, make_tasks
root, warmup, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tasks = make_tasks(**{"train.warmup_steps": warmup})
options = Options(workers, 2, 0.02, 0.1)
print(work(tasks, root, Watch(this_process(), 1.0), make_backend(root), options))
"""


@pytest.fixture
def fake_tasks():
    return make_tasks()


@pytest.fixture
def fake_backend(tmp_path):
    return make_backend(tmp_path)


def watch(patience=5.0):
    return Watch(this_process(), patience)


def ends(root):
    """Counts how often each command was finished."""
    return Counter(
        (path.parent.name, line)
        for path in Path(root).glob("runs/*/ends")
        for line in path.read_text().split()
    )


def start_launcher(root, warmup, workers=2):
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(root), str(warmup), str(workers)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
    )


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_trainings_come_before_their_evaluations(tmp_path, fake_tasks, fake_backend):
    state = work(fake_tasks, str(tmp_path), watch(), fake_backend, QUICK)
    assert set(state.values()) == {"done"}
    assert len(ends(tmp_path)) == 24
    assert set(ends(tmp_path).values()) == {1}


def test_what_is_done_is_not_done_again(tmp_path, fake_tasks, fake_backend):
    for _ in range(2):
        work(fake_tasks[:2], str(tmp_path), watch(), fake_backend, QUICK)
    assert sum(ends(tmp_path).values()) == 2


def test_evaluations_of_one_training_share_it(tmp_path, fake_backend):
    trial = make_trials(1, 1)[0]
    other = trial._replace(name="more", evaluate={"eval.guidance_scale": 2.0})
    tasks = unique_tasks([plan(trial), plan(other)])
    work(tasks, str(tmp_path), watch(), fake_backend, QUICK)
    assert sorted(Counter(name for _, name in ends(tmp_path)).values()) == [1, 1, 1]
    assert len({run for run, _ in ends(tmp_path)}) == 1


def test_an_evaluation_is_done_again_after_a_setting_of_it_changed(
    tmp_path, fake_tasks, fake_backend
):
    task = fake_tasks[0]
    work([task], str(tmp_path), watch(), fake_backend, QUICK)
    changed = task._replace(arguments=(*task.arguments, "--config.seed=9"))
    work([changed], str(tmp_path), watch(), fake_backend, QUICK)
    assert sum(ends(tmp_path).values()) == 2


def test_a_failure_is_tried_again(tmp_path, fake_backend):
    tasks = make_tasks(1, 1, **{"data.on_corrupt": "fail-once"})
    state = work(tasks, str(tmp_path), watch(), fake_backend, QUICK)
    assert set(state.values()) == {"done"}
    log = next(tmp_path.glob("runs/*/launch/train.log")).read_text()
    assert "the disk is full" in log


def test_a_failure_that_stays_is_given_up_and_its_reason_kept(tmp_path, fake_backend):
    tasks = make_tasks(1, 1, **{"data.on_corrupt": "fail"})
    state = work(tasks, str(tmp_path), watch(), fake_backend, QUICK)
    assert list(state.values()) == ["failed", "blocked"]
    (version,) = Ledger(tmp_path).read([tasks[0].key])
    assert version.record.failures == 2
    assert version.record.error.endswith("error: no such data")


def test_a_program_that_leaves_nothing_has_failed(tmp_path, fake_tasks):
    silent = lambda task, slot: Command((sys.executable, "-S", "-c", ""), {})  # noqa: E731
    state = work(fake_tasks[:1], str(tmp_path), watch(), silent, QUICK)
    assert set(state.values()) == {"done"}  # a training has no product of one name
    evaluation = fake_tasks[-1]._replace(after=())
    state = work([evaluation], str(tmp_path), watch(), silent, QUICK)
    assert set(state.values()) == {"failed"}
    (version,) = Ledger(tmp_path).read([evaluation.key])
    assert "ended without" in version.record.error


def test_no_more_run_at_a_time_than_there_are_slots(tmp_path, fake_tasks, fake_backend):
    slots = []

    def note(task, slot):
        slots.append(slot)
        return fake_backend(task, slot)

    work(fake_tasks[:6], str(tmp_path), watch(), note, QUICK)
    assert set(slots) <= {0, 1, 2}


def test_two_launchers_of_which_one_is_killed_finish_each_trial_once(tmp_path):
    launchers = [start_launcher(tmp_path, 300, workers=1) for _ in range(2)]
    doomed, other = launchers

    def in_the_middle():
        """Whether the doomed one's program has begun, a moment ago, and not ended."""
        for path in tmp_path.glob("runs/*/launch/train.json"):
            text = path.read_text()
            if f'"pid": {doomed.pid},' in text and '"running"' in text:
                run = path.parents[1]
                return (run / "starts").exists() and not (run / "ends").exists()
        return False

    wait_until(lambda: len(ends(tmp_path)) >= 3 and in_the_middle())
    doomed.kill()
    doomed.wait()
    assert other.wait(timeout=120) == 0
    finished = ends(tmp_path)
    assert len(finished) == 24
    assert set(finished.values()) == {1}
    records = [p.read_text() for p in tmp_path.glob("runs/*/launch/*.json")]
    assert sum('"takeovers": 1' in record for record in records) == 1
    assert sum(f'"pid": {doomed.pid},' in record for record in records) >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends them by itself")
def test_what_a_killed_launcher_started_stops_writing(tmp_path):
    launcher = start_launcher(tmp_path, 60_000)
    wait_until(lambda: list(tmp_path.glob("runs/*/starts")))
    children = _children(launcher.pid)
    assert children
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(_lives(child) for child in children), 10)


def test_a_launcher_that_is_asked_to_stop_gives_its_tasks_back(tmp_path):
    launcher = start_launcher(tmp_path, 60_000)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/starts"))) == 2)
    children = _children(launcher.pid)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=30) == 0
    assert not any(_lives(child) for child in children)
    records = [p.read_text() for p in tmp_path.glob("runs/*/launch/*.json")]
    assert len(records) == 2
    assert all('"pending"' in r and '"failures": 0' in r for r in records)


def test_a_task_that_somebody_took_over_is_ended_here(tmp_path):
    launcher = start_launcher(tmp_path, 60_000)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/starts"))) == 2)
    children = _children(launcher.pid)
    ledger = Ledger(tmp_path)
    tasks = {task.key: task for task in make_tasks(**{"train.warmup_steps": 60_000})}
    thief = Watch(Owner("elsewhere", "x", 1, "1"), 0.0)
    taken = 0
    while taken < 2:  # between two signs of life
        for key in list(tasks)[:2]:
            (version,) = ledger.read([key])
            if version.record.owner == thief.me:
                continue
            lease = claim(ledger, key, digest_of(tasks[key], tasks), version, thief)
            taken += lease is not None
    wait_until(lambda: not any(_lives(child) for child in children), 10)
    launcher.kill()
    launcher.wait()


def test_the_standing_says_what_waits_for_what(tmp_path, fake_tasks):
    tasks = {task.key: task for task in fake_tasks}
    versions = dict(zip(tasks, Ledger(tmp_path).read(list(tasks)), strict=True))
    states = standing(tasks, versions, 2)
    assert Counter(states.values()) == {"pending": 12, "waiting": 12}


def _children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _lives(pid):
    try:
        os.kill(pid, 0)
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
