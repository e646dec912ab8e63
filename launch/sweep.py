"""Runs a family of trainings and evaluations, and makes a table and a figure of them.

    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --status
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --collect
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=gs://... --commands

Start it again after a kill, or on several machines that share the directory (on disk or
gs://): each trial is run by one of them. --commands prints what other engines run.
docs/sweeps.md says how.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence

from copymit.interrupts import heeded
from launch.claims import reaching
from launch.pool import Options, run_tasks
from launch.status import tabulate, to_text
from launch.trials import (
    Plan,
    command_lines,
    list_trials,
    load_sweep,
    plan,
    read_overrides,
    unique_tasks,
)

logger = logging.getLogger("launch")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, shows or collects a sweep; returns the exit code."""
    arguments = _parse(argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        with heeded():
            return _run(arguments)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    called = sys.argv[0].startswith("copymit ")  # by the console
    parser = argparse.ArgumentParser(
        prog=sys.argv[0] if called else "python -m launch.sweep",
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
    add("--num_workers", type=int, default=1, help="at a time; cores and GPUs divided")
    add("--max_attempts", type=int, default=3, help="after which a task is left alone")
    add(
        "--claim_secs",
        type=float,
        default=60.0,
        help="without a sign of life, until a pool counts as dead",
    )
    add("--status", action="store_true", help="show where the trials stand")
    add("--collect", action="store_true", help="write the table and the figure")
    add(
        "--commands",
        nargs="?",
        const="",
        metavar="FLAGS",
        help="print one line for each trial, for any other engine; FLAGS are added to "
        "train.py and evaluate.py, as in --commands=--distributed",
    )
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
    if arguments.commands is not None:
        _print_commands(command_lines(plans, root, arguments.commands))
        return 0
    if arguments.claim_secs <= 0:
        raise ValueError(f"--claim_secs={arguments.claim_secs:g} must be above 0")
    if arguments.status:
        rows = tabulate(plans, root, arguments.max_attempts, arguments.claim_secs)
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 240
        print(to_text(rows, columns))
        return 0
    title = arguments.sweep.rpartition(":")[2]
    if arguments.collect:
        return _collect(sweep, plans, root, title)
    options = Options(
        arguments.num_workers, arguments.max_attempts, arguments.claim_secs
    )
    standing = run_tasks(unique_tasks(plans), root, options)
    unfinished = sum(state != "done" for state in standing.values())
    logger.info("%d of %d tasks done", len(standing) - unfinished, len(standing))
    if not unfinished:
        return _collect(sweep, plans, root, title)
    logger.error("--status says what is missing, and why")
    return 1


def _print_commands(groups: Sequence[Sequence[str]]) -> None:
    """Prints commands alone, so that they can be counted; what to heed on stderr."""
    first = 1
    for group in groups:
        last = first + len(group) - 1
        print("\n".join(group))
        if group is not groups[-1]:
            logger.warning(
                "lines %d to %d are shared by several trials: finish them first",
                first,
                last,
            )
        first = last + 1


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


if __name__ == "__main__":
    sys.exit(main())
