"""Runs a family of trainings and evaluations; makes a table, a figure and a page of them.

    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --status
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=runs/fig3 --collect
    python -m launch.sweep --sweep=configs/sweeps.py:fig3 --workdir=gs://... --commands
    python -m launch.sweep --sweep=configs/sweeps.py:fig3,fig5 --workdir=runs/photos \\
        --preset=photos --source=PHOTOS --captions=FILE --results_only --minutes=30

Start it again after a kill, or on several machines that share the directory (on disk or
gs://): each trial is run by one of them. --commands prints what other engines run.
docs/sweeps.md says how.
"""

import argparse
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from configs.sweeps_types import SweepFunction
from copymit.interrupts import heeded
from launch.claims import Claims, reaching
from launch.photos import PRESETS as PHOTOS
from launch.photos import check_photos, read_places
from launch.pool import Options, find_products, run_tasks
from launch.reduce import reduce_runs, reopen
from launch.status import tabulate, to_text
from launch.trials import (
    Plan,
    Task,
    choose_trials,
    command_lines,
    list_trials,
    load_sweep,
    plan,
    read_overrides,
    unique_tasks,
)

logger = logging.getLogger("launch")


class Family(NamedTuple):
    """A sweep, and its trials with their tasks."""

    sweep: SweepFunction
    plans: list[Plan]


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
    add(
        "--sweep",
        required=True,
        help="FILE:FUNCTION, such as configs/sweeps.py:fig3; several are joined by "
        "commas, in the order in which they are run",
    )
    add("--workdir", required=True, help="directory of all trials, on disk or gs://")
    add(
        "--preset",
        default="small",
        help="small (embedded data, CPU), photos (a GPU), photos_cpu or full (paper)",
    )
    add("--source", default="", help="with --preset=photos: a folder of photos")
    add("--captions", default="", help="and a file with their captions")
    add("--autoencoder", default="", help="and a trained one, a folder or hub id")
    add("--num_seeds", type=int, default=3, help="trainings of each setting")
    add(
        "--override",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="setting of every trial, such as data.source=gs://...; may be repeated",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="LABEL=VALUE,...",
        help="trials with these labels alone, such as factor=1,10, of the sweeps that have "
        "any; may be repeated",
    )
    add("--num_workers", type=int, default=1, help="at a time; cores and GPUs divided")
    add("--max_attempts", type=int, default=3, help="after which a task is left alone")
    add(
        "--claim_secs",
        type=float,
        default=60.0,
        help="without a sign of life, until a pool counts as dead",
    )
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="after which what runs is told to save; another start goes on",
    )
    add(
        "--results_only",
        action="store_true",
        help="once all evaluations of a training are done, keep scores, tables and 24 "
        "pairs of pictures of each, and delete its checkpoints",
    )
    add("--status", action="store_true", help="show where the trials stand")
    add(
        "--collect",
        action="store_true",
        help="write the table, the figure and the page of pictures",
    )
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
    root = arguments.workdir
    if "://" not in root:
        root = os.path.abspath(root)  # the programs start in another directory
    places = read_places(
        arguments.preset, arguments.source, arguments.captions, arguments.autoencoder
    )
    sweeps = _list(arguments, places)
    plans = [plan for family in sweeps.values() for plan in family.plans]
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
    if arguments.collect:
        return _collect(sweeps, root)
    if arguments.preset in PHOTOS:
        trials = [made.trial for made in plans]
        check_photos(trials, places, root, "/".join(sweeps))
    if arguments.results_only and "://" in root:
        raise ValueError(f"--results_only needs a directory on disk, not {root}")
    if not _run_all(plans, root, arguments):
        return _collect(sweeps, root)
    logger.error("--status says what is missing, and why")
    return 1


def _references(sweep: str) -> dict[str, str]:
    """Divides FILE:A,B into the reference of each sweep, by its name."""
    file, colon, names = sweep.rpartition(":")
    return {name: f"{file}{colon}{name}" for name in names.split(",")}


def _list(arguments: argparse.Namespace, places: dict[str, str]) -> dict[str, Family]:
    """Lists the sweeps that are asked for, with the trials that are."""
    references = _references(arguments.sweep)
    sweeps = {title: load_sweep(reference) for title, reference in references.items()}
    overrides = read_overrides(arguments.override)
    trials = {
        title: list_trials(
            sweep, arguments.preset, arguments.num_seeds, overrides, places
        )
        for title, sweep in sweeps.items()
    }
    chosen = choose_trials(trials, arguments.only)
    if without := [title for title in trials if title not in chosen]:
        logger.info("--only leaves no trial of %s", ", ".join(without))
    return {t: Family(sweeps[t], [plan(trial) for trial in chosen[t]]) for t in chosen}


def _run_all(plans: Sequence[Plan], root: str, arguments: argparse.Namespace) -> int:
    """Runs what is open, seed by seed; returns how many tasks are not done at the end.

    So every figure is there after a while, of one seed, and then of more.
    """
    seeds = list(dict.fromkeys(made.trial.labels.get("seed") for made in plans))
    tasks = unique_tasks(
        sorted(plans, key=lambda made: seeds.index(made.trial.labels.get("seed")))
    )
    by_key = {task.key: task for task in tasks} if arguments.results_only else {}
    if "://" not in root:
        reopen(tasks, _find_done(tasks, root), root)
    options = Options(
        arguments.num_workers,
        arguments.max_attempts,
        arguments.claim_secs,
        minutes=arguments.minutes,
        on_done=lambda done: reduce_runs(by_key, done, root),
    )
    standing = run_tasks(tasks, root, options)
    unfinished = sum(state != "done" for state in standing.values())
    logger.info("%d of %d tasks done", len(standing) - unfinished, len(standing))
    return unfinished


def _find_done(tasks: Sequence[Task], root: str) -> set[str]:
    by_key = {task.key: task for task in tasks}
    versions = Claims(root).read(by_key)
    records = {key: there.record for key, there in versions.items()}
    recorded = {
        key for key, record in records.items() if record and record.state == "done"
    }
    return recorded | find_products(by_key, versions, root)


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


def _collect(sweeps: Mapping[str, Family], root: str) -> int:
    from launch.collect import NothingYetError, collect, join_tables
    from launch.tables import abridge

    empty = []
    for title, (sweep, plans) in sweeps.items():
        try:
            with reaching(root):
                files, missing = collect(sweep, plans, root, title)
        except NothingYetError as error:
            empty.append(error)
            continue
        for path in files:
            print(path)
        if missing:
            logger.warning(
                "INCOMPLETE: %d of %d trials have no scores: %s",
                len(missing),
                len(plans),
                abridge(missing),
            )
    if len(empty) == len(sweeps):
        raise empty[0]
    if len(sweeps) > 1:
        print(join_tables(root, list(sweeps)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
