"""Nearest-neighbour search against faiss: speed at recall@1 0.99, index time and memory.

    python -m benchmarks.search [SIZE ...] [SIDE ...]   the table; all of both by default
    python -m benchmarks.search measure SIDE FOLDER     one side, as lines of JSON

10,000 queries and k = 10 in clustered unit vectors of 512 dimensions: half of the queries
are noisy copies of references, half are new members of their clusters. Each side runs in
a process of its own for each size, so that memory is its own. On two cores a million
references take over an hour, most of it faiss building its HNSW.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.timing import Row

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, DIMENSIONS, K = 10_000, 512, 10
RECALL_TARGET = 0.99
# Recall is measured on these queries, every tenth, so of both kinds. Flat search is
# timed on them only.
MEASURED = slice(0, QUERIES, 10)
OURS = ("scann", "auto")
FAISS = ("flat", "ivf", "ivfpq", "hnsw")


class Measured(NamedTuple):
    """One setting of one side.

    Attributes:
      setting: index and effort.
      recall: recall@1.
      queries_per_s: of a search with a built index; for `auto`, index included.
      index_s: seconds to train and fill the index; for ours also to tune it and to
        measure its recall.
      memory_mib: growth of the peak of resident memory beyond the vectors.
    """

    setting: str
    recall: float
    queries_per_s: float
    index_s: float
    memory_mib: float

    @property
    def total_s(self) -> float:
        """Seconds from vectors to the neighbours of all queries."""
        return self.index_s + QUERIES / self.queries_per_s


def run(
    sizes: tuple[int, ...] = SIZES, sides: tuple[str, ...] = OURS + FAISS
) -> list[Row]:
    """Prints every setting, and compares the fastest that reach the recall target."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _write_vectors(Path(folder), size)
            found = {side: _measure(side, Path(folder), size) for side in sides}
        good = {
            f"faiss {side} {one.setting}": one
            for side in FAISS
            for one in found.get(side, [])
            if one.recall >= RECALL_TARGET
        }
        if not good or not set(OURS) <= set(found):
            continue
        (scann,), (auto,) = (found[side] for side in OURS)
        peer = max(good, key=lambda name: good[name].queries_per_s)
        seconds = QUERIES / scann.queries_per_s, QUERIES / good[peer].queries_per_s
        name = f"{QUERIES} queries in {size} x {DIMENSIONS}"
        rows.append(
            Row(f"{name}, built: {scann.setting}", seconds[0], peer, seconds[1])
        )
        peer = min(good, key=lambda name: good[name].total_s)
        seconds = auto.total_s, good[peer].total_s
        rows.append(
            Row(f"{name}, in all: {auto.setting}", seconds[0], peer, seconds[1])
        )
    return rows


def _measure(side: str, folder: Path, size: int) -> list[Measured]:
    command = [sys.executable, "-m", "benchmarks.search", "measure", side, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = [
        Measured(*json.loads(line))
        for line in done.stdout.splitlines()
        if line.startswith("[")
    ]
    for one in found:
        print(
            f"{size:9,} {side:6} {one.setting:30} recall@1 {one.recall:.4f} "
            f"{one.queries_per_s:9,.0f} queries/s  index {one.index_s:7.1f} s "
            f"{one.memory_mib:7,.0f} MiB",
            flush=True,
        )
    return found


def _write_vectors(folder: Path, size: int) -> None:
    """Writes references, queries, and the exact similarities of the measured ones."""
    from copymit.search.exact import search_exact

    rng = np.random.default_rng(0)
    # Clusters of 10, 100 and 200 references; two members have similarity 0.5.
    num_centres = max(1_000, size // 200)
    centres = rng.standard_normal((num_centres, DIMENSIONS), np.float32)

    def members(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, DIMENSIONS), np.float32)
        return _unit(noise + centres[rng.integers(num_centres, size=count)])

    path = folder / "references.npy"
    shape = (size, DIMENSIONS)
    references = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    for start in range(0, size, 50_000):
        references[start : start + 50_000] = members(min(50_000, size - start))
    copied = references[np.sort(rng.choice(size, QUERIES // 2, replace=False))]
    noise = rng.standard_normal(copied.shape, np.float32) / np.sqrt(DIMENSIONS)
    queries = np.concatenate([_unit(copied + 0.7 * noise), members(QUERIES // 2)])
    exact = search_exact(queries[MEASURED], references, 1)
    np.savez(folder / "queries.npz", queries=queries, truth=exact.similarities)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class _Task(NamedTuple):
    references: np.ndarray
    queries: np.ndarray
    truth: np.ndarray
    folder: Path
    start_kib: int

    def measured(
        self, setting: str, similarities: np.ndarray, seconds: float, index_s: float
    ) -> Measured:
        found = similarities if len(similarities) < QUERIES else similarities[MEASURED]
        recall = float((found[:, :1] >= self.truth - 1e-5).mean())
        growth = _peak_kib() - self.start_kib
        speed = len(similarities) / seconds
        return Measured(setting, recall, speed, index_s, growth / 1024)


def _load_task(folder: Path) -> _Task:
    references = np.load(folder / "references.npy")
    data = np.load(folder / "queries.npz")
    return _Task(references, data["queries"], data["truth"], folder, _peak_kib())


def _peak_kib() -> int:
    # getrusage would report the peak of the parent, which a child inherits.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _auto(task: _Task) -> Iterator[Measured]:
    """Yields copymit's one call with its own choice of backend."""
    from copymit.search.nearest import search

    started = time.perf_counter()
    result = search(task.queries, task.references, K, recall_target=RECALL_TARGET)
    seconds = time.perf_counter() - started
    similarities = result.neighbours.similarities
    yield task.measured(result.backend, similarities, seconds, 0.0)


def _scann(task: _Task) -> Iterator[Measured]:
    """Yields copymit's ScaNN with the settings that it tunes itself to."""
    import copymit.search.scann_search as scann_search

    open_part, searchers = scann_search.open_part, []

    def opened(*arguments: Any) -> Any:
        searchers.append(open_part(*arguments))
        return searchers[-1]

    scann_search.open_part = opened  # type: ignore[assignment]
    started = time.perf_counter()
    result = scann_search.search_scann(
        task.queries, task.references, K, recall_target=RECALL_TARGET
    )
    total_s = time.perf_counter() - started
    names = ("kind", "num_leaves", "num_leaves_to_search", "reorder")
    chosen = {name: result.settings[name] for name in names}
    settings = scann_search.ScannSettings(**chosen)
    none = np.full(QUERIES, -1)
    (searcher,) = searchers
    seconds = min(
        _seconds(scann_search.ask_scann, searcher, task.queries, K, none, K, settings)
        for _ in range(3)
    )
    setting = " ".join(str(value) for value in chosen.values())
    similarities = result.neighbours.similarities
    yield task.measured(setting, similarities, seconds, total_s - seconds)


def _faiss(task: _Task, side: str) -> Iterator[Measured]:
    """Yields an index of faiss with more and more effort."""
    import faiss

    size = len(task.references)
    # faiss's guidance is 4 sqrt(N) to 16 sqrt(N) lists.
    lists = 2 ** round(np.log2(4 * np.sqrt(size)))
    factory, efforts = {
        "flat": ("Flat", [""]),
        "ivf": (f"IVF{lists},Flat", [f"nprobe={n}" for n in (1, 2, 4, 8, 16, 32)]),
        "ivfpq": (
            f"IVF{lists},PQ{DIMENSIONS // 2}x4fs,RFlat",
            [
                f"nprobe={n},k_factor_rf={f}"
                for n, f in itertools.product((1, 2, 4, 8, 16, 32), (3, 10))
            ],
        ),
        "hnsw": ("HNSW32", [f"efSearch={n}" for n in (16, 32, 64, 128)]),
    }[side]
    index = faiss.index_factory(DIMENSIONS, factory, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    index.train(task.references)
    index.add(task.references)
    index_s = time.perf_counter() - started
    queries = task.queries[MEASURED] if side == "flat" else task.queries
    for effort in efforts:
        if effort:
            faiss.ParameterSpace().set_index_parameters(index, effort)
        seconds = _seconds(index.search, queries, K)
        if side != "flat":
            seconds = min(seconds, *(_seconds(index.search, queries, K) for _ in "12"))
        similarities, _ = index.search(queries[: len(queries)], K)
        yield task.measured(f"{factory} {effort}", similarities, seconds, index_s)


def _seconds(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def _main(arguments: list[str]) -> None:
    if arguments[:1] == ["measure"]:
        side, task = arguments[1], _load_task(Path(arguments[2]))
        measure = {"auto": _auto, "scann": _scann}.get(side)
        for one in measure(task) if measure else _faiss(task, side):
            print(json.dumps(one), flush=True)
        return
    sizes = tuple(int(word) for word in arguments if word.isdigit())
    sides = tuple(word for word in arguments if not word.isdigit())
    for row in run(sizes or SIZES, sides or OURS + FAISS):
        print(f"{row.name}: {row.ratio:.2f} times as fast as {row.peer}")


if __name__ == "__main__":
    _main(sys.argv[1:])
