"""Searches in processes of their own: on several devices, and in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from copymit.search.exact import search_exact, stream_neighbours
from copymit.search.nearest import search
from copymit.search.vectors import as_vectors

ROOT = Path(__file__).parents[2]

ON_FOUR_DEVICES = """
import sys
import jax, numpy as np
from copymit.search.exact import search_exact
from copymit.search.nearest import search
assert jax.local_device_count() == 4
data = np.load(sys.argv[1])
found = {}
for block in (5, 64, 4096):
    result = search_exact(data["queries"], data["references"], 7,
                          exclude=data["exclude"], reference_block=block)
    found[f"indices{block}"], found[f"similarities{block}"] = result
few = search_exact(data["queries"], data["references"][:3], 3)
found["few"] = few.indices
found["approx"] = search(data["queries"], data["references"], 7, backend="approx",
                         exclude=data["exclude"]).neighbours.indices
np.savez(sys.argv[2], **found)
"""

IN_LITTLE_MEMORY = """
import pathlib, sys
import numpy as np
from copymit.search.exact import search_exact
from copymit.search.vectors import open_vectors
def peak_kib():
    # getrusage would report the peak of the parent, which a child inherits.
    return int(pathlib.Path("/proc/self/status").read_text()
               .partition("VmHWM:")[2].split()[0])
rows = np.load(sys.argv[1], mmap_mode="r")
queries = np.asarray(rows[:3_000])
search_exact(queries, np.asarray(rows[:9_000]), 11)  # Compiles, and starts threads.
before = peak_kib()
search_exact(queries, open_vectors([sys.argv[1]], "references"), 11)
print(peak_kib() - before)
"""


def unit_rows(count, dimension, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dimension), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def run_script(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def test_four_devices_find_what_one_does(tmp_path):
    references = unit_rows(403, 16, 0)
    references[[7, 150, 300, 402]] = references[7]  # Ties on every device.
    queries = np.concatenate([unit_rows(30, 16, 1), references[[7, 150]]])
    exclude = np.full(32, -1)
    exclude[-2:] = [7, 150]
    inputs, output = tmp_path / "inputs.npz", tmp_path / "found.npz"
    np.savez(inputs, queries=queries, references=references, exclude=exclude)
    run_script(ON_FOUR_DEVICES, inputs, output, JAX_NUM_CPU_DEVICES="4")
    found = np.load(output)
    one = search_exact(queries, references, 7, exclude=exclude)
    for block in (5, 64, 4096):
        np.testing.assert_array_equal(found[f"indices{block}"], one.indices)
        # The order of 16 float32 additions may differ with the shape of a block.
        np.testing.assert_allclose(
            found[f"similarities{block}"], one.similarities, atol=1e-6
        )
    assert one.indices[-2, :3].tolist() == [150, 300, 402]
    assert one.indices[-1, :3].tolist() == [7, 300, 402]
    np.testing.assert_array_equal(
        found["few"], search_exact(queries, references[:3], 3).indices
    )
    # Off TPUs the approximate search is lowered to an exact one.
    np.testing.assert_array_equal(found["approx"][:30], one.indices[:30])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_queries_times_references(tmp_path):
    path = tmp_path / "00000.npy"
    np.save(path, unit_rows(200_000, 64, 0))
    growth_mib = int(run_script(IN_LITTLE_MEMORY, path)) / 1024
    # All similarities would be 2,290 MiB. 18 MiB were measured; the pages of the mapped
    # file may count (49 MiB), and so may what the allocator keeps.
    assert 0 <= growth_mib < 150


def test_queries_are_streamed_in_groups(monkeypatch):
    references = unit_rows(60, 8, 0)
    whole = search_exact(references, references, 4, exclude=np.arange(60))
    monkeypatch.setattr("copymit.search.exact.BLOCK_ROWS", 17)
    grouped = search_exact(references, references, 4, exclude=np.arange(60))
    np.testing.assert_array_equal(grouped.indices, whole.indices)


def test_the_approximate_search_is_exact_off_tpus_and_says_what_it_measured():
    queries, references = unit_rows(40, 16, 1), unit_rows(500, 16, 0)
    result = search(queries, references, 5, backend="approx", recall_target=0.9)
    exact = search_exact(queries, references, 5)
    np.testing.assert_array_equal(result.neighbours.indices, exact.indices)
    assert (result.backend, result.recall) == ("approx", 1.0)
    assert result.settings == {"recall_target": 0.9, "recall_queries": 20}


def test_auto_is_approximate_on_tpus(monkeypatch):
    monkeypatch.setattr("copymit.search.nearest.EXACT_PRODUCTS", 10)
    monkeypatch.setattr("copymit.search.nearest.RECALL_QUERIES", 5)
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert search(unit_rows(30, 8, 0), unit_rows(40, 8, 1), 2).backend == "approx"


def test_fewer_references_than_neighbours_leave_places_empty():
    vectors = as_vectors(unit_rows(3, 8, 0), "references")
    found = stream_neighbours(vectors, vectors, 5, np.full(3, -1))
    assert np.isneginf(found.similarities[:, 3:]).all()
    assert np.isfinite(found.similarities[:, :3]).all()
