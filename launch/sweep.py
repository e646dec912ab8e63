"""Runs a family of trainings and evaluations, and makes a table and a figure of them.

    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --status
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --collect

Start it again after a kill, or on several machines that share the directory (on disk or
gs://): each trial is run by one of them. docs/sweeps.md says how.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence

from launch.backends import Backend, local, python_command, tpu, xpk
from launch.lease import Watch, reaching, this_process
from launch.status import show
from launch.trials import (
    Plan,
    list_trials,
    load_sweep,
    plan,
    read_overrides,
    unique_tasks,
)
from launch.worker import Options, work

logger = logging.getLogger("launch")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, shows or collects a sweep; returns the exit code."""
    arguments = _parse(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        return _run(arguments)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.sweep",
        description="Runs the trials of a sweep; again after a kill, it goes on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--sweep", required=True, help="FILE:FUNCTION, such as configs/sweeps.py:fig3")
    add("--workdir", required=True, help="directory of all trials, on disk or gs://")
    add("--preset", default="small", help="small (embedded data, CPU) or full (paper)")
    add("--num_seeds", type=int, default=3, help="trainings of each setting")
    add(
        "--override",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="setting of every trial, such as data.source=gs://...; may be repeated",
    )
    add("--backend", default="local", choices=("local", "tpu", "xpk"))
    add(
        "--backend_args",
        default="",
        help="of launch.tpu run or launch.gke: --backend_args='--zone=... --type=...'",
    )
    add("--num_workers", type=int, default=1, help="tasks at a time, cores divided")
    add("--max_failures", type=int, default=3, help="after which a task is left alone")
    add(
        "--lease_secs",
        type=float,
        default=90.0,
        help="without a sign of life, until a launcher counts as dead",
    )
    add("--poll_secs", type=float, default=1.0, help="between two looks at the records")
    add("--status", action="store_true", help="show where the trials stand")
    add("--collect", action="store_true", help="write the table and the figure")
    add("--dry_run", action="store_true", help="print the commands")
    add("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> int:
    sweep = load_sweep(arguments.sweep)
    trials = list_trials(
        sweep,
        arguments.preset,
        arguments.num_seeds,
        read_overrides(arguments.override),
    )
    root = arguments.workdir
    if "://" not in root:
        root = os.path.abspath(root)  # the programs start in another directory
    plans = [plan(trial) for trial in trials]
    if arguments.dry_run:
        for task in unique_tasks(plans):
            print(shlex.join(python_command(task, root)))
        return 0
    if arguments.status:
        watch = Watch(this_process(), arguments.lease_secs)
        show(plans, root, arguments.max_failures, watch)
        return 0
    title = arguments.sweep.rpartition(":")[2]
    if arguments.collect:
        return _collect(sweep, plans, root, title)
    if arguments.lease_secs < 4 * arguments.poll_secs:
        raise ValueError(
            f"--lease_secs={arguments.lease_secs:g} must be at least four times "
            f"--poll_secs={arguments.poll_secs:g}"
        )
    if arguments.max_failures < 1:
        raise ValueError(f"--max_failures={arguments.max_failures} must be at least 1")
    standing = work(
        unique_tasks(plans),
        root,
        Watch(this_process(), arguments.lease_secs),
        _backend(arguments, root),
        Options(
            arguments.num_workers,
            arguments.max_failures,
            arguments.poll_secs,
            arguments.lease_secs / 5,
        ),
    )
    unfinished = sum(state != "done" for state in standing.values())
    logger.info("%d of %d tasks done", len(standing) - unfinished, len(standing))
    if not unfinished:
        return _collect(sweep, plans, root, title)
    logger.error("--status says what is missing, and why")
    return 1


def _collect(sweep, plans: Sequence[Plan], root: str, title: str) -> int:
    from launch.collect import abridge, collect

    with reaching(root):
        files, missing = collect(sweep, plans, root, title)
    for path in files:
        print(path)
    if missing:
        logger.warning(
            "INCOMPLETE: %d of %d trials have no scores: %s",
            len(missing),
            len(plans),
            abridge(missing),
        )
    return 0


def _backend(arguments: argparse.Namespace, root: str) -> Backend:
    if arguments.backend == "local":
        return local(arguments.num_workers, root)
    options = shlex.split(arguments.backend_args)
    return {"tpu": tpu, "xpk": xpk}[arguments.backend](root, options)


if __name__ == "__main__":
    sys.exit(main())
