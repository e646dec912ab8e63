"""Ctrl-C and SIGTERM end a process in one line, whatever its main thread does."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from copymit import interrupts
from copymit.interrupts import deferred, heeded

ROOT = Path(__file__).parents[1]
START = """
import threading
from copymit.interrupts import *
def ready():
    print(".", flush=True)
"""
LINE = "interrupted: what is finished stays; the same command goes on from there"
FOR_EVER = "threading.Event().wait()"
# A call that signals do not break off, and that gives Python's lock back: a compilation.
IN_C = """
import ctypes
mutex = ctypes.create_string_buffer(128)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
ready()
ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
IN_CALLBACK = """
import jax, jax.numpy as jnp
def wait(x):
    ready()
    threading.Event().wait()
    return x
x = jnp.zeros(2)
jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(wait, x, x))(x))
"""


def start(body: str) -> subprocess.Popen:
    """Starts a program and waits until it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{START}\n{body}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == ".\n", process.communicate()[1]
    return process


def indented(body: str) -> str:
    return "\n".join(f"    {line}" for line in body.splitlines())


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (signal.SIGINT, f"ready(); {FOR_EVER}"),
        (signal.SIGINT, IN_C),
        (signal.SIGTERM, IN_C),
        (signal.SIGINT, IN_CALLBACK),
    ],
    ids=["python", "c", "sigterm", "callback"],
)
def test_one_line_and_the_usual_exit_code(number, body):
    process = start(f"with heeded():\n{indented(body)}")
    process.send_signal(number)
    assert process.communicate()[1].split("\n") == ["", LINE, ""]
    assert process.returncode == 128 + number


def test_what_must_not_stay_is_undone(tmp_path):
    partial, kept = tmp_path / "x.partial", tmp_path / "x"
    process = start(
        "from copymit.storage import whole, scratch_folder; from etils import epath\n"
        f"path = epath.Path({str(kept)!r})\n"
        "with heeded(), scratch_folder() as scratch, whole(path) as file:\n"
        "    file.write_bytes(b'half')\n"
        f"    epath.Path({str(tmp_path)!r}, 'where').write_text(str(scratch))\n"
        f"    ready(); {FOR_EVER}"
    )
    (file,) = tmp_path.glob("*.partial")
    assert file.read_bytes() == b"half"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["where"]
    assert not Path((tmp_path / "where").read_text()).exists()
    assert not partial.exists()


def test_the_first_signal_may_be_left_to_the_program_and_the_second_not():
    body = """
with deferred("saving") as stop:
    ready()
    stop.wished.wait()
    print(stop.code, flush=True)
    threading.Event().wait()
"""
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "130\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].split("\n")
    assert said == ["", "saving; a second time ends at once", "", LINE, ""]
    assert process.returncode == 130


def test_an_end_that_hangs_is_ended_as_well():
    body = f"""
with heeded(), undone(lambda: (ready(), {FOR_EVER})):
    ready()
    {FOR_EVER}
"""
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == ".\n"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_workers_end_with_their_program():
    body = f"""
import multiprocessing
with heeded():
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=lambda: (leave_to_parent(), {FOR_EVER}))
    worker.start()
    ready()
    print(worker.pid, flush=True)
    {FOR_EVER}
"""
    process = start(body)
    worker = os.pidfd_open(int(process.stdout.readline()))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    ended, *_ = select.select(
        [worker], [], [], 600
    )  # far more than a busy machine needs
    assert ended
    os.close(worker)


def test_handlers_are_as_before_in_the_end():
    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with heeded(), deferred("saving"), heeded([signal.SIGINT]):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_in_the_process_itself_is_deferred():
    with deferred("", [signal.SIGINT]) as stop:
        assert stop.code == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wished.wait(600)
        assert stop.code == 130
