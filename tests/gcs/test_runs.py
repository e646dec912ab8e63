"""A run whose directory is in a bucket: trained, killed, resumed, evaluated."""

import json
import re
from typing import NamedTuple

import pytest

from configs import tiny
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_run

LAST_STEP = tiny.get_config().train.steps


# One embedder is enough here, and one batch.
EVAL = {"embedders": ("pixels",), "quality_embedders": (), "num_generations": 8}
SETTINGS = [f"--config.eval.{name}={value}" for name, value in EVAL.items()]
SETTINGS += ["--config.train.sample_every_steps=0"]


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
    """A run in the faulty bucket.

    Attributes:
      resumed, evaluated, again: what the programs said about the run in the bucket.
    """

    in_bucket: str
    resumed: str
    evaluated: str
    again: str


@pytest.fixture(scope="module")
def runs(programs, faulty_bucket):
    workdir = f"{faulty_bucket.root}/runs/killed"
    commands = [
        ("train.py", *programs.flags, *SETTINGS, f"--workdir={workdir}"),
        ("evaluate.py", f"--workdir={workdir}"),
        ("evaluate.py", f"--workdir={workdir}"),
    ]
    train_and_kill(programs, faulty_bucket, workdir)
    said = [programs.run(*c, **faulty_bucket.environment) for c in commands]
    return Runs(workdir, *said)


def test_a_killed_run_goes_on_from_its_checkpoint(runs):
    assert re.search(rf"going on from step [36] of {runs.in_bucket}", runs.resumed)


def test_faults_were_met_and_survived(runs, faulty_bucket):
    counts = faulty_bucket.faults()
    assert counts["failed"] > 10
    assert counts["delayed"] > 20


def test_no_step_is_lost_from_the_metrics(runs, faulty_bucket, finished):
    lines = faulty_bucket.read(f"{runs.in_bucket}/metrics.jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, LAST_STEP + 1))
    assert [row["loss"] for row in rows] == finished.losses().tolist()


def test_scores_are_those_of_a_run_on_disk(runs, faulty_bucket, copied):
    out = f"{runs.in_bucket}/eval/{LAST_STEP}"
    assert f"{out}/report.html" in runs.evaluated
    scores = json.loads(faulty_bucket.read(f"{out}/scores.json"))
    config = tiny.get_config()
    config.eval.update(EVAL)
    on_disk = run_stages(open_run(copied.workdir, config, "like it"))
    expected = json.loads((on_disk / "scores.json").read_text())
    # What nothing of the scores depends on.
    expected["settings"]["train.sample_every_steps"] = 0
    assert scores == expected
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
