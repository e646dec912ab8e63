"""The program launch.sweep, with real programs once and with wrong command lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from launch import backends, sweep
from launch.jobset import main as follow
from launch.trials import plan
from tests.launch.fake_sweep import make_trials

ROOT = Path(__file__).parents[2]
ONE_TRIAL = """
from configs.sweeps_types import Curves, Score, Trial, draws

@draws(Curves("factor", Score("similarity", ("dataset_similarity",)), "factor"))
def one(preset, seeds):
    for seed in seeds:
        train = {"seed": seed, "train.steps": 3, "train.sample_every_steps": 0}
        train |= {"model.unet.block_out_channels": (32,)}  # soon compiled
        train |= {"model.unet.cross_attention": (False,)}
        evaluate = {"eval.embedders": ("pixels",)}
        labels = {"factor": 4, "seed": seed}
        yield Trial(f"x4-seed{seed}", "configs/tiny.py", train, evaluate, labels)
"""
# Answers like kubectl: created on the second call of get, ended on the fourth.
KUBECTL = """#!{python} -S
import json, pathlib, sys
here = pathlib.Path({folder!r})
words = sys.argv[2:]
with (here / "calls").open("a") as file:
    file.write(" ".join(words) + "\\n")
calls = (here / "calls").read_text().splitlines()
if words[0] == "apply":
    (here / "manifest").write_text(sys.stdin.read())
if words[0] == "get" and (here / "manifest").exists():
    ended = sum(c.startswith("get") for c in calls) > 3
    print(json.dumps({{"status": {{"terminalState": {end!r}}} if ended else {{}}}}))
"""


@pytest.fixture
def one_trial(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ONE_TRIAL)
    return f"--sweep={path}:one"


@pytest.mark.slow
def test_a_real_trial_is_trained_evaluated_and_collected(tmp_path, one_trial):
    words = [one_trial, f"--workdir={tmp_path}/out", "--num_seeds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.sweep", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"{tmp_path}/out/one.{kind}" for kind in ("parquet", "md", "png")
    ]
    table = pd.read_parquet(tmp_path / "out/one.parquet")
    assert table["trial"].tolist() == ["x4-seed0"]
    assert 0 < table["dataset_similarity"].item() <= 1
    assert "2 of 2 tasks done" in done.stderr
    (log,) = (tmp_path / "out").glob("runs/*/launch/train.log")
    assert "step 3/3" in log.read_text()


def test_commands_are_shown_without_being_run(tmp_path, one_trial, capsys):
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert (
        f"train.py --config=configs/tiny.py --workdir={tmp_path}/out/runs/" in lines[0]
    )
    assert not (tmp_path / "out").exists()


def test_status_can_be_asked_before_the_start(tmp_path, one_trial, capsys):
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", "--status"]) == 0
    assert "3 trials: 3 pending" in capsys.readouterr().out


def test_a_table_that_lacks_trials_is_announced(
    tmp_path, one_trial, monkeypatch, capsys
):
    found = (["one.md"], ["x4-seed1"])
    monkeypatch.setattr(sweep, "collect", lambda *_: found)
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", "--collect"]) == 0
    said = capsys.readouterr()
    assert said.out == "one.md\n"
    assert "INCOMPLETE: 1 of 3 trials have no scores: x4-seed1" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--collect"], "no trial of one in"),
        (["--preset=big"], "use one of small, full"),
        (["--override=data.bogus=1"], "no setting 'data.bogus'"),
        (["--num_workers=0"], "--num_workers=0 must be at least 1"),
        (["--lease_secs=1"], "at least four times --poll_secs=1"),
        (["--max_failures=0"], "--max_failures=0 must be at least 1"),
        (["--backend=tpu"], "is not shared with the hosts of a slice: use gs://"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(
    tmp_path, one_trial, capsys, words, message
):
    assert sweep.main([one_trial, f"--workdir={tmp_path}/out", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_slice_belongs_to_a_task_whoever_runs_it():
    options = ("--zone=us-west4-a", "--type=v5litepod-8")
    training, evaluation = plan(make_trials()[0]).tasks
    backend = backends.tpu("gs://bucket/sweeps", options)
    first, again = backend(training, 0), backend(training, 5)
    assert first == again
    assert first.argv[1:4] == ("-m", "launch.tpu", "run")
    name, words = first.argv[4], list(first.argv)
    assert len(name) <= 40
    assert words[words.index("--") + 1 :][:2] == [
        "train.py",
        "--config=configs/tiny.py",
    ]
    assert name != backend(evaluation, 0).argv[4]
    assert name != backends.tpu("gs://bucket/other", options)(training, 0).argv[4]
    analysis = training._replace(program="copymit.analysis")
    assert backend(analysis, 0).argv[1:3] == ("-m", "copymit.analysis")


@pytest.mark.parametrize(("end", "code"), [("Completed", 0), ("Failed", 1)])
def test_a_jobset_is_created_once_and_followed(
    tmp_path, monkeypatch, capsys, end, code
):
    path = tmp_path / "kubectl"
    path.write_text(
        KUBECTL.format(python=sys.executable, folder=str(tmp_path), end=end)
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    task = plan(make_trials()[0]).tasks[0]
    options = ("--type=v5litepod-8", "--image=registry/image:1")
    words = backends.xpk("gs://bucket/sweeps", options)(task, 0).argv
    assert words[1:3] == ("-m", "launch.jobset")
    assert follow(words[3:], poll_secs=0.01) == code
    name = words[3]
    assert json.loads((tmp_path / "manifest").read_text())["metadata"]["name"] == name
    assert f"JobSet {name}: {end}" in capsys.readouterr().out
    calls = (tmp_path / "calls").read_text()
    assert calls.count("apply") == 1


def test_a_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    path = tmp_path / "kubectl"
    path.write_text("#!/bin/sh\necho no route to the cluster >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    words = ["run", "--type=v5litepod-8", "--image=i/i:1", "--", "train.py"]
    with pytest.raises(OSError, match="no route to the cluster"):
        follow([*words, "--workdir=gs://bucket/run"], poll_secs=0.01)
