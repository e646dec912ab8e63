"""The command that the run verb starts on every host trains with jax.distributed.

On Cloud TPU jax asks the metadata of the TPU VM who the other hosts are; here it finds
them in the variables that Open MPI would set, and otherwise everything is the same:
`jax.distributed.initialize()` without an argument, one process a host.
"""

import json
import shlex
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from launch import tpu

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# As small as the runs of tests/programs, which compile less.
FLAGS = [
    "--config=configs/tiny.py",
    "--config.mesh.fsdp=2",
    "--config.model.unet.block_out_channels=(32,)",
    "--config.model.unet.cross_attention=(False,)",
    "--config.train.sample_every_steps=0",
    "--config.train.steps=3",
]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def two_hosts(cloud, monkeypatch):
    """A slice of two hosts that run the real train.py, with two devices each."""
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("copymit", "configs"):
        shutil.copytree(ROOT / name, cloud.project / name, ignore=skipped)
    shutil.copy(ROOT / "train.py", cloud.project)
    cloud.git("add", "--", "copymit", "configs", "train.py")
    port = free_port()
    # The port that jax makes of this is 61440 plus the job's number.
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    cloud.environment(
        FAKE_PYTHON_FLAGS="",
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
        OMPI_MCA_orte_hnp_uri=f"{(port - 61440) % 4096 * 4096}.0;tcp://127.0.0.1:1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_RANK="{index}",
        OMPI_COMM_WORLD_LOCAL_RANK="0",
    )
    return cloud


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def test_two_hosts_train_as_one(two_hosts, tmp_path):
    workdir = tmp_path / "run"
    command = ["train.py", f"--workdir={workdir}", *FLAGS]
    flags = ["--local-workdir", "--poll-secs=2"]
    assert two_hosts.do("run", *flags, "--", *command) == 0, logs(two_hosts)
    (start,) = [w for w in two_hosts.calls("ssh") if " start " in str(w)]
    (sent,) = [w for w in start if w.startswith("--command=")]
    words = json.loads(shlex.split(sent)[-1])
    assert words == ["python", *command, "--distributed"]
    recorded = json.loads((workdir / "config.json").read_text())
    assert "--distributed" in str(recorded)
    found = losses(workdir)
    assert len(found) >= 2
    assert np.isfinite(list(found.values())).all()
    # One run of two processes with two devices each, not two runs of one.
    assert "4 cpu device(s)" in logs(two_hosts)
    assert "2 cpu device(s)" not in logs(two_hosts)
    assert list((workdir / "checkpoints").iterdir())


def logs(cloud):
    return "\n".join(p.read_text() for p in cloud.folder.glob("hosts/*/*/runs/*/log"))


def test_the_root_of_the_code_is_that_of_the_programs():
    assert (tpu._ROOT / "train.py").exists()
