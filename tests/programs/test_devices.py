"""The same run on one device, with its batches split over four (`data`), and on two
processes of two devices each, with the parameters split, too, and latents from a cache
that both fill (`processes`)."""

import json
import shutil
import socket

import numpy as np
import pandas as pd
import pytest

from configs import tiny
from copymit.data.schedule import examples_of_step, make_schedule
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_run

# The second splits batches over devices, too.
KINDS = (pytest.param("data", marks=pytest.mark.slow), "processes")


@pytest.fixture(scope="module")
def start(programs, tmp_path_factory):
    """Starts a training of a kind, which also notes the examples that it draws."""
    root = tmp_path_factory.mktemp("devices")

    def start(kind, devices, *flags, note=""):
        process = programs.start(
            "tests/programs/record_examples.py",
            root / f"{kind}{note}.txt",
            *programs.flags,
            "--config.train.sample_every_steps=0",
            f"--workdir={root / kind}",
            *flags,
            XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
            JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        )
        return process, root / kind

    return start


@pytest.fixture(scope="module")
def data(start, programs):
    process, workdir = start("data", 4)
    programs.finish(process)
    return workdir


@pytest.fixture(scope="module")
def processes(start, programs):
    flags = [
        "--config.mesh.fsdp=2",
        "--config.data.cache_latents=true",
        "--config.train.keep_checkpoints=2",
        f"--coordinator=127.0.0.1:{free_port()}",
        "--num_processes=2",
    ]
    started = [
        start("processes", 2, *flags, f"--process_id={i}", note=i) for i in range(2)
    ]
    for process, _ in started:
        programs.finish(process)
    return started[0][1]


@pytest.fixture
def workdir(kind, request):
    """Of the run of a kind."""
    return request.getfixturevalue(kind)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def drawn(path):
    return np.array([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_do_not_depend_on_devices_or_processes(kind, workdir, finished):
    table = pd.read_parquet(finished.workdir / "duplication.parquet")
    config = tiny.get_config()
    schedule = make_schedule(
        table["weight"].to_numpy(), config.data.sampling, config.seed
    )
    expected = [
        examples_of_step(schedule, step, config.train.batch_size)
        for step in range(finished.last_step)
    ]
    parts = [drawn(path) for path in sorted(workdir.parent.glob(f"{kind}*.txt"))]
    assert len(parts) == (2 if kind == "processes" else 1)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_devices_or_processes(kind, workdir, finished):
    # Sums over a batch are taken in another order, which costs some float32 roundings of
    # 1e-7 a step. Other examples would change the loss by a tenth.
    expected = finished.losses()
    found = type(finished)(workdir).losses()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_process_goes_on_from_a_checkpoint_of_two(
    processes, programs, finished, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(processes, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(finished.last_step))
    flags = (*programs.flags, "--config.train.sample_every_steps=0")
    said = programs.run("train.py", *flags, f"--workdir={workdir}")
    assert f"going on from step {finished.last_step - 3} of" in said
    losses = type(finished)(workdir).losses()
    np.testing.assert_allclose(losses, finished.losses(), rtol=1e-5)  # as above


@pytest.mark.parametrize("devices", [1, 4])
def test_an_image_does_not_depend_on_its_batch_or_the_devices(
    devices, programs, copied
):
    if devices == 1:
        config = tiny.get_config()
        config.eval.batch_size = 5
        run_stages(open_run(copied.workdir, config, "new"), ["generate"])
    else:
        programs.run(
            "evaluate.py",
            f"--workdir={copied.workdir}",
            "--name=new",
            "--stages=generate",
            "--config=configs/tiny.py",
            "--config.eval.batch_size=4",
            XLA_FLAGS="--xla_force_host_platform_device_count=4",
        )
    found, expected = copied.pictures("new"), copied.pictures()
    assert found.keys() == expected.keys()
    for file, image in expected.items():
        # Products of other shapes sum in another order; a value at the edge between two
        # grey levels may then round to the other one.
        difference = np.abs(image.astype(int) - found[file])
        assert difference.max() <= 1, file
        assert (difference > 0).mean() < 0.01, file
    assert len({image.tobytes() for image in expected.values()}) == len(expected)


def test_two_processes_evaluate_as_one_does(programs, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    shutil.rmtree(workdir / "eval")
    flags = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    started = [
        programs.start(
            "evaluate.py",
            f"--workdir={workdir}",
            "--config=configs/tiny.py",
            "--config.eval.embedders=('pixels',)",  # soon compiled
            "--config.eval.quality_embedders=()",
            *flags,
            f"--process_id={i}",
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
            JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
        )
        for i in range(2)
    ]
    for process in started:
        programs.finish(process)
    run = type(finished)(workdir)
    assert run.pictures().keys() == finished.pictures().keys()
    found, expected = (
        json.loads((r.out / "scores.json").read_text()) for r in (run, finished)
    )
    measured = {name for name in expected if name.startswith("pixels_")}
    assert measured <= {f"pixels_{name}" for name in found}
    # Grey levels differ by at most one here and there, as above.
    for name in ("similarity_mean", "dataset_similarity", "similarity_p75"):
        assert found[name] == pytest.approx(expected[f"pixels_{name}"], abs=0.02), name
    assert (run.out / "report.html").exists()
