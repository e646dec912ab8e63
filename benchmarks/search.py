"""Nearest-neighbour search: ScaNN at recall 0.99 against copymit's own exact search."""

import numpy as np

from benchmarks.timing import Row, best_of
from copymit.search.nearest import search

_REFERENCES, _QUERIES, _DIMENSIONS = 100_000, 2_000, 256


def run() -> list[Row]:
    """Times both on clustered unit vectors, index and tuning included."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1_000, _DIMENSIONS))
    chosen = centres[rng.integers(1_000, size=_REFERENCES)]
    references = chosen + 0.5 * rng.standard_normal(chosen.shape)
    queries = references[rng.choice(_REFERENCES, _QUERIES, replace=False)]
    queries = queries + 0.2 * rng.standard_normal(queries.shape)
    references, queries = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        for x in (references, queries)
    )
    seconds = {
        backend: best_of(
            lambda b=backend: search(queries, references, 10, backend=b).neighbours,
            repeats=1,
        )
        for backend in ("exact", "scann")
    }
    name = f"search, {_QUERIES} queries in {_REFERENCES} x {_DIMENSIONS}"
    return [
        Row(f"{name}: scann, built", seconds["scann"], "exact", seconds["exact"]),
    ]
