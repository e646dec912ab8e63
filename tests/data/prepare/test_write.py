"""Writing a prepared data set: all of it, a part, in spite of kills and bad images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from copymit.data.folder_source import FolderSource
from copymit.data.prepare import layout
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource
from copymit.data.sources import load_source

ROOT = Path(__file__).parents[3]


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("shard_bytes", [1, 2500, 2**20])
def test_all_examples_come_back_as_they_were(folder, tmp_path, shard_bytes):
    source = FolderSource(folder)
    settings = Settings(shard_bytes=shard_bytes)
    summary = write_data_set(source, tmp_path / "out", settings)
    prepared = load_source(str(tmp_path / "out"))
    assert isinstance(prepared, RecordSource)
    assert (summary.num_examples, list(summary.skipped)) == (12, [])
    assert list(prepared.example_ids) == list(source.example_ids)
    assert prepared.class_names == source.class_names == ("cats", "dogs")
    np.testing.assert_array_equal(prepared.labels, source.labels)
    np.testing.assert_array_equal(prepared.caption_counts, source.caption_counts)
    assert [prepared[i] for i in range(12)] == [source[i] for i in range(12)]
    num_shards = len(list((tmp_path / "out").glob("*array_record*")))
    assert num_shards == {1: 12, 2500: 4, 2**20: 1}[shard_bytes]
    assert not (tmp_path / "out" / "incomplete").exists()


def test_a_part_is_drawn_at_random_and_the_smaller_lies_in_the_larger(folder, tmp_path):
    def draw(num_examples, seed):
        output = tmp_path / f"{num_examples}-{seed}"
        settings = Settings(num_examples=num_examples, seed=seed)
        write_data_set(FolderSource(folder), output, settings)
        return list(RecordSource(output).example_ids)

    five, eight, other = draw(5, 0), draw(8, 0), draw(5, 1)
    assert (len(five), len(eight)) == (5, 8)
    assert set(five) < set(eight)
    assert five == sorted(five)
    assert set(other) != set(five)


def test_bad_images_are_replaced_by_others_and_listed(folder, tmp_path):
    for name in ("cats/01.png", "dogs/04.png", "dogs/06.png"):
        (folder / name).write_bytes(b"nothing")
    settings = Settings(num_examples=9, on_corrupt="skip", shard_bytes=1500)
    summary = write_data_set(FolderSource(folder), tmp_path / "out", settings)
    prepared = RecordSource(tmp_path / "out")
    bad = {"cats/01.png", "dogs/04.png", "dogs/06.png"}
    assert set(prepared.example_ids) == set(FolderSource(folder).example_ids) - bad
    listing = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert [(entry["example_id"], entry["reason"]) for entry in listing] == list(
        summary.skipped
    )
    assert {entry["example_id"] for entry in listing} == bad
    assert all("not a readable" in entry["reason"] for entry in listing)
    again = write_data_set(FolderSource(folder), tmp_path / "out", settings)
    assert again == summary


def test_too_few_good_images_are_counted(folder, tmp_path):
    (folder / "cats/01.png").write_bytes(b"nothing")
    settings = Settings(num_examples=12, on_corrupt="skip")
    with pytest.raises(ValueError, match=r"12 .* of 12 only 11 are good \(1 skipped\)"):
        write_data_set(FolderSource(folder), tmp_path / "a", settings)
    with pytest.raises(ValueError, match="13 examples are wanted, but of 12 only 12"):
        write_data_set(FolderSource(folder), tmp_path / "b", Settings(num_examples=13))
    with pytest.raises(FileNotFoundError, match="no whole prepared data set"):
        load_source(str(tmp_path / "a"))


def test_a_run_that_stopped_at_a_bad_image_can_go_on_without_it(folder, tmp_path):
    (folder / "dogs/06.png").write_bytes(b"nothing")
    source = FolderSource(folder)
    stop, skip = (Settings(on_corrupt=o, shard_bytes=1500) for o in ("stop", "skip"))
    with pytest.raises(ValueError, match=r"'dogs/06\.png' is not .*on_corrupt=skip"):
        write_data_set(source, tmp_path / "out", stop)
    write_data_set(source, tmp_path / "out", skip)
    write_data_set(source, tmp_path / "at once", skip)
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_another_data_set_is_not_written_into_a_folder(folder, tmp_path):
    source = FolderSource(folder)
    write_data_set(source, tmp_path / "out", Settings())
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        write_data_set(source, tmp_path / "out", Settings(seed=1))
    (folder / "cats/01.png").unlink()
    with pytest.raises(ValueError, match="source_sha256"):
        write_data_set(FolderSource(folder), tmp_path / "out", Settings())
    with pytest.raises(ValueError, match="is not empty"):
        write_data_set(source, folder, Settings())


def test_ids_that_occur_twice_are_named(folder, tmp_path):
    source = FolderSource(folder)
    source.example_ids = [*source.example_ids[:-1], "cats/01.png"]
    with pytest.raises(ValueError, match=r"1 ids occur twice.*'cats/01\.png'"):
        write_data_set(source, tmp_path / "out", Settings())


@pytest.mark.parametrize(
    "wrong", [{"num_examples": 0}, {"seed": -1}, {"on_corrupt": "x"}, {"min_side": 0}]
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_interrupted_after_any_shard_the_bytes_are_the_same(
    tmp_path, noise, monkeypatch
):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(16):
        (folder / f"{i:02d}.png").write_bytes(b"bad" if i % 12 == 5 else noise(i))
    source = FolderSource(folder)
    # Of the 13 drawn first one is bad, so that a round ends before enough are good.
    settings = Settings(num_examples=13, on_corrupt="skip", shard_bytes=1)
    write_data_set(source, tmp_path / "at once", settings)
    write_shard = layout.write_shard

    def interrupted(folder, number, *rest):
        if number == last:
            raise KeyboardInterrupt
        return write_shard(folder, number, *rest)

    for last in range(13):
        output = tmp_path / f"interrupted before {last}"
        monkeypatch.setattr(layout, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_data_set(source, output, settings)
        monkeypatch.setattr(layout, "write_shard", write_shard)
        write_data_set(source, output, settings)
        assert files(output) == files(tmp_path / "at once")


_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from copymit.data.prepare import layout
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.folder_source import FolderSource

def count():
    # Unlike Path.rglob, os.walk survives a folder that is removed under it.
    names = [name for _, _, names in os.walk(output) for name in names]
    return sum(not name.endswith(".partial") for name in names)

folder, output = map(Path, sys.argv[1:])
source, rng, kills = FolderSource(folder), random.Random(0), 0
settings = Settings(num_examples=13, on_corrupt="skip", shard_bytes=1)
while True:
    before = count()
    child = os.fork()
    if not child:
        try:
            write_data_set(source, output, settings)
        except BaseException:
            os._exit(1)
        os._exit(0)
    files, delay = before + rng.randint(1, 3), rng.uniform(0, 0.002)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if count() >= files:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        break
    kills += 1
assert not os.WEXITSTATUS(status)
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_at_random_points_the_bytes_are_the_same(tmp_path, noise):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(16):
        (folder / f"{i:02d}.png").write_bytes(b"bad" if i % 12 == 5 else noise(i))
    command = [sys.executable, "-c", _KILLED, str(folder), str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    # How often it was killed; a fast machine finishes before some of the kills.
    assert int(done.stdout) >= 2
    settings = Settings(num_examples=13, on_corrupt="skip", shard_bytes=1)
    write_data_set(FolderSource(folder), tmp_path / "at once", settings)
    assert files(tmp_path / "killed") == files(tmp_path / "at once")
    assert len(RecordSource(tmp_path / "killed")) == 13
