"""Captions from the command line.

    python -m copymit.data.caption generate SOURCE --to=captions.json
    python -m copymit.data.caption export SOURCE --to=FILE --format=dcr

SOURCE is what `data.source` may be: a folder of images, or fluent_emoji. `generate`
writes many captions for each image with BLIP (extra `caption`); run again after an
interruption, it goes on. `export` writes a source's own captions for other programs,
or with --random the fixed random ones of data.caption_style = "random".
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from copymit.console import explain_bad_input, program_name, set_up_logging
from copymit.data.caption.writing import caption_source
from copymit.data.captions import random_token_ids
from copymit.data.captions_file import write_captions
from copymit.data.examples import ExampleSource
from copymit.data.sources import load_source

logger = logging.getLogger("copymit.data.caption")

# What the captions depend on.
_SETTINGS = (
    "model",
    "num_captions",
    "top_p",
    "min_length",
    "max_length",
    "seed",
    "keep_original",
    "captions",
)


def generate(source: ExampleSource, arguments: argparse.Namespace) -> None:
    """Captions every image of a source.

    Raises:
      ValueError: for a setting out of range; see also `load_blip`, `caption_source`.
    """
    settings = {name: getattr(arguments, name) for name in _SETTINGS}
    _check_ranges(arguments)
    try:
        from copymit.data.caption.blip import load_blip
    except ImportError as error:
        raise ValueError(
            f"captions need torch and transformers ({error}): "
            "pip install copymit[caption]"
        ) from error
    blip = load_blip(
        arguments.model,
        top_p=arguments.top_p,
        min_length=arguments.min_length,
        max_length=arguments.max_length,
    )
    caption_source(
        source,
        blip,
        arguments.to,
        settings=settings,
        num_captions=arguments.num_captions,
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        keep_original=arguments.keep_original,
    )


def export(source: ExampleSource, arguments: argparse.Namespace) -> None:
    """Writes the captions of a source in another format."""
    if arguments.random:
        ids = source.example_ids
        entries = ((i, [str(random_token_ids(i, arguments.seed))]) for i in ids)
    else:
        examples = (source[i] for i in range(len(source)))
        entries = ((e.example_id, list(e.captions)) for e in examples)
    write_captions(arguments.to, entries, arguments.format, arguments.root)


def _check_ranges(arguments: argparse.Namespace) -> None:
    for name in ("num_captions", "batch_size", "min_length"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name}={getattr(arguments, name)} must be at least 1")
    if not 0 < arguments.top_p <= 1:
        raise ValueError(f"--top_p={arguments.top_p} must lie in (0, 1]")
    if arguments.max_length < arguments.min_length:
        raise ValueError(
            f"--max_length={arguments.max_length} is less than "
            f"--min_length={arguments.min_length}"
        )
    if arguments.seed < 0:
        raise ValueError(f"--seed={arguments.seed} must not be negative")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program_name("copymit.data.caption"),
        description="Captions by a model, and captions for other programs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="caption every image with BLIP")
    write = commands.add_parser("export", help="write the captions that there are")
    for command in (make, write):
        command.add_argument("source", help="folder of images, or fluent_emoji")
        command.add_argument("--to", type=Path, required=True, help=".json or .parquet")
        command.add_argument("--captions", help="captions file of the folder")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    add = make.add_argument
    add(
        "--model",
        default="Salesforce/blip-image-captioning-base",
        help="hub id or folder",
    )
    add("--num_captions", type=int, default=20, help="for each image")
    add("--top_p", type=float, default=0.9, help="mass of the nucleus")
    add("--min_length", type=int, default=5, help="tokens")
    add("--max_length", type=int, default=20, help="tokens")
    add("--batch_size", type=int, default=8, help="images")
    add("--keep_original", action="store_true", help="the image's own caption first")
    write.add_argument("--format", choices=("relative", "dcr"), default="relative")
    write.add_argument("--root", default="", help="folder before the paths of dcr")
    write.add_argument("--random", action="store_true", help="4 random tokens an image")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    set_up_logging(arguments.debug)
    with explain_bad_input(arguments.debug):
        source = load_source(arguments.source, captions=arguments.captions)
        {"generate": generate, "export": export}[arguments.command](source, arguments)
        logger.info("%s is complete", arguments.to)


if __name__ == "__main__":
    main()
