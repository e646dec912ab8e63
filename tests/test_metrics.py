"""metrics.jsonl survives kills and restarts; rates and durations are what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from copymit import metrics
from copymit.metrics import MetricWriter, Progress, read_metrics
from copymit.storage import FullDiskError


def _write_steps(workdir: Path, first_step: int, steps: range) -> None:
    writer = MetricWriter(epath.Path(workdir), first_step)
    for step in steps:
        writer.write(step, {"loss": 1 / step, "writer": first_step})
    writer.close()


def test_scalars_are_one_json_line_a_step_and_a_tensorboard_event(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), 0)
    writer.write(1, {"loss": 0.5, "grad_norm": 2.0})
    writer.write_image(1, "generations", np.zeros((4, 6, 3), np.uint8))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5, "grad_norm": 2.0}
    ]
    writer.close()
    (events,) = tmp_path.glob("events.*")
    content = events.read_bytes()
    assert b"grad_norm" in content
    assert b"generations" in content


def test_each_line_is_on_disk_before_the_next_step(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), 0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": 0.5})
        assert [row["step"] for row in read_metrics(tmp_path)][-1] == step
    writer.close()


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    _write_steps(tmp_path, 0, range(1, 11))
    _write_steps(tmp_path, 6, range(7, 9))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["writer"] for row in rows] == [0] * 6 + [6] * 2


def test_a_run_from_the_start_drops_everything(tmp_path):
    _write_steps(tmp_path, 0, range(1, 4))
    _write_steps(tmp_path, 0, range(1, 2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize("kept", [0, 1, 12, -1])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path, caplog, kept):
    _write_steps(tmp_path, 0, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    *whole, last = path.read_text().splitlines()
    path.write_text("\n".join([*whole, last[:kept]]))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert ("cut short" in caplog.text) == (kept != 0)
    _write_steps(tmp_path, 2, range(3, 4))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_kill_at_the_restart_does_not_lose_the_history(tmp_path, monkeypatch):
    _write_steps(tmp_path, 0, range(1, 4))

    def write_half_and_die(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", write_half_and_die)
    with pytest.raises(KeyboardInterrupt):
        MetricWriter(epath.Path(tmp_path), 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_full_disk_ends_the_run_and_not_the_thread_of_tensorboard(
    tmp_path, monkeypatch, caplog
):
    workdir = epath.Path(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "Path", lambda _: Path("/dev/full"))
        writer = MetricWriter(workdir, 0)
    for step in range(1, 40):  # more than its queue has room for
        writer.write(step, {"loss": 0.5})
    writer._file = Path("/dev/full").open("ab")  # noqa: SIM115
    with pytest.raises(FullDiskError, match=r"no room for .*metrics\.jsonl"):
        writer.write(40, {"loss": 0.5})
    with pytest.raises(FullDiskError, match=r"no room for .*metrics\.jsonl"):
        writer.close()
    assert caplog.text.count("is not complete: [Errno 28] No space left") == 1


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows what the test sets."""
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_of_the_steps_since_the_last_report(clock):
    progress = Progress(total=100, first_step=20, batch_size=16)
    progress.waited(0.5)
    progress.waited(0.5)
    clock[0] += 4
    assert progress.report(30) == {
        "steps_per_second": 2.5,
        "images_per_second": 40.0,
        "data_wait_share": 0.25,
    }
    clock[0] += 5
    assert progress.report(40) == {
        "steps_per_second": 2.0,
        "images_per_second": 32.0,
        "data_wait_share": 0.0,
    }


def test_the_line_says_where_the_run_stands_and_when_it_will_end(clock):
    progress = Progress(total=1000, first_step=0, batch_size=32)
    clock[0] += 2
    scalars = progress.report(10) | {"loss": 0.12345}
    line = progress.line(10, scalars)
    for part in (
        "step 10/1000",
        "loss 0.1235",
        "5.00 steps/s",
        "160 images/s",
        "ETA 3m18s",
    ):
        assert part in line


def test_a_report_without_progress_has_no_end(clock):
    progress = Progress(total=10, first_step=3, batch_size=1)
    scalars = progress.report(3) | {"loss": 0.0}
    assert scalars["steps_per_second"] == 0
    assert "ETA unknown" in progress.line(3, scalars)
