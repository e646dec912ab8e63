"""Trains a text-to-image diffusion model under controlled duplication and captioning.

    copymit train --config=demo --workdir=runs/demo
    copymit train --config=demo --workdir=runs/short --config.train.steps=200

In a checkout `python train.py` is the same. Run the same command again and it goes on from
the newest checkpoint. Ctrl-C and SIGTERM save one first.

Several hosts start the same command: on Cloud TPU with --distributed, elsewhere with
--coordinator, --num_processes and --process_id.
"""

import logging
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from copymit import console
from copymit.cli.program import run_program
from copymit.config import flatten
from copymit.console import (
    explain_bad_input,
    join_hosts,
    keep_compiled_programs,
    set_up_logging,
)
from copymit.storage import check_buckets

logger = logging.getLogger("copymit.train")

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings of the run: a name, such as demo, or a path; [:argument]."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, on disk or gs://; created when absent."
)
flags.adopt_module_key_flags(console)  # so that --help shows them
_DEBUG = flags.DEFINE_bool("debug", False, "Show traces and the libraries' messages.")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    """Checks the command line, joins the other hosts and trains."""
    set_up_logging(_DEBUG.value)
    with explain_bad_input(_DEBUG.value):
        from copymit.training.loop import train  # jax: --help and mistakes need none

        keep_compiled_programs()
        join_hosts()
        check_buckets(_WORKDIR.value, flatten(_CONFIG.value.to_dict()).values())
        _warn_of_missing_weights(_CONFIG.value)
        train(_CONFIG.value, _WORKDIR.value, _make_monitor)


def _warn_of_missing_weights(config: ConfigDict) -> None:
    """Says before a day of training what its evaluation will lack."""
    from copymit.embedding.registry import check_embedders, missing_weights

    names = [*config.eval.embedders, *config.eval.quality_embedders]
    if not names:
        return  # They are chosen when the evaluation sees the images.
    check_embedders(names)
    for what in missing_weights(names, config.eval.weights):
        logger.warning("the evaluation of this run will need %s", what)


def _make_monitor(config: ConfigDict, *rest: Any):
    """Makes what measures copying; only a training that does so imports it."""
    if not config.train.evaluate_every_steps:
        return None
    from copymit.evaluation.online import make_copy_monitor

    return make_copy_monitor(config, *rest)


def run() -> None:
    """Is the program, for the console as well."""
    run_program(main)


if __name__ == "__main__":
    run()
