"""Checkpoints in and out from the command line.

    python -m copymit.pretrained inspect SOURCE
    python -m copymit.pretrained download SOURCE --to=FOLDER
    python -m copymit.pretrained convert SOURCE --to=FOLDER [--dtype=float16]

SOURCE is a short name (stable-diffusion-2-1), a folder in diffusers' layout, on disk or
`gs://`, or a hub id. `download` copies the files that are needed, as they are;
`convert` reads them, whatever their age, and writes what diffusers writes today.
`copymit export` writes a run of train.py in the same way.
"""

import argparse
import logging
import math
import shutil
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from copymit.console import explain_bad_input, set_up_logging
from copymit.pretrained.base_models import BASE_MODELS
from copymit.pretrained.components import NETWORKS, abstract_params, network_class
from copymit.pretrained.load import load_network
from copymit.pretrained.pipeline import (
    Pipeline,
    find_network,
    read_pipeline,
)
from copymit.pretrained.save import DTYPES, Network, new_file, save_pipeline
from copymit.pretrained.source import Source, open_source
from copymit.pretrained.weight_files import find_weights, shard_paths

logger = logging.getLogger("copymit.pretrained")

_SETTINGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)


def inspect(source: Source, variant: str | None = None) -> str:
    """Describes a model without reading its weights."""
    pipeline = read_pipeline(source)
    lines = [source.name, ""]
    total = 0
    for network in NETWORKS:
        config = getattr(pipeline, network)
        shapes = abstract_params(config).values()
        count = sum(math.prod(value.shape) for value in shapes)
        total += count
        try:
            weights = find_weights(
                source, network, find_network(source, network), variant
            )
        except FileNotFoundError:
            weights = "no weights"
        lines.append(
            f"{network:<14}{network_class(config):<22}{count / 1e6:>8.1f} M   {weights}"
        )
    licence = (
        source.base.licence if source.base else "not known here: see its model card"
    )
    lines += [
        f"{'together':<36}{total / 1e6:>8.1f} M",
        "",
        f"prediction type   {pipeline.prediction_type}",
        f"native size       {pipeline.native_size_px} x {pipeline.native_size_px} pixels",
        f"scheduler         {pipeline.scheduler.get('_class_name')}",
        f"padding token     {pipeline.pad_token_id}",
        f"licence           {licence}",
    ]
    return "\n".join(lines)


def download(source: Source, folder: epath.Path, variant: str | None = None) -> None:
    """Copies the files of a model that are needed into a folder."""
    read_pipeline(source)
    paths = [path for path in _SETTINGS if source.has(path)]
    for network in NETWORKS:
        prefix = find_network(source, network)
        weights = find_weights(source, network, prefix, variant)
        paths += [f"{prefix}config.json", weights, *shard_paths(source, weights)]
    # The file that says that this is a model comes last.
    for path in dict.fromkeys(sorted(paths, key=lambda path: path in _SETTINGS[:1])):
        logger.info("%s", path)
        with source.fetch(path).open("rb") as old, new_file(folder / path) as new:
            shutil.copyfileobj(old, new, 2**24)


def convert(
    source: Source, folder: epath.Path, dtype: str, variant: str | None = None
) -> None:
    """Reads a model and writes it anew."""
    pipeline = read_pipeline(source)
    save_pipeline(
        folder,
        _load_networks(source, pipeline, variant),
        pipeline.scheduler,
        pad_token_id=pipeline.pad_token_id,
        max_length=pipeline.text_encoder.max_position_embeddings,
        dtype=dtype,
    )


def _load_networks(
    source: Source, pipeline: Pipeline, variant: str | None
) -> Iterator[Network]:
    for network in NETWORKS:
        config = getattr(pipeline, network)
        params = load_network(source, network, abstract_params(config), variant=variant)
        yield Network(network, config, params)
        del params  # before the next one is loaded


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m copymit.pretrained",
        description="Published checkpoints in, diffusers folders out.",
        epilog=f"short names: {', '.join(BASE_MODELS)}",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in (
        ("inspect", "say what a model is made of; its weights are not read"),
        ("download", "copy the files that are needed into a folder"),
        ("convert", "read a model of any age, write what diffusers reads today"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument(
            "source", help="short name, folder, gs:// folder or hub id"
        )
        command.add_argument(
            "--variant", help="read weights of this kind, such as fp16"
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        if name != "inspect":
            command.add_argument("--to", required=True, help="new folder, may be gs://")
        if name == "convert":
            command.add_argument("--dtype", choices=DTYPES, default="float32")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command."""
    arguments = _parse(argv)
    set_up_logging(arguments.debug)
    with explain_bad_input(arguments.debug):
        if arguments.command == "inspect":
            print(inspect(open_source(arguments.source), arguments.variant))
            return
        folder = epath.Path(arguments.to).expanduser()
        source = open_source(arguments.source)
        if arguments.command == "download":
            download(source, folder, arguments.variant)
        else:
            # Weights pass through the host: no accelerator is needed, nor taken.
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                convert(source, folder, arguments.dtype, arguments.variant)
        logger.info("%s is complete", folder)


if __name__ == "__main__":
    main()
