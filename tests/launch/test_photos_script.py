"""launch/photos.sh: the study in pieces, packed, and gone on with elsewhere."""

import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from copymit.project import PROJECT

SCRIPT = PROJECT / "launch" / "photos.sh"
# Notes its arguments, and ends as the file `ends` says: once to run, once to collect.
FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> {folder}/called
test "$1 $2" = "-m launch.sweep" || exit 9
case "$*" in *--collect*) exit "$(cut -c2 {folder}/ends)";; esac
exit "$(cut -c1 {folder}/ends)"
"""
TINY = {
    "data.num_examples": 8,
    "data.num_heldout": 8,
    "data.resolution": 16,
    "data.duplicated_fraction": 0.25,
    "data.num_threads": 1,
    "model.unet.block_out_channels": "(16,)",
    "model.unet.cross_attention": "(True,)",
    "model.text_encoder.hidden_size": 16,
    "model.text_encoder.intermediate_size": 16,
    "model.text_encoder.num_hidden_layers": 1,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.warmup_steps": 1,
    "train.checkpoint_every_steps": 2,
    "eval.num_generations": 8,
    "eval.batch_size": 8,
    "eval.num_inference_steps": 2,
    "eval.embedders": "('pixels',)",
    "eval.tile_l2_candidates": 0,
}


def start(folder, *options, photos="photos", **environment):
    """Starts the study of a folder's photos in its `study`; returns what became of it."""
    words = [photos, f"{photos}.json", "", "study", "60", *options]
    return subprocess.run(
        ["sh", str(SCRIPT), *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def faked(tmp_path):
    """Starts the script with a program in place of python."""
    fake = tmp_path / "fake"
    fake.write_text(FAKE.format(folder=tmp_path))
    fake.chmod(0o755)

    def faked(*options, ends="00"):
        (tmp_path / "ends").write_text(ends)
        (tmp_path / "called").unlink(missing_ok=True)
        done = start(tmp_path, *options, PYTHON=str(fake))
        return done, (tmp_path / "called").read_text().splitlines()

    return faked


def test_more_options_go_on_to_the_sweep_as_they_are(faked, tmp_path):
    options = ["--only=factor=1", "--override=eval.embedders=('pixels', 'x')"]
    done, (run, collect) = faked(*options, ends="10")
    assert done.stderr == ""
    for line in (run, collect):
        assert " --preset=photos --source=photos --captions=photos.json" in line
        assert " ".join(options) in line
    assert run.endswith(" --results_only --minutes=60")
    assert collect.endswith(" --collect")


@pytest.mark.parametrize(
    ("ends", "code", "calls", "packed"),
    [("00", 0, 1, True), ("10", 1, 2, True), ("11", 1, 2, False)],
)
def test_what_is_open_or_wrong_shows_in_the_exit_code(
    faked, tmp_path, ends, code, calls, packed
):
    done, called = faked(ends=ends)
    assert done.returncode == code
    assert len(called) == calls
    assert (tmp_path / "study.tgz").exists() == packed


def test_no_checkpoint_is_packed_nor_the_record_that_says_there_is_one(faked, tmp_path):
    run = tmp_path / "study" / "runs" / "a"
    small = ["launch/eval-x.json", "eval/x/scores.json", "eval/x/pairs/01.jpg"]
    large = ["launch/train.json", "checkpoints/9/params", "eval/x/generations/1.png"]
    for name in (*small, *large, "../cache/m/rows", "../../.jax_cache/step"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("content")
    faked()
    with tarfile.open(tmp_path / "study.tgz") as archive:
        names = [member.name for member in archive if member.isfile()]
    assert sorted(names) == sorted(f"./runs/a/{name}" for name in small)


def test_of_what_was_packed_the_newer_file_stays(faked, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    for name, content in (("mine", "packed"), ("theirs", "packed"), ("gone", "packed")):
        (study / name).write_text(content)
        os.utime(study / name, (2_000, 2_000))
    faked()
    for name, seconds in (("mine", 3_000), ("theirs", 1_000)):
        (study / name).write_text("on this machine")
        os.utime(study / name, (seconds, seconds))
    (study / "gone").unlink()
    done, _ = faked()
    assert done.stderr == ""
    found = {path.name: path.read_text() for path in study.iterdir()}
    assert found == {"mine": "on this machine", "theirs": "packed", "gone": "packed"}


@pytest.fixture
def machines(tmp_path):
    """Two directories that have the same photos."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (20, 24, 20, 3), np.uint8)
    texts = {f"{i}.png": [f"photo {i}"] for i in range(len(pictures))}
    for machine in ("first", "second"):
        (tmp_path / machine / "photos").mkdir(parents=True)
        (tmp_path / machine / "photos.json").write_text(json.dumps(texts))
        for name, pixels in zip(texts, pictures, strict=True):
            Image.fromarray(pixels).save(tmp_path / machine / "photos" / name)
    return tmp_path / "first", tmp_path / "second"


@pytest.mark.slow
def test_another_machine_goes_on_and_does_nothing_twice(machines, tmp_path):
    first, second = machines
    environment = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(PROJECT),
        "PRESET": "photos_cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }
    tiny = [f"--override={name}={value}" for name, value in TINY.items()]
    options = ["--num_seeds=1", "--only=data=photos", *tiny]
    done = start(first, *options, "--only=factor=1", **environment)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 tasks done" in done.stderr
    assert (first / "study.tgz").stat().st_size < 1_000_000

    (second / "study.tgz").write_bytes((first / "study.tgz").read_bytes())
    done = start(second, *options, "--only=factor=1,10", **environment)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 tasks done" in done.stderr
    assert (
        done.stderr.count(" started") == 2
    )  # of factor 10 the training, the evaluation
    table = pd.read_parquet(second / "study" / "fig3.parquet")
    assert table["factor"].tolist() == [1, 10]
    page = (second / "study" / "fig3.html").read_text()
    pairs = list((second / "study").glob("runs/*/eval/*/pairs/*.jpg"))
    assert len(pairs) == 2 * 8
    assert all(path.name in page for path in pairs)
    with tarfile.open(second / "study.tgz") as archive:
        names = archive.getnames()
    assert sum(name.endswith("/scores.json") for name in names) == 2
    assert not [name for name in names if "checkpoint" in name]
