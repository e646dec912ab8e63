"""Paths in buckets, files that are whole or not there, and buckets that are not."""

import time

import pytest
from etils import epath

from copymit import storage
from copymit.storage import (
    GrowingObject,
    absolute,
    check_buckets,
    is_remote,
    write_whole,
)


def test_a_path_in_a_bucket_is_absolute_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run"
    assert str(absolute("run")) == str(tmp_path / "run")
    assert is_remote(epath.Path("gs://bucket/run"))
    assert not is_remote("runs/one")


def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "file")
    write_whole(path, b"old")

    def write_half_and_die(path, data):
        path.open("wb").write(data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", write_half_and_die)
        with pytest.raises(KeyboardInterrupt):
            write_whole(path, b"newer")
    assert path.read_bytes() == b"old"
    write_whole(path, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_growing_object_is_whole_after_every_flush(tmp_path):
    file = GrowingObject(tmp_path / "events", b"a")
    file.write(b"b")
    assert not (tmp_path / "events").exists()
    file.flush()
    assert (tmp_path / "events").read_bytes() == b"ab"
    file.write(b"c")
    file.close()
    assert (tmp_path / "events").read_bytes() == b"abc"


def test_a_refusal_is_left_to_the_next_flush(tmp_path, caplog):
    file = GrowingObject(tmp_path / "missing" / "events", b"a")
    file.flush()
    assert "missing/events is not up to date" in caplog.text
    (tmp_path / "missing").mkdir()
    file.flush()
    assert (tmp_path / "missing" / "events").read_bytes() == b"a"


def test_nothing_is_tried_out_on_disk(tmp_path):
    check_buckets(tmp_path / "run", [str(tmp_path / "absent"), None, 3])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("workdir", "read", "action", "message"),
    [
        ("gs://own/run", [], "_write_and_remove", r"gs://own/run cannot be written to"),
        (
            "runs/one",
            [2, "gs://other/x/y"],
            "_look_into",
            r"gs://other/x/y cannot be read",
        ),
    ],
)
def test_a_refused_bucket_is_named_with_a_way_out(
    workdir, read, action, message, monkeypatch
):
    def refuse(path):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(storage, action, refuse)
    with pytest.raises(ValueError, match=message) as raised:
        check_buckets(workdir, read)
    bucket = "gs://own" if not read else "gs://other"
    assert "PermissionError: Forbidden" in str(raised.value)
    assert f"gcloud storage ls {bucket}`" in str(raised.value)


def test_a_bucket_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(storage, "_PATIENCE_SECS", 0.1)
    monkeypatch.setattr(storage, "_write_and_remove", lambda path: time.sleep(60))
    with pytest.raises(ValueError, match=r"no answer in 0\.1 s"):
        check_buckets("gs://own/run")
