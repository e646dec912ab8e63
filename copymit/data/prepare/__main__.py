"""Turns images and captions into one data set that training reads at random.

    python -m copymit.data.prepare folder IMAGES --output=DIR [--captions=FILE]
    python -m copymit.data.prepare img2dataset FOLDER --output=DIR --num_examples=10000
    python -m copymit.data.prepare huggingface FOLDER --output=DIR
    python -m copymit.data.prepare imagenette --output=DIR --captions=FILE
    python -m copymit.data.prepare prepared DIR --output=DIR2 --captions=FILE

Then train with `--config.data.source=DIR`. DIR may be `gs://...`. Interrupted: run it
again, it goes on. docs/data.md has the layouts and what becomes of bad input.
"""

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from copymit.console import explain_bad_input, program_name, set_up_logging
from copymit.data.captions_file import CAPTIONS_FORMATS, CaptionedSource
from copymit.data.examples import ExampleSource, describe_captions, describe_left_out
from copymit.data.folder_source import FolderSource
from copymit.data.prepare.huggingface import HuggingfaceSource
from copymit.data.prepare.imagenette import CONFIGS, SPLITS, open_imagenette
from copymit.data.prepare.img2dataset import Img2datasetSource
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource

_logger = logging.getLogger("copymit.data.prepare")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one sub-command."""
    arguments = _parser().parse_args(argv)
    set_up_logging(arguments.debug)
    with explain_bad_input(arguments.debug), contextlib.ExitStack() as stack:
        settings = Settings(
            num_examples=arguments.num_examples,
            seed=arguments.seed,
            on_corrupt=arguments.on_corrupt,
            min_side=arguments.min_side,
            shard_bytes=arguments.shard_mib * 2**20,
        )
        source = opened = _open(arguments, stack)
        if arguments.captions and arguments.command not in ("folder", "imagenette"):
            source = CaptionedSource(
                opened, Path(arguments.captions), arguments.captions_format
            )
        _logger.info("%s", describe_captions(source))
        if left_out := describe_left_out(source):
            _logger.warning("%s", left_out)
        if fault := source.provenance.caption_fault:
            raise ValueError(fault)
        summary = write_data_set(
            source, arguments.output, settings, getattr(opened, "skipped", ())
        )
        _logger.info(
            "%d examples in %s, %d skipped",
            *(summary.num_examples, arguments.output, len(summary.skipped)),
        )


def _open(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> ExampleSource:
    match arguments.command:
        case "folder":
            return FolderSource(
                arguments.source,
                arguments.captions,
                captions_format=arguments.captions_format,
                caption_column=arguments.caption_column,
                split=arguments.split,
            )
        case "img2dataset":
            skip = arguments.on_corrupt == "skip"
            return Img2datasetSource(arguments.source, skip_damaged=skip)
        case "huggingface":
            return HuggingfaceSource(
                arguments.source,
                split=arguments.split,
                image_column=arguments.image_column,
                caption_column=arguments.caption_column,
                id_column=arguments.id_column,
            )
        case "prepared":
            return RecordSource(arguments.source)
    return stack.enter_context(
        open_imagenette(
            arguments.config,
            archive=arguments.archive,
            split=arguments.split,
            captions=arguments.captions,
            captions_format=arguments.captions_format,
            download_dir=arguments.download_dir,
        )
    )


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--output", required=True, help="a new folder, or the one to go on with")
    add("--num_examples", type=int, help="that many good ones, drawn; all by default")
    add("--seed", type=int, default=0, help="of the draw")
    add("--on_corrupt", choices=("stop", "skip"), default="stop")
    add("--min_side", type=int, default=1, help="smaller images are bad")
    add("--shard_mib", type=int, default=64, help="size of a file of records")
    add("--debug", action="store_true", help="show where an error was found")
    captions = argparse.ArgumentParser(add_help=False)
    captions.add_argument("--captions", help="image path -> captions: JSON, CSV, ...")
    captions.add_argument("--captions_format", choices=CAPTIONS_FORMATS, default="auto")
    parser = argparse.ArgumentParser(
        prog=program_name("copymit.data.prepare"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder", parents=[shared, captions])
    folder.add_argument("source", help="images, or folders of classes with images")
    folder.add_argument("--split", help="train, test, ..., if there are several")
    folder.add_argument(
        "--caption_column", default="", help="of a table; or several: a,b"
    )
    img2dataset = commands.add_parser("img2dataset", parents=[shared, captions])
    img2dataset.add_argument("source", help="its --output_folder")
    huggingface = commands.add_parser("huggingface", parents=[shared, captions])
    huggingface.add_argument("source", help="a folder of .arrow or .parquet files")
    huggingface.add_argument("--split", help="if there are several")
    huggingface.add_argument("--image_column")
    huggingface.add_argument(
        "--caption_column", default="", help="or several: a,b; none: without captions"
    )
    huggingface.add_argument("--id_column", help="of images; row: number the rows")
    prepared = commands.add_parser("prepared", parents=[shared, captions])
    prepared.add_argument("source", help="a folder that this program wrote")
    imagenette = commands.add_parser("imagenette", parents=[shared, captions])
    imagenette.add_argument("--config", choices=CONFIGS, default=CONFIGS[0])
    imagenette.add_argument("--split", choices=tuple(SPLITS), default="train")
    imagenette.add_argument(
        "--archive", help="a tar file or folder that is there; fetched by default"
    )
    imagenette.add_argument("--download_dir", help="where tfds keeps what it fetches")
    return parser


if __name__ == "__main__":
    main()
