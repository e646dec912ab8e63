"""The table of where trials stand is right in each state, fits its terminal, and lives."""

import json

import pytest

from launch import status
from launch.lease import Ledger, Owner, Watch, claim, this_process
from launch.status import Row, show, tabulate, to_text
from launch.trials import plan
from launch.worker import Options, work
from tests.launch.fake_sweep import make_backend, make_plans, make_tasks, make_trials


def look(plans, root, max_failures=3):
    return tabulate(plans, str(root), max_failures, Watch(this_process(), 90))


def make_row(name, state, note=""):
    return Row(name, state, "1250/2500", "3m05s", 0.1234, 0.712, note)


def test_status_shows_each_trial_with_its_numbers(tmp_path):
    tasks, backend = make_tasks(2, 1), make_backend(tmp_path)
    work(tasks, str(tmp_path), Watch(this_process(), 5.0), backend, Options(3))
    rows = look(make_plans(2, 1), tmp_path)
    assert {row.state for row in rows} == {"done"}
    assert rows[0].loss == 0.5
    assert rows[0].similarity == 0.51
    text = to_text(rows)
    assert "x1-seed0" in text
    assert text.endswith("2 trials: 2 done")


def test_status_shows_what_runs_and_what_failed(tmp_path):
    trials = make_trials(1, 1, **{"data.on_corrupt": "fail"})
    plans = [plan(trials[0]), *make_plans(1, 1)]
    watch = Watch(this_process(), 5.0)
    failing = plans[0].tasks[:1]
    work(failing, str(tmp_path), watch, make_backend(tmp_path), Options(1, 1, 0.02, 1))
    workdir = tmp_path / plans[1].tasks[0].workdir
    (workdir / "launch").mkdir(parents=True)
    (workdir / "config.json").write_text('{"config": {"train": {"steps": 90}}}')
    metrics = {"step": 30, "loss": 0.25, "steps_per_second": 2.0}
    (workdir / "metrics.jsonl").write_text(json.dumps(metrics) + '\n{"step": 3')
    record = {
        "state": "running",
        "digest": "",
        "owner": {"host": "pod", "machine": "", "pid": 7, "started": ""},
    }
    (workdir / "launch/train.json").write_text(json.dumps(record))
    failed, running = look(plans, tmp_path, 1)
    assert failed.state == "failed"
    assert failed.note == "train failed 1x: exit code 1: error: no such data"
    assert running[1:6] == ("training", "30/90", "30s", 0.25, None)
    assert running.note == "on pod, process 7"


def test_status_tells_trained_from_not_begun(tmp_path):
    plans = make_plans(2, 1)
    watch = Watch(this_process(), 5.0)
    trained = plans[0].tasks[:1]
    work(trained, str(tmp_path), watch, make_backend(tmp_path), Options(1, 1, 0.02, 1))
    assert [row.state for row in look(plans, tmp_path, 1)] == [
        "trained",
        "pending",
    ]


def test_status_of_a_sweep_that_was_never_started_is_all_pending(tmp_path):
    rows = look(make_plans(), tmp_path / "new")
    assert {row.state for row in rows} == {"pending"}


def test_a_launcher_that_died_is_not_shown_as_working(tmp_path):
    (made,) = make_plans(1, 1)
    ledger, me = Ledger(tmp_path), this_process()
    (version,) = ledger.read([made.tasks[0].key])
    dead = Watch(me._replace(started="1"), 90)
    assert claim(ledger, made.tasks[0].key, "d", version, dead)
    (row,) = look([made], tmp_path)
    assert row.state == "abandoned"
    assert f"train on {me.host}, process {me.pid}, which died" in row.note


def test_a_launcher_elsewhere_that_is_silent_is_noticed_after_a_while(tmp_path):
    (made,) = make_plans(1, 1)
    ledger, watch = Ledger(tmp_path), Watch(this_process(), 0.0)
    (version,) = ledger.read([made.tasks[0].key])
    elsewhere = Watch(Owner("pod", "x", 1, "1"), 90)
    assert claim(ledger, made.tasks[0].key, "d", version, elsewhere)
    assert look([made], tmp_path)[0].state == "training"
    (row,) = tabulate([made], str(tmp_path), 3, watch)
    assert row.state == "abandoned"


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_the_table_fits_a_terminal_and_tells_the_seeds_apart(columns):
    name = "mitigation-prompt-optimised-to-6_when-inference_prompts-trigger_seed-"
    note = "on a-host-of-a-long-name.us-central1-a.c.project.internal, process 12345"
    rows = [make_row(f"{name}{i}", "evaluating", note) for i in range(3)]
    lines = to_text(rows, columns).splitlines()
    assert max(map(len, lines)) <= columns
    names = [line.split()[0] for line in lines[1:-1:2]]
    assert [shown[-6:] for shown in names] == ["seed-0", "seed-1", "seed-2"]
    assert all("1250/2500  3m05s  0.1234  0.712" in line for line in lines[1:-1:2])


def test_what_runs_and_what_failed_comes_first_where_not_all_fits():
    rows = [make_row(f"d{i}", "done") for i in range(50)]
    rows += [make_row("bad", "failed", "train failed 3x: no disk")]
    rows += [make_row("new", "training", "on pod, process 7")]
    lines = to_text(rows, 80, 12).splitlines()
    assert len(lines) <= 12
    assert [line.split()[0] for line in lines[1:6]] == [
        "new",
        "on",
        "bad",
        "train",
        "d0",
    ]
    assert lines[-1] == "52 trials: 50 done, 1 failed, 1 training"
    assert lines[-2] == "and more"
    assert to_text(rows, 80, 99).splitlines()[1].startswith("d0")


def let_live(monkeypatch, capsys, *tables):
    """Shows the table at a terminal while it becomes these; returns each screen."""
    left = iter(tables)

    def tabulate(*_):
        table = next(left)
        if isinstance(table, BaseException):
            raise table
        return table

    monkeypatch.setattr(status, "tabulate", tabulate)
    monkeypatch.setattr(status, "_REFRESH_SECS", 0.0)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show([], "root", 3, Watch(this_process(), 90))
    assert next(left, None) is None
    return capsys.readouterr().out.split("\033[H\033[J")[1:]


def test_at_a_terminal_the_table_is_shown_again_until_all_is_done(monkeypatch, capsys):
    running = [make_row("a", "training"), make_row("b", "pending")]
    away = ConnectionError("gs://b/sweep cannot be reached: no answer")
    ended = [make_row("a", "done"), make_row("b", "failed")]
    screens = let_live(monkeypatch, capsys, running, away, ended)
    assert "2 trials: 1 training, 1 pending" in screens[0]
    assert screens[1].startswith(screens[0].rstrip())
    assert "no answer; trying again" in screens[1]
    assert "2 trials: 1 done, 1 failed" in screens[2]


def test_the_live_table_ends_quietly_at_ctrl_c(monkeypatch, capsys):
    running = [make_row("a", "training")]
    assert len(let_live(monkeypatch, capsys, running, KeyboardInterrupt())) == 1


def test_elsewhere_the_table_is_printed_once_in_full(tmp_path, capsys):
    show(make_plans(2, 1), str(tmp_path), 3, Watch(this_process(), 90))
    assert capsys.readouterr().out.splitlines()[-1] == "2 trials: 2 pending"
