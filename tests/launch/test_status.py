"""The table of where trials stand is right in each state and fits its terminal."""

import json
import time

import pytest

from launch.claims import Claims
from launch.status import Row, tabulate, to_text
from launch.trials import plan
from tests.launch.fake_sweep import make_plans, make_tasks, make_trials, run_fake


def look(plans, root, max_failures=3):
    return tabulate(plans, str(root), max_failures, 90)


def make_row(name, state, note=""):
    return Row(name, state, "1250/2500", "3m05s", 0.1234, 0.712, note)


def test_status_shows_each_trial_with_its_numbers(tmp_path):
    run_fake(make_tasks(2, 1), tmp_path)
    rows = look(make_plans(2, 1), tmp_path)
    assert {row.state for row in rows} == {"done"}
    assert rows[0].loss == 0.5
    assert rows[0].similarity == 0.51
    text = to_text(rows)
    assert "x1-seed0" in text
    assert text.startswith("2 trials: 2 done")


def test_status_shows_what_runs_and_what_failed(tmp_path):
    trials = make_trials(1, 1, **{"data.on_corrupt": "fail"})
    plans = [plan(trials[0]), *make_plans(1, 1)]
    run_fake(plans[0].tasks[:1], tmp_path, max_attempts=1)
    workdir = tmp_path / plans[1].tasks[0].workdir
    (workdir / "launch").mkdir(parents=True)
    (workdir / "config.json").write_text('{"config": {"train": {"steps": 90}}}')
    metrics = {"step": 30, "loss": 0.25, "steps_per_second": 2.0}
    (workdir / "metrics.jsonl").write_text(json.dumps(metrics) + '\n{"step": 3')
    record = {"state": "running", "owner": "pod 7 x", "seen": time.time() - 25}
    (workdir / "launch/train.json").write_text(json.dumps(record))
    failed, running = look(plans, tmp_path, 1)
    assert failed.state == "failed"
    assert failed.note == "train failed 1x: exit code 1: error: no such data"
    assert running[1:6] == ("training", "30/90", "30s", 0.25, None)
    assert running.note.startswith("on pod, process 7, sign of life 2")


def test_status_tells_trained_from_not_begun(tmp_path):
    plans = make_plans(2, 1)
    run_fake(plans[0].tasks[:1], tmp_path)
    states = [row.state for row in look(plans, tmp_path, 1)]
    assert states == ["trained", "pending"]
    for path in tmp_path.glob("runs/*/launch/*.json"):
        path.unlink()  # as if another engine had run it
    states = [row.state for row in look(plans, tmp_path, 1)]
    assert states == ["begun", "pending"]


def test_status_of_a_sweep_that_was_never_started_is_all_pending(tmp_path):
    rows = look(make_plans(), tmp_path / "new")
    assert {row.state for row in rows} == {"pending"}


def test_a_pool_that_is_silent_is_noticed_after_a_while_and_given_up(tmp_path):
    (made,) = make_plans(1, 1)
    key = made.tasks[0].key
    for attempts in (1, 2):
        claims = Claims(tmp_path)
        claims.claim(key, claims.read([key])[key])
        assert look([made], tmp_path, 2)[0].state == "training"
        (row,) = tabulate([made], str(tmp_path), 2, -1.0)
        assert row.state == ("abandoned" if attempts == 1 else "failed")
        assert "died" in row.note


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_table_fits_a_terminal_and_tells_the_seeds_apart(columns):
    name = "mitigation-prompt-optimised-to-6_when-inference_prompts-trigger_seed-"
    note = "on a-host-of-a-long-name.us-central1-a.c.project.internal, process 12345"
    rows = [make_row(f"{name}{i}", "evaluating", note) for i in range(3)]
    text = to_text(rows, columns)
    assert max(map(len, text.splitlines())) <= columns
    whole = text.replace("\n", "").replace(" ", "")
    assert [f"seed-{i}" in whole for i in range(3)] == [True] * 3
    assert text.count("1250/2500  3m05s  0.1234  0.712") == 3


def test_what_runs_and_what_failed_comes_first():
    rows = [
        make_row("d", "done"),
        make_row("bad", "failed"),
        make_row("new", "training"),
    ]
    first, _, *lines = to_text(rows).splitlines()
    assert first == "3 trials: 1 training, 1 failed, 1 done"
    assert [line.split()[0] for line in lines] == ["new", "bad", "d"]
