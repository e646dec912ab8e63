"""A sweep whose programs take milliseconds."""

import sys
from pathlib import Path

import pandas as pd

from configs.sweeps_types import Changes, Score, Trial
from launch.pool import Options, run_tasks
from launch.trials import command_of, plan, unique_tasks

SIMILARITY = Score("similarity", ("dataset_similarity",))
CHANGES = Changes("mitigation", "none", (SIMILARITY,), within=("prompts",))
FAKE = Path(__file__).with_name("fake_program.py")


def make_trials(count=12, num_seeds=3, **train):
    """Makes trials of several duplication factors, each with several seeds."""
    return [
        Trial(
            f"x{factor}-seed{seed}",
            "configs/tiny.py",
            {"data.duplication_factor": factor, "seed": seed, **train},
            {},
            {"factor": factor, "seed": seed},
        )
        for factor in range(1, count // num_seeds + 1)
        for seed in range(num_seeds)
    ]


def make_plans(count=12, num_seeds=3, **train):
    """Makes the plans of such trials."""
    return [plan(trial) for trial in make_trials(count, num_seeds, **train)]


def make_tasks(count=12, num_seeds=3, **train):
    """Makes the tasks of such trials: their trainings, then their evaluations."""
    return unique_tasks(make_plans(count, num_seeds, **train))


def fake_command(task, root):
    """Runs the fake program in place of train.py and evaluate.py."""
    _, _, *arguments = command_of(task, str(root))
    return [sys.executable, "-S", str(FAKE), *arguments]


QUICK = Options(3, 2, claim_secs=5.0, poll_secs=0.02, command_of=fake_command)


def run_fake(tasks, root, **options):
    """Runs tasks with the fake program; returns their standing."""
    return run_tasks(tasks, str(root), QUICK._replace(**options))


def make_mitigated():
    """Makes a table of scores of which seeds differ more than the settings do."""
    rows = [
        ("none", "trigger", 0, 0.5),
        ("none", "trigger", 1, 0.7),
        ("none", "trigger", 2, 0.9),
        ("none", "general", 0, 0.1),
        ("GN", "trigger", 2, 0.79),
        ("GN", "trigger", 0, 0.40),
        ("GN", "trigger", 1, 0.60),
        ("GN", "general", 0, 0.2),
    ]
    names = ["mitigation", "prompts", "seed", "dataset_similarity"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(trial=[f"t{i}" for i in range(len(table))])
