"""Writes a prepared data set, and goes on with one that was interrupted.

In: a source and what to take of it. Out: the files of `copymit.data.prepare.layout`. The
same source and settings give the same bytes, however often the writing was killed.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from copymit.data.captions_file import refuse
from copymit.data.examples import ExampleSource
from copymit.data.prepare import layout
from copymit.data.prepare.rows import Row, make_row
from copymit.data.prepare.selection import Cursor, Selector
from copymit.data.record_source import RecordSource, is_prepared
from copymit.progress import Progress

_logger = logging.getLogger("copymit.data.prepare")
_READ_AHEAD = 64  # examples decoded at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to take of a source.

    Attributes:
      num_examples: this many good ones, drawn at random; None takes all, in order.
      on_corrupt: "stop" at the first bad example, or "skip" and list it.
      min_side: examples with fewer pixels on a side are bad.
      shard_bytes: a file of records is closed when it has grown to this.
    Raises:
      ValueError: if a value is out of range.
    """

    num_examples: int | None = None
    seed: int = 0
    on_corrupt: str = "stop"
    min_side: int = 1
    shard_bytes: int = 2**26

    def __post_init__(self):
        if self.on_corrupt not in ("stop", "skip"):
            raise ValueError(
                f'on_corrupt must be "stop" or "skip", got {self.on_corrupt!r}'
            )
        smallest = {"num_examples": 1, "seed": 0, "min_side": 1, "shard_bytes": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared data set holds."""

    num_examples: int
    skipped: Sequence[layout.Skipped]


def write_data_set(
    source: ExampleSource,
    output: epath.PathLike,
    settings: Settings,
    skipped: Sequence[layout.Skipped] = (),
) -> Summary:
    """Writes the chosen examples of a source to `output`; a second call goes on.

    Args:
      output: a folder of this data set alone, also `gs://`.
      skipped: what was passed over before, to be listed with the rest.
    Raises:
      ValueError: if `output` holds something else, an example is bad and `on_corrupt`
        is "stop", there are fewer good examples than wanted, or ids occur twice.
    """
    wanted = settings.num_examples
    refuse("ids occur twice: rename or remove them", _repeated(source.example_ids))
    if wanted is not None and wanted > len(source):
        raise ValueError(_too_few(wanted, len(source), len(source), 0))
    folder = epath.Path(output)
    _begin(folder, source, settings)
    if is_prepared(folder):
        layout.clean_up(folder)
        listing = json.loads((folder / layout.SKIPPED_FILE).read_text())
        pairs = [(entry["example_id"], entry["reason"]) for entry in listing]
        return Summary(len(RecordSource(folder)), pairs)
    shards = layout.read_shards(folder)
    cursor, passed = _write_rest(source, folder, settings, shards)
    everything = [*skipped, *(s for shard in shards for s in shard.skipped), *passed]
    if cursor.kept < (wanted or 1):
        raise ValueError(
            _too_few(wanted or 1, cursor.kept, len(source), len(everything))
        )
    layout.finish(folder, shards, everything, source.class_names)
    return Summary(cursor.kept, everything)


def _write_rest(
    source: ExampleSource,
    folder: epath.Path,
    settings: Settings,
    shards: list[layout.Shard],
) -> tuple[Cursor, list[layout.Skipped]]:
    """Appends to the shards what is missing of them.

    Returns:
      Where the selection ended, and what was passed over after the last shard.
    """
    selector = Selector(source.example_ids, settings.num_examples, settings.seed)
    cursor = shards[-1].cursor if shards else selector.first
    if cursor.kept:
        _logger.info("going on after %d examples", cursor.kept)
    rows: list[Row] = []
    passed: list[layout.Skipped] = []
    size = 0
    for outcome in _outcomes(source, selector, cursor, settings.min_side):
        cursor = outcome.cursor
        if outcome.row is None:
            if settings.on_corrupt == "stop":
                raise ValueError(
                    f"{outcome.name!r} {outcome.fault}: repair or remove it, or go on "
                    "with --on_corrupt=skip"
                )
            _logger.warning("skipping %r: %s", outcome.name, outcome.fault)
            passed.append((outcome.name, outcome.fault))
            continue
        rows.append(outcome.row)
        size += len(outcome.row.record)
        if size >= settings.shard_bytes:
            shard = layout.write_shard(folder, len(shards), rows, cursor, passed)
            shards.append(shard)
            rows, passed, size = [], [], 0
    if rows:
        shards.append(layout.write_shard(folder, len(shards), rows, cursor, passed))
        passed = []
    return cursor, passed


class _Outcome(NamedTuple):
    """An example that was tried: its row or else its fault, and where to go on."""

    cursor: Cursor
    name: str
    row: Row | None
    fault: str


def _outcomes(
    source: ExampleSource, selector: Selector, cursor: Cursor, min_side: int
) -> Iterator[_Outcome]:
    """Tries one example after the other until enough are good, and tells the rate."""
    total = selector.wanted or len(source)
    counted = cursor.kept
    progress = Progress("read", total, done=counted, unit="examples")
    if not len(selector.rest(cursor)):
        # The last shard was closed by the last example of its round.
        cursor = selector.next_round(cursor)
    with ThreadPoolExecutor() as pool:
        while len(left := selector.rest(cursor)):
            for chunk in np.split(left, range(_READ_AHEAD, len(left), _READ_AHEAD)):
                results = pool.map(lambda i: make_row(source, int(i), min_side), chunk)
                for index, result in zip(chunk, results, strict=True):
                    row = result if isinstance(result, Row) else None
                    fault = result if isinstance(result, str) else ""
                    kept = cursor.kept + (row is not None)
                    cursor = cursor._replace(tried=cursor.tried + 1, kept=kept)
                    yield _Outcome(cursor, source.example_ids[index], row, fault)
                progress.add(cursor.kept - counted)
                counted = cursor.kept
            cursor = selector.next_round(cursor)


def _begin(folder: epath.Path, source: ExampleSource, settings: Settings) -> None:
    """Claims the folder, or checks that it was claimed for the same data set."""
    identity = dataclasses.asdict(settings)
    # A run that stopped at a bad example may go on without it.
    del identity["on_corrupt"]
    if settings.num_examples is not None:
        identity["draw"] = "hash"  # until 2026-11 it was by the order of arrival
    layout.claim(folder, identity | {"source_sha256": _fingerprint(source)})


def _fingerprint(source: ExampleSource) -> str:
    digest = hashlib.sha256()
    for text in (*source.class_names, "", *source.example_ids):
        digest.update(text.encode() + b"\0")
    digest.update(np.asarray(source.labels, "<i4").tobytes())
    digest.update(np.asarray(source.caption_counts, "<i4").tobytes())
    return digest.hexdigest()


def _repeated(example_ids: Sequence[str]) -> list[str]:
    if len(set(example_ids)) == len(example_ids):
        return []
    seen: set[str] = set()
    return [i for i in example_ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]


def _too_few(wanted: int, good: int, available: int, skipped: int) -> str:
    return (
        f"{wanted} examples are wanted, but of {available} only {good} are good "
        f"({skipped} skipped): ask for fewer or add images"
    )
