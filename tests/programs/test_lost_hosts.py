"""One of two hosts is killed, stopped, told to stop or has no data: both end."""

import signal

import pytest

from tests.programs.conftest import TIMEOUT_SECONDS
from tests.programs.test_devices import free_port

pytestmark = pytest.mark.slow

_WAY_OUT = "Start all of them again with the same commands"


@pytest.fixture
def start(programs, tmp_path):
    """Starts two hosts of one long run; returns when both have trained a few steps.

    Whatever is in the way, each has ended after 30 s of silence.
    """

    def start(*program):
        flags = [
            *programs.flags,
            f"--workdir={tmp_path / 'run'}",
            "--config.train.steps=1_000_000",
            "--config.train.checkpoint_every_steps=1_000_000",
            "--config.train.sample_every_steps=0",
            "--config.train.hang_timeout_seconds=30",
            "--host_timeout_seconds=30",
            f"--coordinator=127.0.0.1:{free_port()}",
            "--num_processes=2",
        ]
        hosts = [
            programs.start(
                *(program if i else ["train.py"]),
                *flags,
                f"--process_id={i}",
                XLA_FLAGS="--xla_force_host_platform_device_count=2",
                JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
            )
            for i in range(2)
        ]
        said = ["", ""]
        for i, host in enumerate(hosts):
            while "step 2/" not in said[i]:
                line = host.stderr.readline()
                assert line, said[i]
                said[i] += line
        return hosts, said

    return start


def fail(host):
    """Waits for a host that ends with an error; returns what it said since."""
    try:
        said = host.communicate(timeout=TIMEOUT_SECONDS)[1]
    finally:
        host.kill()
    # It has waited too long, or jax aborts, or raises, whichever is first.
    assert host.returncode in (75, 1, -signal.SIGABRT), said
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_lost_ends_the_other(number, start):
    (other, lost), said = start("train.py")
    lost.send_signal(number)
    ending = fail(other)
    assert _WAY_OUT in said[0]
    # Whoever misses the lost host first: jax's coordinator, its collectives, our watch.
    assert any(
        words in ending
        for words in ("another task died", _WAY_OUT, "command again (on every host)")
    )
    lost.send_signal(signal.SIGCONT)  # it wakes up in a run that is over
    if number == signal.SIGSTOP:
        fail(lost)
    lost.communicate()


def test_a_host_whose_data_stop_ends_both(start):
    hosts, _ = start("tests/programs/stop_data.py", 4)
    said = [fail(host) for host in hosts]
    assert "waited 30 s for the batch of step 5: " in said[1]
    assert "Run the same command again (on every host)" in said[1]


def test_sigterm_to_one_host_saves_and_stops_both_at_the_same_step(start, programs):
    hosts, _ = start("train.py")
    hosts[1].send_signal(signal.SIGTERM)
    said = [programs.finish(host, 128 + signal.SIGTERM) for host in hosts]
    steps = {text.partition("stopped at step ")[2].partition(";")[0] for text in said}
    assert len(steps) == 1
    assert min(map(int, steps)) > 2
