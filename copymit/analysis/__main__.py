"""What duplication does a data set already have?

    python -m copymit.analysis --source=FOLDER [--captions=FILE] --out=FOLDER
    python -m copymit.analysis --source='shards/*.tar' --out=FOLDER
    python -m copymit.analysis --source=fluent_emoji --out=FOLDER

See `copymit.analysis.analyze` for what the output folder holds. Run it again after a
kill, or with another threshold: what is finished is not computed again.
"""

import argparse
import logging
import time
from collections.abc import Sequence

from etils import epath

from copymit.analysis.analyze import Settings, analyze, check_settings
from copymit.analysis.opening import open_data
from copymit.console import explain_bad_input, program_name, set_up_logging
from copymit.data.examples import describe_captions, describe_left_out
from copymit.embedding.registry import EMBEDDERS
from copymit.progress import format_duration

logger = logging.getLogger("copymit.analysis")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog=program_name("copymit.analysis"),
        description="Finds the images and captions that a data set holds twice.",
        epilog=f"embedders: {', '.join(EMBEDDERS)}",
    )
    add = parser.add_argument
    add("--source", required=True, help="fluent_emoji, a folder, or 'shards/*.tar'")
    add("--captions", default="", help="captions file of a folder (JSON)")
    add("--out", required=True, help="folder for what is found")
    add(
        "--embedder",
        default=defaults.embedder,
        help="that compares images; by default sscd_288_int8 (sscd_288 where its weights "
        "are given) for images of at least 64 px, else efficientnet_lite0",
    )
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="file, folder or hub id, by the name in eval.weights; may be repeated",
    )
    add("--resolution", type=int, default=defaults.resolution, help="pixels")
    add(
        "--threshold",
        type=_read_threshold,
        default=defaults.threshold,
        help="least cosine of near duplicates, such as 0.9; auto calibrates it on how "
        "similar different images of this data set are",
    )
    add("--caption_embedder", default="", help="caption_ngrams or a CLIP")
    add("--caption_threshold", type=float, default=defaults.caption_threshold)
    add("--search", default=defaults.search, help="auto, exact, approx or scann")
    add("--recall_target", type=float, default=defaults.recall_target)
    add("--on_corrupt", default=defaults.on_corrupt, help="stop or skip")
    add("--batch_size", type=int, default=defaults.batch_size)
    add("--gallery_size", type=int, default=defaults.gallery_size)
    add("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


def _read_threshold(text: str) -> float | None:
    return None if text == "auto" else float(text)


def _read_weights(pairs: Sequence[str]) -> dict[str, str]:
    odd = [pair for pair in pairs if not all(pair.partition("="))]
    if odd:
        raise ValueError(f"--weights={odd[0]} is not NAME=PATH")
    return dict(pair.split("=", 1) for pair in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one analysis and logs the most important numbers."""
    arguments = _parse(argv)
    set_up_logging(arguments.debug)
    started = time.perf_counter()
    with explain_bad_input(arguments.debug):
        chosen = {k: v for k, v in vars(arguments).items() if k in Settings._fields}
        chosen["weights"] = _read_weights(arguments.weights)
        settings = Settings(**chosen)
        check_settings(settings)
        source, fingerprint = open_data(arguments.source, arguments.captions)
        logger.info("%s", describe_captions(source))
        if left_out := describe_left_out(source):
            logger.warning("%s", left_out)
        out = epath.Path(arguments.out).expanduser()
        found = analyze(
            source, out, settings, title=arguments.source, fingerprint=fingerprint
        )
    near, exact = found.counts["near_images"], found.counts["exact_images"]
    logger.info(
        "%d of %d images are near duplicates of others (%d exactly), in %d clusters; "
        "%d would be left out. %s, after %s",
        near["examples"],
        found.counts["num_readable"],
        exact["examples"],
        near["groups"],
        near["surplus"],
        out / "analysis.html",
        format_duration(time.perf_counter() - started),
    )


if __name__ == "__main__":
    main()
