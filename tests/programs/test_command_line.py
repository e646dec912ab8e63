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
    said = programs.run(program, "--help")
    assert f"python {program}" in said
    assert "--list_settings" in said
    for flag in flags:
        assert re.search(rf"^ *{flag}(=|$)", said, re.MULTILINE), flag


def test_data_that_are_not_there_are_explained_without_a_trace(programs, tmp_path):
    workdir = tmp_path / "run"
    command = ["--config=tiny", "--config.data.source=absent", f"--workdir={workdir}"]
    said = programs.finish(programs.start("train.py", *command), code=1)
    assert "error: no folder 'absent'" in said
    assert "Traceback" not in said
    assert not workdir.exists()


def test_generations_without_references_are_refused(programs, tmp_path):
    flags = [f"--workdir={tmp_path}", f"--generations={tmp_path}"]
    said = programs.finish(programs.start("evaluate.py", *flags), code=2)
    assert "--generations and --references belong together" in said


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
