"""What a training costs on TPUs or on the devices that are here, before it is paid for.

    pip install -c constraints.txt -e '.[tpu]'
    copymit plan --config=laion10k --topology=v5e:4x4
    copymit plan --config=laion10k                         (the devices here)

Compiles the real training step, and with --sampler the generation of `eval.batch_size`
images, and prints what the compiler says of them: memory by kind, operations, bytes,
communication. No TPU is needed and nothing is loaded or trained; of a published model the
small files that give its sizes are enough. A network of Stable Diffusion's size takes half
an hour of one core to compile, and with --quick a few minutes. Times are a roofline,
operations at the chip's peak or bytes at its bandwidth, whichever is longer: no training
is faster.
"""

import os
import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from copymit.chips import CHIPS, TOPOLOGY_ENVIRONMENT, find_chip
from copymit.cli.program import run_program
from copymit.console import explain_bad_input, set_up_logging
from copymit.plan.cost import describe, roofline_seconds

_CONFIG = config_flags.DEFINE_config_file("config", None, "Settings of the training.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "TPUs to compile for, as v5e:8x8 or v5p:2x2x2; the devices here."
)
_SAMPLER = flags.DEFINE_bool("sampler", False, "Also compile the generation of images.")
_QUICK = flags.DEFINE_bool(
    "quick", False, "Have the compiler hardly optimise: bytes and memory are rougher."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show traces and the libraries' messages.")

_DAY_SECS = 24 * 3600


def main(_: list[str]) -> None:
    """Plans what the command line names."""
    set_up_logging(_DEBUG.value)
    with explain_bad_input(_DEBUG.value):
        plan(
            _CONFIG.value,
            _TOPOLOGY.value,
            sampler=_SAMPLER.value,
            quick=_QUICK.value,
        )


def plan(
    config: ConfigDict, topology: str, *, sampler: bool = False, quick: bool = False
) -> None:
    """Prints what the training of `config` costs on a topology, or on the devices here.

    Args:
      sampler: whether to compile the generation of a batch, too.
      quick: whether the compiler hardly optimises.
    Raises:
      ValueError: for a config that cannot train there, or a topology that is not known.
      FileNotFoundError, ConnectionError: if a published model's sizes cannot be read.
    """
    if topology:
        _use_topologies(topology)
    # Only now, since jax reads the environment when it is imported.
    import jax

    from copymit.plan import programs

    config = programs.with_sizes(config)
    if quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    devices = programs.devices_of(topology)
    chip = find_chip(devices[0].device_kind)
    step = programs.plan_step(config, devices)
    print(
        f"{step.parameters / 1e6:.1f} M parameters, {step.trained / 1e6:.1f} M train; "
        f"{len(devices)} x {chip.name if chip else devices[0].device_kind}, mesh "
        f"{step.mesh}, batch of {config.train.batch_size}"
    )
    print(*describe("training step", step.cost, chip, config), sep="\n")
    if chip is not None and not step.cost.refusal:
        seconds, _ = roofline_seconds(step.cost, chip)
        days = config.train.steps * seconds / _DAY_SECS
        print(
            f"  at most        {_DAY_SECS / seconds:,.0f} steps a day: train.steps="
            f"{config.train.steps} take at least {days:.2f} days"
        )
    if sampler:
        cost = programs.plan_sampler(config, devices)
        name = f"{config.eval.batch_size} images in {config.eval.num_inference_steps} steps"
        print(*describe(name, cost, chip, config), sep="\n")


def _use_topologies(topology: str) -> None:
    """Readies jax to compile for TPUs on a machine without one."""
    family = topology.partition(":")[0]
    known = [chip.topology for chip in CHIPS if chip.topology]
    if family not in known or not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
        raise ValueError(
            f"--topology={topology} is not known: use one of {', '.join(known)} and how "
            "many chips lie along each axis, as v5e:8x8 or v5p:2x2x2"
        )
    os.environ |= TOPOLOGY_ENVIRONMENT


def run() -> None:
    """Is the program, for the console as well."""
    flags.mark_flag_as_required("config")
    run_program(main)


if __name__ == "__main__":
    run()
