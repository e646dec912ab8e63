"""The command line of both programs: help, and mistakes in one line each."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("train.py", ["--config", "--workdir", "--coordinator", "--process_id"]),
        (
            "evaluate.py",
            ["--workdir", "--stages", "--generations", "--references", "--compare"],
        ),
    ],
)
def test_help_shows_examples_and_the_flags(program, flags, programs):
    # absl ends --help with 1, as it does for any line that it cannot run.
    said = programs.finish(programs.start(program, "--help"), code=1)
    assert f"python {program} --" in said
    assert "configs/common.py" in said
    for flag in flags:
        assert re.search(rf"^ *{flag}:", said, re.MULTILINE), flag


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--config=configs/tiny.py", "--config.train.stepz=1"],
            "error: unknown setting 'stepz'. Did you mean \"steps\"",
        ),
        (["--config=configs/absent.py", "--config.seed=1"], "configs/absent.py"),
        (
            ["--config=configs/tiny.py", "--config.data.source=absent"],
            "error: no folder 'absent'",
        ),
    ],
)
def test_a_mistake_of_the_settings_is_explained_without_a_trace(
    flags, expected, programs, tmp_path
):
    workdir = tmp_path / "run"
    command = ["train.py", *flags, f"--workdir={workdir}"]
    said = programs.finish(programs.start(*command), code=1)
    assert expected in said
    assert "Traceback" not in said
    assert not workdir.exists()


def test_generations_without_references_are_refused(programs, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--generations={tmp_path}"]
    said = programs.finish(programs.start("evaluate.py", *flags), code=1)
    assert "--generations and --references belong together" in said


def test_an_unknown_setting_of_an_audit_is_explained_without_a_trace(
    programs, tmp_path
):
    flags = [f"--workdir={tmp_path}", "--eval.tyles=2"]
    flags += [f"--{name}={tmp_path}" for name in ("generations", "references")]
    said = programs.finish(programs.start("evaluate.py", *flags), code=1)
    assert "error: unknown setting 'tyles'. Did you mean \"tiles\"" in said
    assert "Traceback" not in said


def test_a_pipeline_is_stopped_by_too_many_copies_and_told_in_one_line(
    programs, tmp_path
):
    rng = np.random.default_rng(0)
    for name, count in (("trained", 24), ("made", 5)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    shutil.copy(tmp_path / "trained" / "7.png", tmp_path / "made" / "copy.png")
    flags = [
        f"--workdir={tmp_path / 'out'}",
        f"--generations={tmp_path / 'made'}",
        f"--references={tmp_path / 'trained'}",
        "--eval.embedders=('pixels_16',)",
        "--fail_above=0.1",
    ]
    said = programs.finish(programs.start("evaluate.py", *flags), code=3)
    assert "1 of 6 generations is a copy of 1 training image (1 exact)" in said
    assert "Traceback" not in said
