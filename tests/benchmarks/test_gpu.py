"""The table of a GPU: what it says where there is none, and its measurements, small."""

import json
import types

import jax
import pytest

from benchmarks import embedding, gpu, unet


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="takes minutes on a GPU")
def test_without_a_gpu_nothing_is_measured_and_that_is_said(capsys, monkeypatch):
    monkeypatch.setattr(gpu.subprocess, "run", None)  # would fail if it were called
    gpu.main()
    assert (
        capsys.readouterr().out == "no GPU that jax knows is here: nothing to measure\n"
    )


def test_what_the_table_names_is_there_to_be_measured():
    assert set(gpu.EMBEDDERS) <= set(embedding.CASES)
    assert {task for task, _, _ in gpu.TASKS.values()} == set(gpu.REPEATS)
    assert set(gpu.REPEATS) <= set(unet.TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["copymit", "torch eager"])
@pytest.mark.parametrize("task", ["training step", "50-step sampling"])
def test_a_side_measures_a_task_as_the_table_reads_it(side, task, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    # What only a GPU can be asked.
    device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 2**30})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    monkeypatch.setattr(gpu, "SIZE", "small")
    monkeypatch.setattr(gpu, "TASKS", {"small": (task, 1, 8)})
    monkeypatch.setattr(gpu, "REPEATS", {task: 1})
    gpu._print_unet(side, "small")
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0
    assert found["gib"] == 1
    monkeypatch.setattr(gpu, "_run", lambda *_: json.dumps(found))
    assert " s 1.0 GiB " in gpu._measure_unet(side, "small")
