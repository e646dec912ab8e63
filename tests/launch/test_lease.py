"""Of several launchers one runs a task, and a dead one's task is taken over."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.lease import (
    Ledger,
    Owner,
    Record,
    Watch,
    claim,
    may_start,
    reaching,
    this_process,
)

OTHER = Owner("elsewhere", "another boot", 4711, "99")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


@pytest.fixture
def watch():
    return Watch(this_process(), patience_secs=0.2)


def look(ledger, key="a/task"):
    (version,) = ledger.read([key])
    return version


def take(ledger, watch, key="a/task", digest="d"):
    return claim(ledger, key, digest, look(ledger, key), watch)


def startable(ledger, watch, digest="d", max_failures=2):
    return may_start("a/task", digest, look(ledger), watch, max_failures)


def test_a_task_without_a_record_may_start(ledger, watch):
    assert look(ledger).record is None
    assert startable(ledger, watch)


def test_of_two_who_saw_the_same_record_one_wins(ledger, watch):
    seen = look(ledger)
    first = claim(ledger, "a/task", "d", seen, watch)
    second = claim(ledger, "a/task", "d", seen, Watch(OTHER, 1))
    assert first is not None
    assert second is None
    assert look(ledger).record.owner == watch.me


def _race(root, number, results):
    ledger = Ledger(root)
    me = Watch(this_process()._replace(started=str(number)), 60)
    won = 0
    for task in range(20):
        (version,) = ledger.read([f"t{task}"])
        if version.record is None and claim(ledger, f"t{task}", "d", version, me):
            won += 1
    results.put(won)


def test_processes_that_race_share_the_tasks(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    racers = [
        context.Process(target=_race, args=(tmp_path, i, results)) for i in range(3)
    ]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert sum(won) == 20


def test_a_finished_task_is_done_until_its_command_changes(ledger, watch):
    lease = take(ledger, watch)
    assert lease.beat()
    assert lease.finish(None)
    assert look(ledger).record.state == "done"
    assert not startable(ledger, watch)
    assert startable(ledger, watch, digest="another")


def test_failures_are_counted_and_bounded(ledger, watch):
    for failures in (1, 2):
        assert startable(ledger, watch)
        assert take(ledger, watch).finish("no disk")
        assert look(ledger).record.failures == failures
    assert look(ledger).record.error == "no disk"
    assert not startable(ledger, watch)
    assert startable(ledger, watch, max_failures=3)
    take(ledger, watch, digest="another")
    assert look(ledger).record.failures == 0


def test_a_task_given_back_costs_no_failure(ledger, watch):
    assert take(ledger, watch).release()
    assert look(ledger).record.state == "pending"
    assert look(ledger).record.failures == 0
    assert startable(ledger, watch)


def test_a_launcher_that_shows_life_keeps_its_task(ledger, watch):
    lease = take(ledger, Watch(OTHER, 1))
    for _ in range(4):
        assert not startable(ledger, watch)
        time.sleep(0.1)
        assert lease.beat()
    assert not startable(ledger, watch)


def test_a_silent_launcher_elsewhere_loses_its_task_and_learns_of_it(ledger, watch):
    lost = take(ledger, Watch(OTHER, 1))
    assert not startable(ledger, watch)  # seen for the first time
    for _ in range(6):
        time.sleep(0.05)
        abandoned = startable(ledger, watch)
    assert abandoned
    ours = take(ledger, watch)
    assert look(ledger).record.takeovers == 1
    assert not lost.beat()
    assert not lost.finish(None)
    assert ours.beat()
    assert look(ledger).record.state == "running"


def test_who_could_not_look_does_not_take_silence_for_death(ledger, watch):
    lease = take(ledger, Watch(OTHER, 1))
    assert not startable(ledger, watch)
    time.sleep(0.3)  # the bucket was away, for the owner as well
    assert not startable(ledger, watch)
    assert lease.beat()


def test_a_sign_of_life_that_arrived_after_it_was_given_up_costs_nothing(ledger, watch):
    lease = take(ledger, watch)
    there = look(ledger)
    assert ledger.replace("a/task", there.record._replace(beat=1), there.generation)
    assert lease.finish(None)
    assert look(ledger).record.state == "done"


def test_a_launcher_here_that_is_dead_loses_its_task_at_once(ledger):
    here = this_process()
    patient = Watch(here, patience_secs=1e6)
    code = "import os, sys; sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    owner = Owner(here.host, here.machine, process.pid, stat[19])
    take(ledger, Watch(owner, 1))
    assert not startable(ledger, patient)
    process.kill()
    process.wait()
    assert startable(ledger, patient)


def test_a_process_id_that_was_used_again_is_not_the_launcher():
    here = this_process()
    assert not here.is_dead(here)
    assert here._replace(started="1").is_dead(here)
    assert not here._replace(machine="elsewhere", pid=0).is_dead(here)


def test_a_write_whose_answer_was_lost_still_counts(ledger, watch):
    seen = look(ledger)
    record = Record("running", "d", watch.me, since=time.time())
    assert ledger.replace("a/task", record, seen.generation)
    assert ledger.replace("a/task", record, seen.generation)  # sent again
    assert not ledger.replace("a/task", record._replace(beat=7), seen.generation)


def test_a_damaged_record_is_named_with_the_way_out(ledger, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/task.json").write_text("{")
    with pytest.raises(ValueError, match=r"a/task\.json is not a record .* delete it"):
        look(ledger)


def test_records_are_for_people_too(ledger, watch, tmp_path):
    take(ledger, watch)
    record = json.loads((tmp_path / "a/task.json").read_text())
    assert record["state"] == "running"
    assert record["owner"]["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("root", "raised", "told"),
    [
        ("gs://bucket/sweeps", OSError("503"), ConnectionError),
        ("gs://bucket/sweeps", KeyError("seed"), KeyError),
        ("gs://bucket/sweeps", ValueError("damaged"), ValueError),
        ("/disk/sweeps", PermissionError("no"), PermissionError),
    ],
)
def test_only_a_bucket_is_said_to_be_out_of_reach_and_no_fault_is(root, raised, told):
    with pytest.raises(told), reaching(root):
        raise raised
