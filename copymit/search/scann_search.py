"""Approximate nearest references with ScaNN, part by part, tuned and checked.

Unit vectors of any number enter, from memory or from disk; the `k` most similar
references of each query leave, with the settings that were used and their recall
against exact search on sampled queries.

What a part of N references of D dimensions costs: building holds its float32 rows twice
(once if they are one array already in memory), searching once, with D/4 bytes of codes
for each. One million of 512: 2.0 GiB of rows + 0.12 GiB of codes to search, 4.1 GiB to
build. Ten million of 512 are ten such parts, one in memory at a time: 19.1 GiB of float32
shards on disk, and 20.3 GiB of saved parts if `index_dir` is given.

ScaNN takes no seed and trains in threads: two indexes of the same rows may miss other
neighbours. A saved index is used again, so results are repeated while it is there; what
must be the same on any machine is searched exactly.
"""

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int

from copymit.search.exact import (
    Neighbours,
    SearchResult,
    merge_neighbours,
    stream_neighbours,
)
from copymit.search.recall import compute_recall, split_sample
from copymit.search.saved_parts import open_part
from copymit.search.scann_index import (
    ScannSettings,
    ask_scann,
    import_scann,
    scann_settings,
    smaller_settings,
    tune_scann,
)
from copymit.search.vectors import (
    Vectors,
    VectorsLike,
    as_vectors,
    blocks,
    check_search,
    part_of,
    rows_at,
)

logger = logging.getLogger(__name__)

# Of a part that nobody chose the size of: a million rows, or as many as are 2 GiB.
PART_ROWS = 1_000_000
PART_BYTES = 2**31


def search_scann(
    queries: VectorsLike,
    references: VectorsLike,
    k: int,
    *,
    exclude: Int[np.ndarray, " Q"] | None = None,
    settings: ScannSettings | None = None,
    recall_target: float = 0.99,
    seed: int = 0,
    index_dir: epath.PathLike | None = None,
    part_rows: int | None = None,
) -> SearchResult:
    """Finds the nearest references of each query with ScaNN, and measures its recall.

    References are indexed `part_rows` at a time, and every part is asked, so memory is
    that of one part. Where ScaNN cannot be imported (it has wheels for Linux only) the
    search is exact.

    Args:
      settings: of a full part, used as they are; None chooses them by its size and
        tunes them to `recall_target` on the first part, with queries that the recall is
        not measured on.
      index_dir: local folder that keeps the parts. One whose rows and way of building
        are unchanged is used again, so after references are added at the end only the
        parts that hold them are built. One process may write to it at a time.
      part_rows: references of a part; another number builds every part again. None is
        a million, or fewer where their rows would be more than 2 GiB.
    Raises:
      ValueError: as `search_exact`, or if settings, `part_rows` or `index_dir` are
        unusable.
    Source: Guo et al. 2020, and ScaNN's own guidance on sizes (docs/algorithms.md).
    """
    queries = as_vectors(queries, "queries")
    references = as_vectors(references, "references")
    exclude = check_search(queries, references, k, exclude)
    if part_rows is None:
        part_rows = min(PART_ROWS, max(1, PART_BYTES // (4 * references.dim)))
    if part_rows < 1:
        raise ValueError(f"part_rows is {part_rows}: index at least one row at a time")
    scann = import_scann()
    if scann is None:
        logger.warning("ScaNN is not installed here: searching exactly instead")
        neighbours = stream_neighbours(queries, references, k, exclude)
        return SearchResult(neighbours, "exact", {}, 1.0, 1.0)
    for _ in blocks(queries):
        pass  # Checks them before an index is built in vain.
    # The excluded reference takes one place among the results.
    wanted = k + int((exclude >= 0).any())
    chosen = settings or scann_settings(min(part_rows, references.num_rows), wanted)
    if chosen.kind != "brute_force" and chosen.reorder < wanted:
        raise ValueError(
            f"settings.reorder is {chosen.reorder}: reorder at least the {wanted} "
            "neighbours that are wanted"
        )
    question = _Question(queries, k, wanted, exclude)
    tuning_rows, measuring_rows = split_sample(queries.num_rows, seed)
    tuning = _sampled(question, tuning_rows)
    measuring = _sampled(question, measuring_rows)
    found, exact = _nothing(question), _nothing(measuring)
    full = min(part_rows, references.num_rows)
    for number, start in enumerate(range(0, references.num_rows, part_rows)):
        part = part_of(references, start, min(start + part_rows, references.num_rows))
        fitted = chosen
        if part.num_rows < full:
            fitted = smaller_settings(chosen, part.num_rows, wanted)
        searcher = open_part(scann, part, fitted, number, index_dir)
        if number == 0 and settings is None and chosen.kind != "brute_force":
            fitted = chosen = _tune(searcher, tuning, part, chosen, recall_target)
        _search_part(searcher, question, start, part, fitted, found)
        _merge_rows(exact, 0, _search_exactly(measuring, start, part), start)
        # The next part is built only after this one has left memory.
        del searcher
    _complete(found, question, references)
    return _checked_result(found, exact, measuring_rows, chosen, full, recall_target)


class _Question(NamedTuple):
    """What is asked of every part.

    Attributes:
      wanted: neighbours to ask an index for, of which `k` are kept.
      exclude: rows of all references.
    """

    queries: Vectors
    k: int
    wanted: int
    exclude: Int[np.ndarray, " Q"]

    def excluded_in(self, start: int, part: Vectors) -> Int[np.ndarray, " Q"]:
        """Returns what to exclude in rows of the part."""
        inside = (self.exclude >= start) & (self.exclude < start + part.num_rows)
        return np.where(inside, self.exclude - start, -1)


def _sampled(question: _Question, rows: np.ndarray) -> _Question:
    return question._replace(
        queries=as_vectors(rows_at(question.queries, rows), "queries"),
        exclude=question.exclude[rows],
    )


def _nothing(question: _Question) -> Neighbours:
    """Returns the table before any part was asked, which is filled in place."""
    shape = (question.queries.num_rows, question.k)
    return Neighbours(np.zeros(shape, np.int32), np.full(shape, -np.inf, np.float32))


def _tune(
    searcher: Any,
    tuning: _Question,
    part: Vectors,
    settings: ScannSettings,
    recall_target: float,
) -> ScannSettings:
    exact = _search_exactly(tuning, 0, part)

    def measure(trial: ScannSettings) -> float:
        found = _nothing(tuning)
        _search_part(searcher, tuning, 0, part, trial, found)
        return compute_recall(found, exact)[0]

    return tune_scann(
        measure,
        settings,
        num_references=part.num_rows,
        recall_target=recall_target,
    )


def _search_exactly(question: _Question, start: int, part: Vectors) -> Neighbours:
    exclude = question.excluded_in(start, part)
    return stream_neighbours(question.queries, part, question.k, exclude, check=False)


def _search_part(
    searcher: Any,
    question: _Question,
    start: int,
    part: Vectors,
    settings: ScannSettings,
    found: Neighbours,
) -> None:
    """Asks one part, and merges its answers into what the others found."""
    exclude = question.excluded_in(start, part)
    wanted = min(question.wanted, part.num_rows)
    for first, queries in blocks(question.queries, check=False):
        own = exclude[first : first + len(queries)]
        answers = ask_scann(searcher, queries, question.k, own, wanted, settings)
        _merge_rows(found, first, answers, start)


def _merge_rows(table: Neighbours, first: int, own: Neighbours, start: int) -> None:
    """Merges a part's neighbours of some queries into the table, in place."""
    rows = slice(first, first + len(own.indices))
    before = Neighbours(table.indices[rows], table.similarities[rows])
    own = Neighbours(own.indices + np.int32(start), own.similarities)
    table.indices[rows], table.similarities[rows] = merge_neighbours(
        before, own, table.indices.shape[1]
    )


def _complete(found: Neighbours, question: _Question, references: Vectors) -> None:
    """Searches exactly for queries that came short of neighbours in all parts."""
    short = np.flatnonzero(np.isinf(found.similarities[:, -1]))
    if short.size:
        rest = _sampled(question, short)
        exact = _search_exactly(rest, 0, references)
        found.indices[short], found.similarities[short] = exact


def _checked_result(
    found: Neighbours,
    exact: Neighbours,
    measuring: np.ndarray,
    settings: ScannSettings,
    part_rows: int,
    recall_target: float,
) -> SearchResult:
    measured = Neighbours(*(field[measuring] for field in found))
    recall, recall_at_k = compute_recall(measured, exact)
    if recall < recall_target:
        logger.warning(
            "ScaNN's recall@1 is %.4f, below the target of %.4f: search exactly, or "
            "give settings with more leaves to search",
            recall,
            recall_target,
        )
    used = dataclasses.asdict(settings) | {
        "part_rows": part_rows,
        "recall_queries": len(measuring),
    }
    return SearchResult(found, "scann", used, recall, recall_at_k)
