"""Starts the programs as a user does, and keeps one small finished run for all tests.

Most of the time of runs as short as these is compilation, so there is one level in the
UNet instead of two, without attention but in the middle.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from filelock import FileLock
from PIL import Image

from configs import tiny
from copymit.metrics import read_metrics

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 1800  # a busy machine is slow


@dataclass(frozen=True)
class Run:
    """A working directory, and what its artefacts hold."""

    workdir: Path
    last_step: ClassVar[int] = tiny.get_config().train.steps

    @property
    def out(self) -> Path:
        """The evaluation of the last step."""
        return self.workdir / "eval" / str(self.last_step)

    def logged_steps(self) -> list[int]:
        return [m["step"] for m in read_metrics(self.workdir)]

    def losses(self) -> np.ndarray:
        assert self.logged_steps() == list(range(1, self.last_step + 1))
        return np.array([m["loss"] for m in read_metrics(self.workdir)])

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that Orbax has given their final names."""
        folder = self.workdir / "checkpoints"
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the last checkpoint."""
        arrays = {}
        for item in ("params", "ema", "optimizer"):
            with ocp.StandardCheckpointer() as checkpointer:
                folder = self.workdir / "checkpoints" / str(self.last_step) / item
                tree = checkpointer.restore(folder)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
        return arrays

    def pictures(self, name: str = "") -> dict[str, np.ndarray]:
        """The generations of an evaluation, by default of that of the last step."""
        out = self.workdir / "eval" / name if name else self.out
        files = (out / "generations").glob("*.png")
        return {path.name: np.array(Image.open(path)) for path in files}


class Programs:
    """Starts the programs.

    Args:
      without_torch: directory of a module that hides torch: it is for the tests only,
        so the programs must do without it, and start faster.
    """

    flags = (
        "--config=configs/tiny.py",
        "--config.model.unet.block_out_channels=(32,)",  # sharded kernels need as much
        "--config.model.unet.cross_attention=(False,)",
    )

    def __init__(self, without_torch: Path):
        self._environment = {"PYTHONPATH": f"{without_torch}{os.pathsep}{ROOT}"}

    def start(
        self, *command, XLA_FLAGS="", cwd=ROOT, **environment
    ) -> subprocess.Popen:
        """Starts `python COMMAND...`, by default in the project's root.

        It compiles as the tests do, so that its numbers are theirs to the last bit.
        """
        environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {XLA_FLAGS}"
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=cwd,
            env={**os.environ, **self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen, code: int = 0) -> str:
        """Waits for a program that ends with `code`; returns what it said."""
        try:
            stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
        assert process.returncode == code, stderr
        return stdout + stderr

    def run(self, *command, **environment) -> str:
        """Runs `python COMMAND...`, which must succeed; returns what it said."""
        return self.finish(self.start(*command, **environment))


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    without_torch = tmp_path_factory.mktemp("without_torch")
    (without_torch / "torch.py").write_text("raise ImportError('not installed')\n")
    return Programs(without_torch)


@pytest.fixture(scope="session")
def finished(programs, tmp_path_factory):
    """A run that was trained and evaluated without interruption; not to be changed.

    The first worker of pytest-xdist to want it makes it for all of them.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    run = Run(root / "finished")
    with FileLock(root / "finished.lock"):
        if not (root / "finished.ok").exists():
            shutil.rmtree(run.workdir, ignore_errors=True)  # of a worker that failed
            programs.run("train.py", *programs.flags, f"--workdir={run.workdir}")
            said = programs.run("evaluate.py", f"--workdir={run.workdir}")
            assert str(run.out / "report.html") in said.splitlines()
            (root / "finished.ok").touch()
    return run


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, to be changed."""
    return Run(Path(shutil.copytree(finished.workdir, tmp_path / "run")))
