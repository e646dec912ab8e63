"""The table of a GPU: what it says where there is none."""

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
