"""The doctor says what is wrong with a host and what to do, and little else."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch import doctor

ROOT = Path(__file__).parents[2]
PINS = ["# tested together", "jax==1.0", "Flax==2.0 ; python_version >= '3.11'"]
PINS += ["jax==0.9 ; python_version < '3.11'", "libtpu==3.0", "pytest==4.0"]
SLURM_PORTS = range(65535 - 2**12 + 1, 65536)  # jax takes that of the job's number
FOUND = {"jax": "1.0", "flax": "2.0", "libtpu": "3.0", "pytest": "4.0"}


def packages(backend="cpu", **changed):
    found = {name: v for name, v in {**FOUND, **changed}.items() if v is not None}
    needed = ["", "jax", "flax", "scann; sys_platform == 'nowhere'"]
    return doctor.look_at_packages(needed, PINS, found, backend)


def free_port():
    for port in SLURM_PORTS:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_healthy_host_has_a_line_for_each_check_and_exit_code_0(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(doctor, "accelerator", lambda: "")
    assert doctor.main([f"--workdir={tmp_path / 'runs'}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:-1]] == [
        ["ok", subject] for subject in ("devices", "packages", "storage", "step")
    ]
    assert said[-1] == "nothing is wrong"
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_accelerator_that_jax_does_not_use_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "accelerator", lambda: "TPU")
    assert doctor.main([]) == 1
    wrong, advice = capsys.readouterr().out.splitlines()
    assert wrong.startswith("WRONG devices ")
    assert "this host has a TPU, but jax uses the CPU" in wrong
    assert "-e '.[tpu]'" in advice


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "accelerator", lambda: "")
    (tmp_path / "file").write_text("not a directory")
    assert doctor.main([f"--workdir={tmp_path / 'file' / 'runs'}"]) == 1
    said = capsys.readouterr().out
    assert (
        f"WRONG storage   NotADirectoryError: [Errno 20] Not a directory: '{tmp_path}"
    )
    assert "-> name one that you may write to" in said
    assert said.endswith("\nwrong: storage\n")


def test_a_bucket_that_never_answers_is_given_up(monkeypatch, capsys):
    answer = threading.Event()
    monkeypatch.setattr(doctor, "use", lambda place: answer.wait())
    for check in ("look_at_devices", "look_at_packages", "run_step"):
        monkeypatch.setattr(doctor, check, lambda *_: "well")
    assert doctor.main(["--workdir=gs://bucket/runs", "--patience=2"]) == 1
    answer.set()
    said = capsys.readouterr().out
    assert "WRONG storage   TimeoutError: no answer in 2 s" in said
    assert "gcloud storage ls gs://bucket; log in" in said


def test_a_missing_package_is_wrong():
    with pytest.raises(ModuleNotFoundError, match=r"not installed: flax$"):
        packages(flax=None)


def test_other_versions_are_one_short_line():
    said = packages(jax="1.1", flax="2.1")
    assert said.endswith(": jax 1.1 (1.0), flax 2.1 (2.0)")


def test_what_makes_no_difference_here_is_not_mentioned():
    assert packages(pytest="9", libtpu="9") == "as tested, jax 1.0"
    assert "libtpu 9 (3.0)" in packages("tpu", libtpu="9")
    assert packages(flax="2.0+cpu") == "as tested, jax 1.0"


def test_two_tasks_of_slurm_share_one_step_and_the_first_says_what_is_well():
    """Slurm itself is not there: what srun says to its tasks is said by the test."""
    slurm = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm["SLURM_JOB_ID"] = str(free_port() - SLURM_PORTS.start)
    slurm["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    both = [
        start(
            "--distributed", "--patience=300", SLURM_PROCID=i, SLURM_LOCALID=i, **slurm
        )
        for i in "01"
    ]
    try:
        first, second = (process.communicate()[0] for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], first + second
    assert "ok    devices   cpu: 4 (cpu), 2 here, 2 process(es)" in first
    assert "ok    step      compiled and run on 4 devices" in first
    assert "nothing is wrong" in first
    assert "ok    step" not in second


def test_a_host_that_waits_in_vain_has_said_what_to_do():
    there = f"--coordinator=127.0.0.1:{free_port()}"
    alone = start(there, "--num_processes=2", "--process_id=0", "--patience=2")
    said, _ = alone.communicate()
    assert alone.returncode != 0
    assert "joining; jax aborts after 2 s if one does not come:" in said
    assert (
        "-> start the same command on every host; see that all reach process 0" in said
    )
