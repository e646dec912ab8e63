"""Cores, GPUs and their memory are dealt out, and what the user decided stays."""

import os
import subprocess
import sys

import pytest

from launch import slots
from launch.slots import Slot, deal, deal_slots, tied


@pytest.mark.parametrize(
    ("items", "workers", "shares"),
    [
        ([0, 1], 1, [(0, 1)]),
        ([0, 1, 2, 3], 2, [(0, 1), (2, 3)]),
        ([4, 6, 8], 2, [(4, 6), (8,)]),
        ([0, 1], 3, [(0,), (1,), (0,)]),
        ([], 2, [(), ()]),
    ],
)
def test_items_are_dealt_out(items, workers, shares):
    assert deal(items, workers) == shares


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores and GPUs, with nothing decided by its user."""

    def make(cores, gpus):
        monkeypatch.setattr(slots, "_cores", lambda: list(range(cores)))
        found = [f"/dev/nvidia{i}" for i in range(gpus)]
        monkeypatch.setattr(slots.glob, "glob", lambda pattern: found)

    for name in ("CUDA_VISIBLE_DEVICES", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    return make


def test_a_worker_has_its_cores_and_the_shared_cache(machine):
    machine(4, 0)
    assert deal_slots(2, "/cache") == [
        Slot(
            cores,
            {
                "OMP_NUM_THREADS": "2",
                "OPENBLAS_NUM_THREADS": "2",
                "MKL_NUM_THREADS": "2",
                "JAX_COMPILATION_CACHE_DIR": "/cache",
            },
        )
        for cores in ((0, 1), (2, 3))
    ]


def test_each_worker_has_gpus_of_its_own_with_all_their_memory(machine):
    machine(16, 8)
    dealt = deal_slots(4, "")
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in dealt]
    assert visible == ["0,1", "2,3", "4,5", "6,7"]
    fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    assert not [slot for slot in dealt if fraction in slot.environment]


def test_workers_that_share_a_gpu_divide_its_memory(machine):
    machine(16, 2)
    environments = [slot.environment for slot in deal_slots(5, "")]
    visible = [found["CUDA_VISIBLE_DEVICES"] for found in environments]
    assert visible == ["0", "1", "0", "1", "0"]
    fractions = {found["XLA_PYTHON_CLIENT_MEM_FRACTION"] for found in environments}
    assert fractions == {"0.30"}


def test_what_the_user_decided_stays(machine, monkeypatch):
    machine(2, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    for slot in deal_slots(2, "/cache"):
        assert slot.environment["CUDA_VISIBLE_DEVICES"] == "6"
        assert slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.2"
        assert slot.environment["JAX_COMPILATION_CACHE_DIR"] == "/mine"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "CUDA_VISIBLE_DEVICES" not in deal_slots(1, "")[0].environment


def test_a_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="--num_workers=0 must be at least 1"):
        deal_slots(0, "")


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux binds and ends programs"
)
def test_a_program_is_tied_to_the_pool_and_its_cores():
    core = min(os.sched_getaffinity(0))
    code = "import os, sys; print(sys.argv[1:], *os.sched_getaffinity(0))"
    words = tied([sys.executable, "-S", "-c", code, "a b", "$c"], Slot((core,), {}))
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"['a b', '$c'] {core}"
    orphan = [word.replace(f"= {os.getpid()} ", "= 1 ") for word in words]
    assert subprocess.run(orphan, capture_output=True, text=True).stdout == ""
