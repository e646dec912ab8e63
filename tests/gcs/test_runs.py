"""A run whose directory is in a bucket: trained, killed, resumed, evaluated, swept."""

import json
import os
import re
import subprocess
import sys

import pytest

from configs import tiny
from tests.gcs.conftest import ROOT

pytestmark = pytest.mark.slow

LAST_STEP = tiny.get_config().train.steps
# Prints files of a bucket; this process itself knows nothing of the one on loopback.
CAT = """
import sys
from etils import epath
for path in sys.argv[1:]:
    print(epath.Path(path).read_text())
"""
SWEEP = """
from configs.sweeps_types import Curves, Score, draws
from tests.launch.fake_sweep import make_trials

@draws(Curves("factor", Score("similarity", ("dataset_similarity",)), "factor"))
def fake(preset, seeds):
    yield from make_trials(4, 2)
"""


def cat(programs, bucket, *paths):
    done = subprocess.run(
        [sys.executable, "-c", CAT, *map(str, paths)],
        cwd=ROOT,
        env=os.environ | bucket.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def killed_and_resumed(programs, faulty_bucket):
    """A run in the faulty bucket, and what its second start and evaluation said."""
    workdir = f"{faulty_bucket.root}/runs/killed"
    command = ("train.py", *programs.flags, f"--workdir={workdir}")
    first = programs.start(*command, **faulty_bucket.environment)
    said = []
    for line in first.stderr:
        said.append(line)
        # By now the checkpoint of step 3 is complete: that of step 6 waits for it.
        if f"step 7/{LAST_STEP}" in line:
            break
    first.kill()
    first.communicate()
    assert f"step 7/{LAST_STEP}" in said[-1], "".join(said)
    resumed = programs.run(*command, **faulty_bucket.environment)
    evaluated = programs.run(
        "evaluate.py", f"--workdir={workdir}", **faulty_bucket.environment
    )
    return workdir, resumed, evaluated


def test_a_killed_run_goes_on_from_its_checkpoint(killed_and_resumed):
    workdir, resumed, _ = killed_and_resumed
    assert re.search(rf"going on from step [36] of {workdir}", resumed)


def test_faults_were_met_and_survived(killed_and_resumed, faulty_bucket):
    counts = faulty_bucket.faults()
    assert counts["failed"] > 10
    assert counts["delayed"] > 10


def test_no_step_is_lost_from_the_metrics(
    killed_and_resumed, programs, faulty_bucket, on_disk
):
    workdir, *_ = killed_and_resumed
    text = cat(programs, faulty_bucket, f"{workdir}/metrics.jsonl")
    rows = [json.loads(line) for line in text.splitlines() if line]
    expected = (on_disk / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in rows] == list(range(1, LAST_STEP + 1))
    assert [row["loss"] for row in rows] == [json.loads(e)["loss"] for e in expected]


def test_scores_are_those_of_a_run_on_disk(
    killed_and_resumed, programs, faulty_bucket, on_disk
):
    workdir, _, evaluated = killed_and_resumed
    out = f"{workdir}/eval/{LAST_STEP}"
    assert f"{out}/report.html" in evaluated
    scores = cat(programs, faulty_bucket, f"{out}/scores.json").strip()
    expected = (on_disk / "eval" / str(LAST_STEP) / "scores.json").read_text().strip()
    assert scores.replace(workdir, "") == expected.replace(str(on_disk), "")
    page = cat(programs, faulty_bucket, f"{out}/report.html")
    assert "</html>" in page


def test_a_finished_evaluation_is_reused(killed_and_resumed, programs, faulty_bucket):
    workdir, *_ = killed_and_resumed
    said = programs.run(
        "evaluate.py", f"--workdir={workdir}", **faulty_bucket.environment
    )
    for stage in ("generate", "embed", "search", "score"):
        assert f"{stage}: nothing changed, reused" in said


def test_a_bucket_that_is_not_there_ends_the_run_before_it_begins(programs, bucket):
    said = programs.finish(
        programs.start(
            "train.py",
            *programs.flags,
            "--workdir=gs://no-such-bucket/run",
            **bucket.environment,
        ),
        code=1,
    )
    assert "error: gs://no-such-bucket/run cannot be written to" in said
    assert "gcloud storage ls gs://no-such-bucket" in said
    assert "Traceback" not in said
    assert "training on" not in said


def test_the_doctor_tries_a_bucket_with_both_clients(programs, bucket):
    words = ("-m", "launch.doctor", f"--workdir={bucket.root}/doctor")
    said = programs.run(*words, **bucket.environment)
    assert "deleted by gcsfs" in said
    assert "deleted by tensorstore" in said


def test_the_doctor_names_a_bucket_that_is_not_there(programs, bucket):
    words = ("-m", "launch.doctor", "--bucket=gs://no-such-bucket")
    said = programs.finish(programs.start(*words, **bucket.environment), code=1)
    assert "WRONG storage   gs://no-such-bucket cannot be used by gcsfs" in said
    assert "gcloud storage ls gs://no-such-bucket" in said
