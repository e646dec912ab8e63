"""What devices send each other, by the programs that the compiler makes for several."""

import pytest


@pytest.fixture(scope="module")
def collectives(on_devices) -> dict:
    """Kind -> (how many, bytes), by program."""
    return on_devices(4, "-m", "tests.count_collectives")


@pytest.mark.parametrize("program", ["guidance", "controlled"])
def test_a_device_makes_its_images_without_a_word_from_the_others(program, collectives):
    assert collectives[program] == {}


def test_devices_that_optimise_ask_each_other_only_whether_one_goes_on(collectives):
    # A loop has one number of iterations on all devices: a boolean before each of the two,
    # and after the last.
    assert collectives["optimised"] == {"all-reduce": [3, 3.0]}


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
