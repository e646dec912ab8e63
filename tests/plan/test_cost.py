"""Costs and advice, from numbers and texts made up here."""

import jax
import pytest

from configs import tiny
from copymit.chips import CHIPS, find_chip
from copymit.plan.cost import (
    Cost,
    count_collectives,
    describe,
    roofline_seconds,
    what_to_change,
)
from copymit.plan.loops import read_program
from copymit.plan.programs import ask_compiler

V5E = find_chip("TPU v5 lite")

PROGRAM = """
ENTRY %main (x: f32[8]) -> bf16[16,16] {
  %all-gather.3 = f32[64,1024]{1,0:T(8,128)} all-gather(%x), channel_id=1
  %ar = (f32[8]{0}, bf16[2,3]{1,0}, /*index=2*/f32[1]{0}) all-reduce(%a, %b), to_apply=%add
  %start = (f32[4], f32[32]) all-gather-start(%y), channel_id=4
  %done = f32[32] all-gather-done(%start)
  ROOT %cp = bf16[16,16]{1,0} collective-permute(%z), source_target_pairs={{0,1}}
  %fusion = f32[9] fusion(%all-gather.3), kind=kLoop, calls=%all-reduce_fusion
}
"""


def test_collectives_are_counted_with_the_bytes_that_they_make():
    assert count_collectives(read_program(PROGRAM)) == {
        "all-gather": (2, 4 * 64 * 1024 + 4 * (4 + 32)),
        "all-reduce": (1, 4 * 8 + 2 * 6 + 4),
        "collective-permute": (1, 2 * 256),
    }


def make_cost(flops=0.0, accessed=0.0, temporary=0.0, **arguments):
    return Cost(arguments, temporary, flops, accessed, {})


def test_the_least_time_is_that_of_what_takes_longer():
    seconds, bound = roofline_seconds(make_cost(flops=197e12, accessed=81.9e9), V5E)
    assert (seconds, bound) == (pytest.approx(1.0), "operations")
    seconds, bound = roofline_seconds(make_cost(flops=1e12, accessed=819e9), V5E)
    assert (seconds, bound) == (pytest.approx(1.0), "memory's bandwidth")


def test_a_program_that_fits_is_said_to():
    report = "\n".join(describe("step", make_cost(1, 1, 2**30), V5E, tiny.get_config()))
    assert "fits           the 15.75 GiB of a TPU v5e" in report
    assert "DOES NOT FIT" not in report


def test_what_would_make_it_fit_depends_on_what_is_large():
    config = tiny.get_config()
    cost = make_cost(1, 1, 12e9, optimizer=8e9, frozen=1e9)
    report = "\n".join(describe("step", cost, V5E, config))
    assert "DOES NOT FIT   the 15.75 GiB of a TPU v5e:" in report
    assert "train.accumulate_steps=2" in report
    assert "train.moments_dtype='bfloat16'" in report
    config.train.dtype = "bfloat16"
    config.train.moments_dtype = "float8"
    config.mesh.fsdp = 8
    config.data.update(cache_latents=True, cache_embeddings=True)
    config.model.unet.remat = "blocks"
    small = make_cost(1, 1, 1e9, optimizer=20e9)
    assert list(what_to_change(config, small, V5E)) == [
        "more devices, or some with more memory"
    ]


class Refused:
    """A program that the compiler refuses, in the words of libtpu 0.0.42."""

    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_program_that_the_compiler_refuses_for_its_size_is_said_not_to_fit():
    words = "Ran out of memory on HBM, the total memory required exceeds available HBM"
    cost = ask_compiler(
        Refused(f"RESOURCE_EXHAUSTED: {words}\n trace"), {"batch": 2**30}
    )
    report = list(describe("step", cost, V5E, tiny.get_config()))
    assert report[1] == "  memory         more than there is"
    assert f"  DOES NOT FIT   {words}" in report
    assert "    - train.accumulate_steps=2 halves what is in between" in report
    assert not any("nan" in line for line in report)


def test_what_else_the_compiler_refuses_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ask_compiler(Refused("INTERNAL: Mosaic failed"), {})


def test_a_device_that_no_table_knows_is_said_to_be_one():
    report = "\n".join(describe("step", make_cost(1, 1), None, tiny.get_config()))
    assert "no table knows this device" in report


def test_every_chip_is_found_by_what_jax_calls_it_and_has_a_source():
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    for chip in CHIPS:
        assert all(find_chip(kind) is chip for kind in chip.kinds)
        assert chip.source
        # Between 100 and 1,000 operations a byte: neither number has lost a factor.
        assert 100 < chip.bf16_flops / chip.bytes_per_second < 1000
    assert find_chip("cpu") is None
