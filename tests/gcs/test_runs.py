"""A run whose directory is in a bucket: trained, killed, resumed, evaluated."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from configs import tiny

pytestmark = pytest.mark.slow

LAST_STEP = tiny.get_config().train.steps


# One embedder is enough here, and one batch.
SETTINGS = ("--config.eval.embedders=('pixels',)", "--config.eval.num_generations=8")


def train_and_evaluate(programs, workdir):
    programs.run("train.py", *programs.flags, *SETTINGS, f"--workdir={workdir}")
    programs.run("evaluate.py", f"--workdir={workdir}")


def train_and_kill(programs, bucket, workdir):
    """Kills a run when the checkpoint of step 6 is perhaps not complete yet."""
    command = ("train.py", *programs.flags, *SETTINGS, f"--workdir={workdir}")
    first = programs.start(*command, **bucket.environment)
    said = []
    for line in first.stderr:
        said.append(line)
        # By now the checkpoint of step 3 is complete: that of step 6 waits for it.
        if f"step 7/{LAST_STEP}" in line:
            break
    first.kill()
    first.communicate()
    assert f"step 7/{LAST_STEP}" in said[-1], "".join(said)


class Runs(NamedTuple):
    """A run in the faulty bucket, and the same on disk, never interrupted.

    Attributes:
      resumed, evaluated, again: what the programs said about the run in the bucket.
    """

    on_disk: Path
    in_bucket: str
    resumed: str
    evaluated: str
    again: str


@pytest.fixture(scope="module")
def runs(programs, faulty_bucket, tmp_path_factory):
    on_disk = tmp_path_factory.mktemp("runs") / "disk"
    workdir = f"{faulty_bucket.root}/runs/killed"
    commands = [
        ("train.py", *programs.flags, *SETTINGS, f"--workdir={workdir}"),
        ("evaluate.py", f"--workdir={workdir}"),
        ("evaluate.py", f"--workdir={workdir}"),
    ]
    with ThreadPoolExecutor() as pool:  # side by side, since each waits a lot
        undisturbed = pool.submit(train_and_evaluate, programs, on_disk)
        train_and_kill(programs, faulty_bucket, workdir)
        said = [programs.run(*c, **faulty_bucket.environment) for c in commands]
        undisturbed.result()
    return Runs(on_disk, workdir, *said)


def test_a_killed_run_goes_on_from_its_checkpoint(runs):
    assert re.search(rf"going on from step [36] of {runs.in_bucket}", runs.resumed)


def test_faults_were_met_and_survived(runs, faulty_bucket):
    counts = faulty_bucket.faults()
    assert counts["failed"] > 10
    assert counts["delayed"] > 20


def test_no_step_is_lost_from_the_metrics(runs, faulty_bucket):
    lines = faulty_bucket.read(f"{runs.in_bucket}/metrics.jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    expected = (runs.on_disk / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in rows] == list(range(1, LAST_STEP + 1))
    assert [row["loss"] for row in rows] == [json.loads(e)["loss"] for e in expected]


def test_scores_are_those_of_a_run_on_disk(runs, faulty_bucket):
    out = f"{runs.in_bucket}/eval/{LAST_STEP}"
    assert f"{out}/report.html" in runs.evaluated
    scores = faulty_bucket.read(f"{out}/scores.json").decode()
    path = runs.on_disk / "eval" / str(LAST_STEP) / "scores.json"
    expected = path.read_text().replace(str(runs.on_disk), "")
    assert scores.replace(runs.in_bucket, "") == expected
    assert b"</html>" in faulty_bucket.read(f"{out}/report.html")


def test_a_finished_evaluation_is_reused(runs):
    for stage in ("generate", "embed", "search", "score"):
        assert f"{stage}: nothing changed, reused" in runs.again


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


def test_the_doctor_tries_buckets(programs, bucket):
    places = [f"--workdir={bucket.root}/doctor", "--workdir=gs://no-such-bucket"]
    places += ["--patience=1800"]  # a busy machine is slow
    doctor = programs.start("-m", "launch.doctor", *places, **bucket.environment)
    said = programs.finish(doctor, code=1)
    assert f"ok    storage   {bucket.root}/doctor: written, read and deleted" in said
    assert "WRONG storage " in said
    assert bucket.list(f"{bucket.root}/doctor") == []
    assert "gcloud storage ls gs://no-such-bucket" in said
