"""Runs on an NVIDIA GPU, with the flags of docs/tpu.md; skipped where none is."""

import glob
import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not glob.glob("/dev/nvidia[0-9]*"), reason="no NVIDIA GPU is here"
)

# As users compile, unlike other tests.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cuda",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "XLA_FLAGS": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(
    programs, finished, tmp_path, dtype
):
    whole, resumed = (type(finished)(tmp_path / name) for name in ("whole", "resumed"))
    command = [
        "train.py",
        *programs.flags,
        "--config.train.checkpoint_every_steps=3",
        "--config.train.keep_checkpoints=9",
        f"--config.train.dtype={dtype}",
        "--config.model.unet.attention_implementation=chunked",
    ]
    programs.run(*command, f"--workdir={whole.workdir}", **ENVIRONMENT)
    shutil.copytree(whole.workdir, resumed.workdir)
    first, *later = whole.checkpoints()
    assert first == 3 < whole.last_step == later[-1]
    for step in later:
        shutil.rmtree(resumed.workdir / "checkpoints" / str(step))
    said = programs.run(*command, f"--workdir={resumed.workdir}", **ENVIRONMENT)
    assert f"going on from step {first} of" in said
    found, expected = resumed.arrays(), whole.arrays()
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
