"""copymit audit GENERATIONS TRAINING: which of these are copies of those?"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from ml_collections import ConfigDict

from copymit import __version__
from copymit.console import (
    explain_bad_input,
    keep_compiled_programs,
    refuse,
    set_up_logging,
)
from copymit.settings import evaluation_settings
from copymit.spelling import nearest

logger = logging.getLogger("copymit.audit")


def _pairs(_: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict:
    """Reads NAME=VALUE of an option that may be repeated."""
    for pair in given:
        if not all(pair.partition("=")):
            raise click.BadParameter(f"{pair!r} is not NAME=PATH", param=option)
    return dict(pair.split("=", 1) for pair in given)


# `--fail_above` is `--fail-above`: the other programs write their flags with underscores.
# `--eval.NAME` is what messages and evaluate.py call a setting.
@click.command(
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")}
)
@click.argument("generations")
@click.argument("training")
@click.option(
    "--out",
    default="audits",
    metavar="DIR",
    show_default=True,
    help="Results go to DIR/eval/NAME, with a NAME of their own for other images or "
    "settings: nothing is overwritten, and the same audit again goes on or is reused.",
)
@click.option(
    "--heldout",
    metavar="IMAGES",
    help="Images like TRAINING that were never trained on: how near these come is no copy.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    help="Of GENERATIONS in the order of their names, one a line; else texts beside them.",
)
@click.option(
    "--embedder",
    "embedders",
    multiple=True,
    metavar="NAME",
    help="Network that compares images; may be repeated, the first gives the answer. By "
    "default SSCD from 64 px on, else EfficientNet-Lite0.",
)
@click.option(
    "--weights",
    multiple=True,
    callback=_pairs,
    metavar="NAME=PATH",
    help="File, folder or hub id of an embedder's weights, as sscd_disc_mixup=FILE; may "
    "be repeated.",
)
@click.option(
    "--size",
    "--eval.resolution",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="At which all are compared; needed where generations differ in size.",
)
@click.option(
    "--on-corrupt",
    "--eval.on_corrupt",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What an unreadable image does.",
)
@click.option(
    "--fdr",
    "--eval.false_discovery_rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="False discovery rate: the share of what is called a copy that may be none.",
)
@click.option(
    "--fail-above",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Exit code 3 if a larger share of GENERATIONS are copies; 0 allows none.",
)
@click.option("--debug", is_flag=True, help="Show traces and the libraries' messages.")
def audit(generations: str, training: str, **options: Any) -> None:
    """Find the copies of TRAINING images among GENERATIONS of any model.

    Each is a folder of any depth, tar files ('train/*.tar'), a pattern ('DIR/**/*.png'), an
    .npz or .npy file, or a data set of copymit, Hugging Face or img2dataset.
    """
    sys.exit(run_audit(generations, training, **options))


def run_audit(
    generations: str,
    training: str,
    *,
    out: str,
    heldout: str | None,
    prompts: str | None,
    fail_above: float | None,
    debug: bool,
    **settings: Any,
) -> int:
    """Does what the command says; returns the exit code.

    Args:
      settings: `embedders`, `weights`, `size`, `on_corrupt` and `fdr`, as the options.
    """
    set_up_logging(debug)
    with explain_bad_input(debug):
        # jax: --help and mistakes need none.
        from copymit.cli.outcome import conclude
        from copymit.evaluation.prompts import read_prompts
        from copymit.evaluation.run import run_stages
        from copymit.evaluation.stages import DEFAULT_STAGES
        from copymit.evaluation.subject import open_pair
        from copymit.storage import check_buckets

        config = _settings(**settings)
        keep_compiled_programs()
        places = [
            generations,
            training,
            heldout,
            prompts,
            *settings["weights"].values(),
        ]
        check_buckets(out, places)
        images = [_at_any_depth(images) for images in (generations, training, heldout)]
        texts = read_prompts(prompts) if prompts else None
        name = _name(images, config, texts)
        subject = open_pair(images[0], images[1], out, config, name, texts, images[2])
        directory = run_stages(subject)
        return conclude(directory, DEFAULT_STAGES, fail_above)


def _settings(
    embedders: tuple[str, ...],
    weights: dict[str, str],
    size: int | None,
    on_corrupt: str,
    fdr: float,
) -> ConfigDict:
    """Is the `eval` section that the options ask for."""
    config = evaluation_settings()
    for name, path in weights.items():
        if name not in config.weights:
            refuse(
                f"--weights={name}={path}: there are no weights {name}"
                f"{nearest(name, config.weights)} (use {', '.join(config.weights)})"
            )
        config.weights[name] = path
    config.embedders = embedders
    config.resolution = size or 0
    config.on_corrupt = on_corrupt
    config.false_discovery_rate = fdr
    return config


def _at_any_depth(images: str | None) -> str | None:
    """Is a folder, or a pattern of all images below it where its layout leaves out some.

    An audit is of every image: what a training would refuse or pass over may be a copy.
    """
    from copymit.data.folder_listing import LayoutError
    from copymit.data.folder_source import FolderSource
    from copymit.data.images import IMAGE_SUFFIXES
    from copymit.embedding.image_set import open_source

    if images is None or not os.path.isdir(images):
        return images
    try:
        source = open_source(images)
    except ValueError as error:
        if not isinstance(error.__cause__, LayoutError):
            raise
    else:
        files = (file.lower() for _, _, files in os.walk(images) for file in files)
        seen = (file for file in files if not file.startswith("."))
        there = sum(file.endswith(IMAGE_SUFFIXES) for file in seen)
        if not isinstance(source, FolderSource) or there <= len(source):
            return images
    logger.info("%s has images at several depths: all of them are compared", images)
    return os.path.join(images, "**", "*")


def _name(
    images: Sequence[str | None], config: ConfigDict, prompts: list[str] | None
) -> str:
    """Names an audit after its images, differently for others, changed ones or settings."""
    from copymit.evaluation.stages import images_digest
    from copymit.evaluation.subject.places import name_after, place_of

    given = [path for path in images if path is not None]
    digests = [images_digest(path) for path in given]
    places = [place_of(path) for path in given]
    inputs = [__version__, places, digests, config.to_dict(), prompts]
    return name_after(images[0], inputs)
