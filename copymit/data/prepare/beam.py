"""Prepares img2dataset's tar files on many machines: a Beam pipeline.

    python -m copymit.data.prepare.beam --tars='gs://BUCKET/laion/*.tar' \\
        --output=gs://BUCKET/laion-1m --num_examples=1000000 --on_corrupt=skip \\
        --runner=DataflowRunner ...

In: tar files, and the .parquet beside each if it is there. Out: the data set that
`python -m copymit.data.prepare img2dataset` writes, with the same draw, the examples with
the smallest hashes of seed and id, but in that order, since no process lists them all. The
bytes do not depend on the number of workers. Any Beam option is understood; docs/data.md
has the command for Dataflow. Needs an environment of its own (the extra `beam`).
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import operator
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from copymit.console import explain_bad_input, set_up_logging
from copymit.data.captions_file import refuse
from copymit.data.draw import draw_key
from copymit.data.prepare import layout
from copymit.data.prepare.img2dataset import Img2datasetSource
from copymit.data.prepare.rows import Row, make_row
from copymit.data.prepare.selection import (
    Cursor,
    Good,
    Plan,
    as_good,
    plan_shards,
    shard_of,
    smallest,
)
from copymit.data.prepare.write import Settings, Summary
from copymit.data.record_source import RecordSource, is_prepared
from copymit.storage import scratch_folder

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}: the pipeline needs an environment of its own; docs/data.md says how to "
        "make it"
    ) from error

_logger = logging.getLogger("copymit.data.prepare")
_OUTCOME_FILE = "outcome.json"  # written when all shards are
_SKIPPED = "skipped"
_COPY_BYTES = 2**24


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the pipeline; flags that are not its own are Beam's."""
    parser = _parser()
    own, rest = parser.parse_known_args(argv)
    options = PipelineOptions(rest)
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(
        options.get_all_options()
    )
    if unknown:
        parser.error(f"neither copymit nor Beam has --{', --'.join(sorted(unknown))}")
    set_up_logging(own.debug)
    with explain_bad_input(own.debug):
        settings = Settings(
            num_examples=own.num_examples,
            seed=own.seed,
            on_corrupt=own.on_corrupt,
            min_side=own.min_side,
            shard_bytes=own.shard_mib * 2**20,
        )
        summary = prepare(list_tars(own.tars), own.output, settings, options)
        _logger.info(
            "%d examples in %s, %d skipped",
            *(summary.num_examples, own.output, len(summary.skipped)),
        )


def list_tars(pattern: str) -> list[str]:
    """Lists the files that fit a pattern such as `gs://bucket/laion/*.tar`.

    Raises:
      ValueError: if there are none, or two whose examples would have the same ids.
    """
    path = root = epath.Path(pattern)
    while any(sign in str(root) for sign in "*?["):
        root = root.parent
    found = [path] if root == path else root.glob(str(path.relative_to(root)))
    tars = sorted(str(tar) for tar in found)
    if not tars:
        raise ValueError(
            f"no tar files at {pattern!r}: quote the pattern for the shell"
        )
    counts = Counter(map(_stem, tars))
    refuse(
        "tar files share a name with another, and so would their examples: rename them",
        (tar for tar in tars if counts[_stem(tar)] > 1),
    )
    return tars


def prepare(
    tars: Sequence[str],
    output: epath.PathLike,
    settings: Settings,
    options: PipelineOptions,
) -> Summary:
    """Writes the chosen examples of the tar files to `output`.

    A second call writes the same bytes again, or only finishes if all shards are there.

    Args:
      output: a folder of this data set alone, also `gs://`.
    Raises:
      ValueError: if `output` holds something else, an example that was drawn is bad and
        `on_corrupt` is "stop", or there are fewer good examples than wanted.
    """
    folder = epath.Path(output)
    layout.claim(folder, _identity(tars, settings))
    if is_prepared(folder):
        layout.clean_up(folder)
        listing = json.loads((folder / layout.SKIPPED_FILE).read_text())
        pairs = [(entry["example_id"], entry["reason"]) for entry in listing]
        return Summary(len(RecordSource(folder)), pairs)
    file = folder / layout.PROGRESS_FOLDER / _OUTCOME_FILE
    if not file.exists():
        with beam.Pipeline(options=options) as pipeline:
            _build(pipeline, tars, str(folder), settings)
    outcome = _Outcome(**json.loads(file.read_text()))
    return _finish(folder, outcome, settings)


class _Outcome(NamedTuple):
    """What the workers tell at the end; see `Plan`."""

    num_tried: int
    num_good: int
    lengths: list[int]
    skipped: list[layout.Skipped]


def _build(
    pipeline: beam.Pipeline, tars: Sequence[str], output: str, settings: Settings
) -> None:
    # Without the reshuffle one worker would read them all.
    files = pipeline | "tars" >> beam.Create(tars) | "spread" >> beam.Reshuffle()
    good = (
        files
        | "check" >> beam.Map(_check, settings)
        | "draw" >> beam.CombineGlobally(smallest, settings.num_examples)
    )
    plan = good | "plan" >> beam.Map(
        plan_shards, settings.num_examples, settings.shard_bytes
    )
    plan_for_all = beam.pvalue.AsSingleton(plan)
    rows, skipped = files | "take" >> beam.FlatMap(
        _take, settings, plan_for_all
    ).with_outputs(_SKIPPED, main="rows")
    written = (
        rows | beam.GroupByKey() | "write" >> beam.Map(_write, output, plan_for_all)
    )
    _ = (
        good
        | beam.Map(lambda good: (good.num_tried, len(good.keys)))
        | "tell"
        >> beam.Map(
            _tell, output, beam.pvalue.AsList(written), beam.pvalue.AsList(skipped)
        )
    )


def _check(tar: str, settings: Settings) -> Good:
    """Tries every example of a tar file."""
    keys, sizes, num_tried = [], [], 0
    for key, _, result in _try(tar, settings, None):
        num_tried += 1
        if isinstance(result, Row):
            keys.append(key)
            sizes.append(len(result.record))
    return as_good(keys, sizes, num_tried)


def _take(tar: str, settings: Settings, plan: Plan) -> Iterator[Any]:
    """Yields (shard, (key, row)) of what is taken, and what was passed over on the way."""
    for key, name, result in _try(tar, settings, plan):
        if isinstance(result, Row):
            yield shard_of(key, plan), (key, result)
        else:
            yield beam.pvalue.TaggedOutput(_SKIPPED, (name, result))


def _try(
    tar: str, settings: Settings, plan: Plan | None
) -> Iterator[tuple[bytes, str, Row | str]]:
    """Yields key, id and row, or fault, of each example that the plan takes."""
    with contextlib.ExitStack() as stack:
        # For the workers, whose folders have other names each time.
        scratch = stack.enter_context(scratch_folder())
        there = str(epath.Path(tar).parent)
        try:
            source = _open(tar, scratch)
        except ValueError as error:
            fault = f"cannot be used ({error})".replace(str(scratch), there)
            yield b"", epath.Path(tar).name, fault
            return
        for i, name in enumerate(source.example_ids):
            key = draw_key(settings.seed, name)
            if plan is None or shard_of(key, plan) is not None:
                result = make_row(source, i, settings.min_side)
                if isinstance(result, str):
                    result = result.replace(str(scratch), there)
                yield key, name, result


def _open(tar: str, scratch: Path) -> Img2datasetSource:
    """Opens a tar file as the folder of img2dataset that holds nothing else."""
    files = [epath.Path(tar), epath.Path(tar).with_suffix(".parquet")]
    for path in files if files[1].exists() else files[:1]:
        local = scratch / path.name
        if Path(path).exists():
            local.symlink_to(Path(path).absolute())
        else:
            with path.open("rb") as remote, local.open("wb") as file:
                shutil.copyfileobj(remote, file, _COPY_BYTES)
    return Img2datasetSource(scratch)


def _write(
    group: tuple[int, Iterable[tuple[bytes, Row]]], output: str, plan: Plan
) -> tuple[int, int]:
    """Writes one file, and returns its number and length."""
    number, pairs = group
    rows = [Row(*row) for _, row in sorted(pairs, key=operator.itemgetter(0))]
    if len(rows) != plan.lengths[number]:
        raise ValueError(
            f"file {number} should get {plan.lengths[number]} examples, and gets "
            f"{len(rows)}: the tar files change; run again when they do not"
        )
    # Nothing goes on after a shard: a pipeline that was ended begins anew.
    nowhere = Cursor(0, 0, 0, 0)
    layout.write_shard(epath.Path(output), number, rows, nowhere, ())
    return number, len(rows)


def _tell(
    counts: tuple[int, int],
    output: str,
    written: Iterable[tuple[int, int]],
    skipped: Iterable[layout.Skipped],
) -> None:
    """Writes what the program that started the pipeline needs to know."""
    lengths = [length for _, length in sorted(written)]
    outcome = _Outcome(*counts, lengths, sorted(skipped))
    file = epath.Path(output) / layout.PROGRESS_FOLDER / _OUTCOME_FILE
    layout.write_json(file, outcome._asdict())


def _finish(folder: epath.Path, outcome: _Outcome, settings: Settings) -> Summary:
    wanted = settings.num_examples or 1
    skipped = [(name, reason) for name, reason in outcome.skipped]
    if outcome.num_good < wanted:
        raise ValueError(
            f"{wanted} examples are wanted, but of {outcome.num_tried} only "
            f"{outcome.num_good} are good: ask for fewer or add tar files, with a new "
            "folder"
        )
    if skipped and settings.on_corrupt == "stop":
        name, reason = skipped[0]
        raise ValueError(
            f"{name!r} {reason}, and {len(skipped) - 1} more: finish without them by the "
            "same command with --on_corrupt=skip, or repair them and give a new folder"
        )
    shards = layout.read_shards(folder)
    if [shard.length for shard in shards] != outcome.lengths:
        raise ValueError(
            f"{str(folder)!r} holds files of another run: remove it, and run again"
        )
    layout.finish(folder, shards, skipped, ())
    return Summary(sum(outcome.lengths), skipped)


def _identity(tars: Sequence[str], settings: Settings) -> dict[str, Any]:
    identity = dataclasses.asdict(settings)
    # A run that stopped at bad examples may finish without them.
    del identity["on_corrupt"]
    names = "\n".join(map(_stem, tars))
    digest = hashlib.sha256(names.encode()).hexdigest()
    return {**identity, "draw": "hash", "tars_sha256": digest}


def _stem(tar: str) -> str:
    return epath.Path(tar).stem


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m copymit.data.prepare.beam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is left of ours is Beam's
    )
    add = parser.add_argument
    add("--tars", required=True, help="pattern of img2dataset's tar files")
    add("--output", required=True, help="a new folder, or the one to go on with")
    add("--num_examples", type=int, help="that many good ones, drawn; all by default")
    add("--seed", type=int, default=0, help="of the draw")
    add("--on_corrupt", choices=("stop", "skip"), default="stop")
    add("--min_side", type=int, default=1, help="smaller images are bad")
    add("--shard_mib", type=int, default=64, help="size of a file of records")
    add("--debug", action="store_true", help="show where an error was found")
    return parser


if __name__ == "__main__":
    # The workers know this module by its name, and not as __main__.
    from copymit.data.prepare.beam import main as main_by_name

    main_by_name()
