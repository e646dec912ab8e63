"""One directory, one subject, one process; and what is shown beside it fits."""

import errno
import json
import os

import numpy as np
import pytest
import tensorstore as ts
from PIL import Image

from copymit.evaluation import lock, score_stage
from copymit.evaluation import run as run_module
from copymit.evaluation.lock import sole_evaluation
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_finished, open_pair
from copymit.settings import evaluation_settings

STAGES = ("embed", "search", "score")


@pytest.fixture(autouse=True)
def no_quality(monkeypatch):
    """It takes longest, and nothing here depends on it."""
    monkeypatch.setattr(score_stage, "score_quality", lambda *_: {"warnings": []})


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pictures):
    """Returns a function: name -> a folder of that name with pictures of its own."""

    def make(name, shift=0):
        path = tmp_path / name
        path.mkdir()
        for i, picture in enumerate(np.roll(pictures, shift, axis=2)):
            Image.fromarray(picture).save(path / f"{i}.png")
        return str(path)

    return make


@pytest.fixture
def open_audit(tmp_path):
    def open_it(generations, references, name=None, embedders=("pixels_16",)):
        config = evaluation_settings()
        config.update({"embedders": embedders, "tile_l2_candidates": 0})
        return open_pair(generations, references, tmp_path / "audit", config, name)

    return open_it


def test_a_file_system_without_locks_is_named_in_one_error(tmp_path, monkeypatch):
    """As NFS without its lock daemon, or a bucket mounted as a folder."""

    def refuse(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    expected = rf"{tmp_path} lies on a file system without locks .*--workdir"
    with (
        pytest.raises(ValueError, match=expected),
        sole_evaluation(run_module.epath.Path(tmp_path)),
    ):
        pass


def test_a_second_evaluation_in_a_directory_is_refused_while_one_runs(
    folder, open_audit
):
    subject = open_audit(folder("made"), folder("trained"))
    subject.out.mkdir(parents=True)
    with sole_evaluation(subject.out):
        with pytest.raises(ValueError, match=r"is being evaluated by process \d+ on"):
            run_stages(subject, STAGES)
        assert [path.name for path in subject.out.iterdir()] == ["evaluation.lock"]
    run_stages(subject, STAGES)


@pytest.fixture
def bucket(tmp_path):
    """A directory that is written as a bucket is."""
    url = f"file://{tmp_path}/bucket"
    return url, ts.KvStore.open(f"{url}/").result()


def test_a_lock_in_a_bucket_is_its_owners_while_it_gives_signs_of_life(
    bucket, monkeypatch
):
    url, store = bucket
    with lock._in_bucket(url, "evaluation.lock", "process 1 on here"):
        beats = iter(range(9))
        monkeypatch.setattr(
            lock.time,
            "sleep",
            lambda _: store.write(
                "evaluation.lock", f"process 1 on here, {next(beats)}"
            ).result(),
        )
        with (
            pytest.raises(ValueError, match="is being evaluated by process 1 on here"),
            lock._in_bucket(url, "evaluation.lock", "process 2 on there"),
        ):
            pass


def test_a_lock_in_a_bucket_whose_owner_died_is_taken_over(bucket, monkeypatch):
    url, store = bucket
    store.write("evaluation.lock", "process 1 on here, long ago").result()
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    with lock._in_bucket(url, "evaluation.lock", "process 2 on there"):
        owner = store.read("evaluation.lock").result().value
        assert owner.startswith(b"process 2 on there")
    assert not store.read("evaluation.lock").result().value


def test_a_lock_whose_answer_was_lost_is_ours(bucket, monkeypatch):
    _, store = bucket
    monkeypatch.setattr(lock.time, "time", lambda: 7.0)
    before = store.read("evaluation.lock").result().stamp.generation
    first = lock._write(store, "evaluation.lock", "process 1", before)
    assert lock._write(store, "evaluation.lock", "process 1", before) == first
    assert lock._write(store, "evaluation.lock", "process 2", before) == b""


def test_images_elsewhere_have_a_directory_of_their_own(folder, open_audit):
    trained = folder("trained")
    subjects = [open_audit(folder(name), trained) for name in ("made", "drawn")]
    first, second = (run_stages(subject, STAGES) for subject in subjects)
    assert first != second
    assert first.name.startswith("made-")
    assert json.loads((first / "scores.json").read_text())["title"] == "made"


def test_a_name_that_images_elsewhere_have_is_refused(folder, open_audit):
    trained, made = folder("trained"), folder("made")
    out = run_stages(open_audit(made, trained, "it"), STAGES)
    before = (out / "scores.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds the evaluation of .*made against"):
        run_stages(open_audit(folder("drawn"), trained, "it"), STAGES)
    assert (out / "scores.json").read_bytes() == before


def test_what_was_measured_otherwise_is_refused_before_anything_is_computed(
    folder, open_audit, monkeypatch
):
    made, trained = folder("made"), folder("trained")
    out = run_stages(open_audit(made, trained), STAGES)
    monkeypatch.setattr(run_module, "_work", lambda *_: pytest.fail("it computes"))
    other = open_audit(folder("drawn"), trained, embedders=("pixels",))
    with pytest.raises(ValueError, match="whose numbers do not compare"):
        run_stages(other, compared=[open_finished(out)])
    assert not other.out.exists()


def test_what_is_not_scored_or_has_changed_since_is_not_compared(
    folder, open_audit, tmp_path
):
    made, trained = folder("made"), folder("trained")
    out = run_stages(open_audit(made, trained), STAGES)
    (tmp_path / "made" / "0.png").unlink()
    other = open_audit(folder("drawn"), trained)
    with pytest.raises(ValueError, match="its images have changed since"):
        run_stages(other, compared=[open_finished(out)])


def test_an_evaluation_of_lists_can_be_shown_again(folder, open_audit, tmp_path):
    trained = folder("trained")
    folder("made")
    paths = sorted((tmp_path / "made").iterdir())
    finished = open_finished(run_stages(open_audit(paths, trained), STAGES))
    assert finished.generations().ids == list(map(str, paths))


def test_images_that_were_in_memory_are_said_to_be_gone(folder, open_audit, pictures):
    out = run_stages(open_audit(pictures, folder("trained")), STAGES)
    with pytest.raises(ValueError, match=r"the generations of .* were in memory"):
        open_finished(out)
