"""What the tests of the programs share: how to start one, and one small finished run.

Test modules load this with `pytest_plugins`, so the run is made once a session.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import tiny

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/tiny.py"
LAST_STEP = tiny.get_config().train.steps


class Programs:
    """Starts the programs as a user does, with one cache of compiled functions.

    Args:
      cache: directory of compiled functions.
    """

    def __init__(self, cache: Path):
        self._cache = cache

    def start(self, *command: object, **environment: str) -> subprocess.Popen:
        """Starts `python COMMAND...` in the project's root."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(self._cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                # Compilation is most of the time of runs as short as these.
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "XLA_FLAGS": "",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess:
        """Runs `python COMMAND...` to its end."""
        process = self.start(*command, **environment)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(
            process.args, process.returncode, stdout, stderr
        )

    def must_run(self, *command: object, **environment: str) -> str:
        """Runs `python COMMAND...`, which must succeed; returns what it said."""
        done = self.run(*command, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Programs:
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Programs(Path(cache) if cache else tmp_path_factory.mktemp("jax_cache"))


@pytest.fixture(scope="session")
def tiny_run(programs, tmp_path_factory) -> Path:
    """Trains and evaluates configs/tiny.py by the programs, without interruption.

    Tests must not change it: those that want to copy it first.
    """
    workdir = tmp_path_factory.mktemp("programs") / "tiny"
    programs.must_run("train.py", TINY, f"--workdir={workdir}")
    programs.must_run("evaluate.py", f"--workdir={workdir}")
    return workdir


def checkpoint_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Reads every array of a checkpoint."""
    arrays = {}
    for item in ("params", "ema", "optimizer"):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(workdir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays
