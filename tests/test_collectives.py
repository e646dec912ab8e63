"""What devices send each other, by the programs that the compiler makes for several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def collectives() -> dict:
    """Kind -> (how many, bytes), by program; a process' devices are fixed at its start."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.count_collectives"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", ["guidance", "controlled"])
def test_a_device_makes_its_images_without_a_word_from_the_others(program, collectives):
    assert collectives[program] == {}


def test_devices_that_optimise_ask_each_other_only_whether_one_goes_on(collectives):
    # A loop has one number of iterations on all devices: one boolean for each of them.
    assert collectives["optimised"] == {"all-reduce": [1, 1.0]}


@pytest.mark.parametrize("program", ["transformer", "transformer of TPUs"])
def test_devices_that_share_a_block_s_width_only_add_up(program, collectives):
    # Forward one sum after each attention and after the MLP, and backward one before each,
    # some of them together, and one of all gradients over the batch.
    found = dict(collectives[program])
    count, _ = found.pop("all-reduce")
    assert 6 <= count <= 8
    # Biases are on every device, and so are their gradients.
    gathered = found.pop("all-gather", [0, 0.0])
    assert gathered[1] <= 4 * 2 * 512
    assert found == {}
