"""The page about one host, about several, and about what is wrong with them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import doctor, host_checks
from launch.doctor import Report
from launch.host_checks import Finding

ROOT = Path(__file__).parents[2]
ESSENTIAL = dict.fromkeys(host_checks.ESSENTIAL, "1.0")


def start(*arguments, python=(sys.executable,), **environment):
    return subprocess.Popen(
        [*python, "-m", "launch.doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        said, complaints = process.communicate(timeout=300)
    finally:
        process.kill()
    return said, complaints


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_healthy_host_has_one_page_and_exit_code_0(tmp_path):
    process = start(f"--workdir={tmp_path / 'runs'}")
    said, complaints = finish(process)
    assert process.returncode == 0, said + complaints
    assert said.endswith("nothing is wrong\n")
    assert "cpu: 1 devices" in said
    assert f"{tmp_path / 'runs'}: written, read and deleted" in said
    assert "1 devices: compiled in" in said
    assert list((tmp_path / "runs").iterdir()) == []


def test_two_hosts_share_one_step_and_one_page(tmp_path):
    both = [
        start(
            f"--workdir={tmp_path}",
            f"--coordinator=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={number}",
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        )
        for port in [free_port()]
        for number in range(2)
    ]
    pages = [finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], pages
    assert "4 devices (cpu), 2 here, 2 process(es)" in pages[0][0]
    assert "4 devices: compiled in" in pages[0][0]
    assert "\nnothing is wrong" in pages[0][0]
    assert "is wrong" not in pages[1][0]


def test_a_host_that_does_not_come_is_missed():
    coordinator = f"127.0.0.1:{free_port()}"
    process = start(
        f"--coordinator={coordinator}",
        "--num_processes=2",
        "--process_id=1",
        "--patience=1",
    )
    said, _ = finish(process)
    assert process.returncode == 1
    assert "the others cannot be joined: ConnectionRefusedError" in said
    assert f"see that they reach {coordinator}" in said


def test_hosts_that_process_0_waits_for_in_vain_are_missed():
    coordinator = f"127.0.0.1:{free_port()}"
    process = start(
        f"--coordinator={coordinator}",
        "--num_processes=2",
        "--process_id=0",
        "--patience=1",
    )
    said, _ = finish(process)
    assert process.returncode == 1
    assert "not all hosts have come within 1 s" in said
    assert "-> start the same command on every host, process 0 first; see that" in said


def test_devices_that_jax_cannot_have_are_a_line_of_the_page():
    process = start(JAX_PLATFORMS="nonsense")
    said, complaints = finish(process)
    assert process.returncode == 1, complaints
    assert "WRONG devices   RuntimeError: " in said
    assert "-> see that no other program holds it" in said
    assert "Traceback" not in complaints


def test_a_python_without_the_packages_is_told_where_they_come_from():
    process = start(python=(sys.executable, "-S"))
    _, complaints = finish(process)
    assert process.returncode == 1
    assert "No module named 'jax'" in complaints
    assert "-> pip install -c constraints.txt" in complaints
    assert "Traceback" not in complaints


def test_the_others_must_be_named_in_full(capsys):
    for words in (["localhost", "--num_processes=2", "--process_id=0"], ["host:1"]):
        with pytest.raises(SystemExit):
            doctor.watch([f"--coordinator={words[0]}", *words[1:]])
    said = capsys.readouterr().err
    assert "--coordinator=localhost: expected HOST:PORT" in said
    assert "goes with --num_processes and --process_id" in said


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a directory")
    (finding,) = host_checks.check_place(str(file / "runs"), 10)
    assert finding.state == "WRONG"
    assert str(file / "runs") in finding.text
    assert "--workdir" in finding.advice


def test_a_missing_package_is_wrong_and_another_version_is_a_note():
    installed = {**ESSENTIAL, "flax": "2.0"}
    del installed["optax"]
    missing, differs = host_checks.compare_versions(ESSENTIAL, installed)
    assert (missing.state, missing.text) == ("WRONG", "not installed: optax")
    assert (differs.state, differs.text) == ("note", "flax 2.0 (tested: 1.0)")


def test_a_build_of_the_tested_version_is_the_tested_version():
    installed = {**ESSENTIAL, "torch": "2.13.0+cpu"}
    (finding,) = host_checks.compare_versions(
        {**ESSENTIAL, "torch": "2.13.0"}, installed
    )
    assert finding.state == "ok"


def test_pins_are_read_whatever_the_spelling_of_names(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# a==1\nml_collections==1.1.0\nJinja2==3.1\n")
    assert host_checks.read_pins(path) == {"ml-collections": "1.1.0", "jinja2": "3.1"}


def test_hosts_with_different_packages_are_found():
    reports = [Report("a", 0, "jax 1", ()), Report("b", 1, "jax 2", ())]
    (finding,) = doctor.compare_hosts(reports)
    assert finding.state == "WRONG"
    assert "a: jax 1 | b: jax 2" in finding.text
    assert doctor.compare_hosts(reports[:1] * 2) == []


def test_what_all_hosts_say_is_written_once_and_the_odd_one_is_named():
    same = Finding("ok", "python", "3.11")
    odd = Finding("WRONG", "disk", "0 GiB free", "make room")
    page = doctor.render([Report("a", 0, "", (same,)), Report("b", 1, "", (same, odd))])
    assert page.count("3.11") == 1
    assert page.splitlines()[-4:] == [
        "b, process 1",
        "  WRONG disk      0 GiB free",
        "                  -> make room",
        "1 thing(s) wrong",
    ]


def test_a_report_survives_the_way_to_another_host():
    report = Report("a", 3, "jax 1", (Finding("note", "memory", "ünknown"),))
    assert Report.decode(report.encode().ljust(500)) == report


def test_a_bucket_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(host_checks, "_try_file", lambda place: time.sleep(60))
    (finding,) = host_checks.check_place("/nowhere", 0.1)
    assert finding.state == "WRONG"
    assert "no end in 0.1 s" in finding.text
