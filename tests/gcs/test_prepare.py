"""A data set is prepared into a bucket as onto a disk, and training finds it there."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.gcs.conftest import ROOT

pytestmark = pytest.mark.slow

# Prints name and digest of every file of a folder, wherever it is.
LIST = """
import hashlib, sys
from etils import epath
for path in sorted(epath.Path(sys.argv[1]).iterdir(), key=lambda path: path.name):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
"""


def run(bucket, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | bucket.environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_files_in_a_bucket_are_those_on_a_disk(bucket, tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    listings = []
    for output in (f"{bucket.root}/prepared", tmp_path / "prepared"):
        command = ["-m", "copymit.data.prepare", "folder", tmp_path / "images"]
        # The second call finds everything done.
        for _ in range(2):
            run(bucket, *command, f"--output={output}")
        listings.append(run(bucket, "-c", LIST, output))
    assert listings[0] == listings[1]
    assert len(listings[0].splitlines()) >= 5
