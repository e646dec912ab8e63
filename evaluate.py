"""Measures how much a model copies its training images, and shows the copies.

A run that train.py made (its own settings, at its newest checkpoint):

    copymit evaluate --workdir=runs/demo
    copymit evaluate --workdir=runs/demo --compare=runs/demo-multiple-captions

Any folder of generations against any folder of training images (`copymit audit` is the
short way):

    copymit evaluate --workdir=runs/audit --generations=DIR --references=DIR

(or tar files in webdataset's layout, 'train/*.tar', or an .npz file; the Python call is
copymit.evaluation.evaluate). Any published model, or folder in diffusers' layout, against
the data of a config:

    copymit evaluate --workdir=runs/sd --config=laion10k --model=stable-diffusion-2-1

Which prompts are memorised, by eight detectors that look into the model:

    copymit evaluate --workdir=runs/demo --stages=detect,report

In a checkout `python evaluate.py` is the same. The results are in WORKDIR/eval/NAME:
report.html, scores.json and what each stage made. Run again, finished stages whose inputs
did not change are reused. Similarity is by SSCD for images of at least 64 px, else by
EfficientNet-Lite0, unless --eval.embedders names others. With --config, its sections `eval`
and `mitigation.generate` take the place of those that the run started with. Several hosts
share the work, started as train.py's; or n processes that share nothing but the directory
embed a share each, with --stages=embed --shard=i/n, before one run does the rest.
"""

import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from copymit import console
from copymit.cli.program import refuse_unknown_settings, run_program
from copymit.config import flatten
from copymit.console import (
    explain_bad_input,
    join_hosts,
    keep_compiled_programs,
    refuse,
    set_up_logging,
)
from copymit.settings import evaluation_settings
from copymit.storage import check_buckets

if TYPE_CHECKING:
    from copymit.evaluation.subject import Subject

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, of which `eval` and `mitigation.generate` are used."
)
with refuse_unknown_settings("eval", flatten(evaluation_settings().to_dict())):
    # It reads the command line here and now.
    _EVAL = config_flags.DEFINE_config_dict(
        "eval", evaluation_settings(), "Settings of the evaluation, as --eval.tiles=2."
    )
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, or of the results with --generations."
)
_NAME = flags.DEFINE_string(
    "name", None, "Name of this evaluation; by default the step, or after the images."
)
_STEP = flags.DEFINE_integer(
    "step", None, "Step of the checkpoint to evaluate; the newest by default."
)
_MITIGATE = flags.DEFINE_list(
    "mitigate",
    [],
    "Mitigations of a run's generations, as AMG,PO=1.5; the run's if none.",
)
_STAGES = flags.DEFINE_list(
    "stages",
    None,
    "Stages to run: generate, embed, search, score, report by default, and detect.",
)
_GENERATIONS = flags.DEFINE_string(
    "generations", None, "Generated images: a folder, tar files or an .npz file."
)
_REFERENCES = flags.DEFINE_string(
    "references", None, "Training images: a folder, tar files or an .npz file."
)
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "Prompts of --generations in the order of their names, one a line."
)
_HELDOUT = flags.DEFINE_string(
    "heldout",
    None,
    "Images like --references that were never trained on: how near these come is no copy.",
)
_MODEL = flags.DEFINE_string(
    "model", None, "Base model's name, diffusers folder or hub id to generate with."
)
_COMPARE = flags.DEFINE_list(
    "compare",
    [],
    "Evaluated runs (WORKDIR) or evaluations (WORKDIR/eval/NAME) to show beside this one.",
)
_FAIL_ABOVE = flags.DEFINE_float(
    "fail_above",
    None,
    "Ends with exit code 3 if a larger share of the generations are copies; 0 allows none.",
    lower_bound=0,
    upper_bound=1,
)
_SHARD = flags.DEFINE_string(
    "shard",
    None,
    "i/n: with --stages=embed, does this share of it; hosts share the rest.",
)
flags.adopt_module_key_flags(console)  # so that --help shows them
_DEBUG = flags.DEFINE_bool("debug", False, "Show traces and the libraries' messages.")
flags.mark_flag_as_required("workdir")


def main(_: list[str]) -> None:
    """Checks the command line and runs the stages."""
    set_up_logging(_DEBUG.value)
    with explain_bad_input(_DEBUG.value):
        # jax: --help and mistakes of single flags need none.
        from copymit.cli.outcome import conclude
        from copymit.evaluation.run import run_stages
        from copymit.evaluation.stages import DEFAULT_STAGES, check_stages, parse_share
        from copymit.evaluation.subject import open_finished

        stages = list(DEFAULT_STAGES) if _STAGES.value is None else _STAGES.value
        _check_flags(stages)
        keep_compiled_programs()
        join_hosts()
        share = None if _SHARD.value is None else parse_share(_SHARD.value)
        check_stages(stages, share)
        check_buckets(_WORKDIR.value, _places())
        subject = _open_subject()
        compared = [open_finished(directory) for directory in _COMPARE.value]
        directory = run_stages(subject, stages, compared, share)
        sys.exit(conclude(directory, stages, _FAIL_ABOVE.value))


def _check_flags(stages: list[str]) -> None:
    """Refuses flags that contradict each other."""
    if _PROMPTS.value and not _GENERATIONS.value:
        refuse("--prompts belongs to --generations")
    if _HELDOUT.value and not _GENERATIONS.value:
        refuse("--heldout belongs to --generations")
    if _FAIL_ABOVE.value is not None and not {"score", "report"} & set(stages):
        refuse("--fail_above needs the stage score or report")
    if bool(_GENERATIONS.value) != bool(_REFERENCES.value):
        refuse("--generations and --references belong together")
    if _GENERATIONS.value or _MODEL.value:
        if _STEP.value is not None:
            refuse("--step is of a run that train.py made")
        if _MITIGATE.value:
            refuse("--mitigate is for a run that train.py made")
    if _MODEL.value and (_GENERATIONS.value or _CONFIG.value is None):
        refuse("--model needs --config, and no --generations")


def _places() -> list[Any]:
    """Lists what is read besides the working directory, and may lie in a bucket."""
    named = [_GENERATIONS.value, _REFERENCES.value, _MODEL.value, _PROMPTS.value]
    named.append(_HELDOUT.value)
    named += flatten(_EVAL.value.to_dict()).values()
    if _CONFIG.value is None:
        return named
    settings = _CONFIG.value.to_dict()
    used = settings if _MODEL.value else {"eval": settings["eval"]}
    return [*named, *flatten(used).values()]


def _open_subject() -> "Subject":
    from copymit.evaluation.prompts import read_prompts
    from copymit.evaluation.subject import open_model, open_pair, open_run

    config, changes = (
        _CONFIG.value,
        config_flags.get_override_values(flags.FLAGS["eval"]),
    )
    if config is not None:
        config.eval.update_from_flattened_dict(changes)
    if _MODEL.value:
        return open_model(_MODEL.value, _WORKDIR.value, config, _NAME.value)
    if not _GENERATIONS.value:
        return open_run(
            *(_WORKDIR.value, config, _NAME.value, changes, _STEP.value),
            mitigations=_MITIGATE.value,
        )
    return open_pair(
        _GENERATIONS.value,
        _REFERENCES.value or "",
        _WORKDIR.value,
        _EVAL.value if config is None else config.eval,
        _NAME.value,
        read_prompts(_PROMPTS.value) if _PROMPTS.value else None,
        _HELDOUT.value,
    )


def run() -> None:
    """Is the program, for the console as well."""
    run_program(main, settings="eval")


if __name__ == "__main__":
    run()
