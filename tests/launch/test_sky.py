"""The task file does what it says, as far as that shows without a cloud.

Its shell runs here, with stand-ins for uv and python that write down how they are called.
What SkyPilot itself says about the file: test_sky_schema.py.
"""

import configparser
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TASK = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
STAND_IN = '#!/bin/sh\necho "$(basename $0) $*" >> calls\nexit ${CODE:-0}\n'


@pytest.fixture
def run_shell(tmp_path):
    """Runs a part of the task on a host; returns its exit code and calls."""
    for path in ("bin/uv", ".venv/bin/python"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(STAND_IN)
        (tmp_path / path).chmod(0o755)

    def run(part, **environment):
        given = {k: v or "" for k, v in TASK["envs"].items()} | environment
        given["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", TASK[part]], cwd=tmp_path, env=os.environ | given
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def test_the_same_run_is_trained_and_evaluated_on_all_hosts(run_shell, flags_of):
    flags = {"TRAIN_FLAGS": "--config.data.source=gs://b/d --config.seed=1"}
    code, calls = run_shell("run", WORKDIR="gs://b/x y", **flags)
    assert code == 0
    assert calls == [
        "python train.py --config=configs/laion10k.py --workdir=gs://b/x y --distributed "
        "--config.data.source=gs://b/d --config.seed=1",
        "python evaluate.py --workdir=gs://b/x y --distributed",
    ]
    for call in calls:
        _, program, *_ = call.split()
        assert set(re.findall(r" --(\w+)", call)) <= flags_of(program)


def test_a_line_of_a_sweep_runs_in_place_of_both(run_shell):
    line = (
        "python train.py --workdir='gs://b/x y' && python evaluate.py --workdir=gs://b"
    )
    code, calls = run_shell("run", COMMAND=line)
    assert code == 0
    assert calls == [
        "python train.py --workdir=gs://b/x y",
        "python evaluate.py --workdir=gs://b",
    ]
    code, calls = run_shell("run", COMMAND=line, CODE="143")
    assert code == 143
    assert len(calls) == 3


def test_a_failed_training_is_not_evaluated_and_its_exit_code_is_kept(run_shell):
    code, calls = run_shell("run", CODE="143")
    assert code == 143
    assert len(calls) == 1


def test_the_hosts_install_what_is_pinned_into_a_new_enough_python(run_shell, tmp_path):
    (tmp_path / ".venv/bin/python").unlink()
    _, (venv, install, weights) = run_shell("setup")
    packages = configparser.ConfigParser()
    packages.read(ROOT / "setup.cfg")
    oldest = packages["options"]["python_requires"].removeprefix(">=")
    assert venv == f"uv venv --python {oldest} .venv"
    (extras,) = re.findall(r"-c constraints.txt -e \.\[([\w,]+)\]", install)
    assert set(extras.split(",")) <= set(packages["options.extras_require"])
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"{weights.split()[-1]} ;" in pinned


def test_a_slice_that_nobody_uses_is_given_back():
    autostop = TASK["resources"]["autostop"]
    assert autostop["down"]
    assert autostop["idle_minutes"] <= 30


def test_only_runs_that_were_told_to_stop_are_restarted_without_end():
    recovery = TASK["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [143]
    assert 0 < recovery["max_restarts_on_errors"] <= 3


def test_the_config_exists_and_the_directory_must_be_named():
    assert (ROOT / TASK["envs"]["CONFIG"]).exists()
    assert TASK["envs"]["WORKDIR"] is None
