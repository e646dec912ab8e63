"""Runs that are killed, stopped, or diverge."""

import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from copymit.metrics import read_metrics
from copymit.training import state as state_module
from copymit.training import step as step_module
from copymit.training.loop import NonFiniteLossError, train


@pytest.fixture(scope="module")
def interrupted(programs, finished, tmp_path_factory):
    """A run that was killed, stopped by Ctrl-C, and then ran to its end.

    Checkpoints and samples leave the parameters alone, so they are used to slow the run
    down: each save waits for the one before it.
    """
    run = type(finished)(tmp_path_factory.mktemp("runs") / "interrupted")
    command = ["train.py", *programs.flags, f"--workdir={run.workdir}"]

    process = programs.start(*command, "--config.train.checkpoint_every_steps=1")
    wait_until(process, run.checkpoints)
    process.send_signal(signal.SIGKILL)
    programs.finish(process, -signal.SIGKILL)
    killed_at = max(run.checkpoints())

    process = programs.start(
        *command,
        "--config.train.checkpoint_every_steps=1000",
        "--config.train.sample_every_steps=1",
    )
    # Steps after the last checkpoint were logged before the kill, too; what the new
    # process logs follows the line that says where it goes on.
    said = ""
    while "steps/s" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    said += programs.finish(process, 128 + signal.SIGINT)
    stopped_at = max(run.checkpoints())
    logged = run.logged_steps()

    programs.run(*command)
    return run, killed_at, stopped_at, logged, said


def wait_until(process, happened, seconds=600):
    deadline = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"too late: {process.communicate()[1]}")
        time.sleep(0.02)


def test_ctrl_c_saves_the_step_it_stops_at_and_says_so(interrupted):
    run, killed_at, stopped_at, logged, said = interrupted
    assert 1 <= killed_at < stopped_at < run.last_step
    assert logged == list(range(1, stopped_at + 1))
    assert f"going on from step {killed_at} of" in said
    assert f"stopped at step {stopped_at}; run again to go on" in said
    assert "Traceback" not in said


def test_a_killed_and_a_stopped_run_end_with_the_same_bits(interrupted, finished):
    found, expected = interrupted[0].arrays(), finished.arrays()
    assert expected.keys() == found.keys()
    assert sum(array.size for array in found.values()) > 1_000_000
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_interrupted_run_reports_each_step_once(interrupted, finished):
    np.testing.assert_array_equal(interrupted[0].losses(), finished.losses())


def test_a_diverging_run_names_the_step_and_the_last_good_checkpoint(
    monkeypatch, tmp_path
):
    config = tiny.get_config()
    config.data.num_examples = config.train.batch_size = 4
    config.data.num_heldout = 0
    config.model.autoencoder.patch_size = 8
    config.model.unet.block_out_channels = (8,)
    config.model.unet.cross_attention = (False,)
    config.train.ema_decay = 0.0
    config.train.checkpoint_every_steps = 2
    config.train.log_every_steps = 2
    config.train.sample_every_steps = 0
    for module in (step_module, state_module):
        monkeypatch.setattr(
            module,
            "make_learning_rate",
            lambda _: lambda step: jnp.where(step < 2, 1e-3, 1e30),
        )
    with pytest.raises(
        NonFiniteLossError, match=r"at step 3; the last good checkpoint is step 2\. Low"
    ):
        train(config, tmp_path)
    # The loss of step 3 was finite; its new parameters are what must not be saved.
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert [m["step"] for m in read_metrics(tmp_path)] == [2]
