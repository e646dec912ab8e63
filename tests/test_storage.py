"""Paths in buckets, files that are whole or not there, and buckets that are not."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from copymit import storage
from copymit.storage import (
    FullDiskError,
    GrowingObject,
    absolute,
    check_buckets,
    is_remote,
    whole,
    write_whole,
    writing,
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


def test_what_could_not_be_written_leaves_nothing_and_is_named(tmp_path):
    path = epath.Path(tmp_path / "file")

    def write_half(error: OSError) -> None:
        with whole(path) as file:
            file.write_bytes(b"half")
            raise error

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FullDiskError, match=r"no room for .*/file \(No space left"):
        write_half(full)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PermissionError):
        write_half(PermissionError("of another kind"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_above_a_limit_is_a_full_disk(tmp_path):
    """A limit on the sizes of files (ulimit -f) is what a test can set."""
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, sys\n"
            "from etils import epath\n"
            "from copymit.console import explain_bad_input\n"
            "from copymit.storage import write_whole\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "with explain_bad_input(False):\n"
            "    write_whole(epath.Path(sys.argv[1]), bytes(2000))",
            str(tmp_path / "file"),
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    first, *_ = said.stderr.splitlines()
    assert first.startswith(f"error: no room for {tmp_path}/file (File too large). It")
    assert said.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_tensorstores_words_for_a_full_disk_are_known():
    words = "RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]"
    with pytest.raises(FullDiskError, match="checkpoints/3"), writing("checkpoints/3"):
        raise ValueError(words)
    with pytest.raises(ValueError, match="a fault") as e, writing("checkpoints/3"):
        raise ValueError("a fault")
    assert str(e.value) == "a fault"


def test_more_than_the_disk_has_room_for_is_not_begun(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "file")
    monkeypatch.setattr(
        storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=3e6)
    )
    storage.check_room(path, 3_000_000)
    with pytest.raises(FullDiskError, match=r"it takes 3\.5 MB, 3\.0 MB are free"):
        storage.check_room(path, 3_500_000)
    storage.check_room(epath.Path("gs://bucket/file"), 3_500_000)


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
