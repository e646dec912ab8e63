"""Captions of every image of a source, written so that a kill loses little.

In: a source and a function that captions a batch. Out: one captions file, whole. Until
then the captions lie in `<file>.partial`: a line with the settings, then a line for each
image, in the order of the source, so that the number of lines is how far it is.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image

from copymit.data.captions import example_generator
from copymit.data.captions_file import is_text, write_captions
from copymit.data.checking import check_images
from copymit.data.examples import ExampleSource
from copymit.data.images import decode_image
from copymit.progress import Progress
from copymit.storage import writing

logger = logging.getLogger("copymit.data.caption")

CaptionBatch = Callable[
    [Sequence[Image.Image], Float64[np.ndarray, "B M L"]], list[list[str]]
]


def caption_source(
    source: ExampleSource,
    caption_batch: CaptionBatch,
    path: Path,
    *,
    settings: dict[str, Any],
    num_captions: int,
    max_length: int,
    batch_size: int,
    seed: int,
    keep_original: bool,
) -> None:
    """Writes `num_captions` captions for each image to a captions file.

    Goes on where a run with the same settings was interrupted. The random numbers
    depend on (seed, example) only, and the last batch is filled up, so that every batch
    has one shape: a restart gives the same bits. With another batch size a model's
    logits differ by rounding (1e-6), which moves about one token in a million.

    Args:
      path: JSON or, by its suffix, parquet; see `write_captions`.
      settings: everything the captions depend on; kept beside them.
      keep_original: puts each image's first caption before the others.
    Raises:
      ValueError: if the file exists, the partial one was made with other settings or of
        other images, an image is corrupt, or a caption comes out empty.
    """
    if path.exists():
        raise ValueError(
            f"{path} is there already: remove it, or write to another file"
        )
    partial = path.with_name(path.name + ".partial")
    done = _open_partial(partial, settings, source.example_ids)
    if done:
        logger.info("%d of %d images have captions already", done, len(source))
    remaining = range(done, len(source))
    if remaining:
        check_images(source, remaining)
    progress = Progress("captioned", len(source), done=done)
    with writing(partial), partial.open("a", encoding="utf-8") as file:
        for first in range(done, len(source), batch_size):
            indices = range(first, min(first + batch_size, len(source)))
            examples = [source[i] for i in indices]
            images = [decode_image(e.image, e.example_id) for e in examples]
            uniforms = np.stack(
                [
                    example_generator(seed, e.example_id).random(
                        (num_captions, max_length)
                    )
                    for e in examples
                ]
            )
            fill = [*indices] + [first] * (batch_size - len(indices))
            rows = np.array(fill) - first
            captions = caption_batch([images[i] for i in rows], uniforms[rows])
            for example, texts in zip(examples, captions, strict=False):
                originals = list(example.captions[:1]) if keep_original else []
                _check_texts(example.example_id, texts)
                line = json.dumps([example.example_id, originals + texts])
                file.write(line + "\n")
            file.flush()
            progress.add(len(indices))
    write_captions(path, _read_partial(partial))
    partial.unlink()


def _open_partial(
    partial: Path, settings: dict[str, Any], example_ids: Sequence[str]
) -> int:
    """Starts or checks the partial file; returns how many images it holds."""
    header = json.dumps({"settings": settings, "images": len(example_ids)})
    if not partial.exists() or b"\n" not in partial.open("rb").readline():
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(header + "\n", encoding="utf-8")
        return 0
    with partial.open("rb+") as file:
        there = file.readline().decode(errors="replace").rstrip("\n")
        if there != header:
            raise ValueError(
                f"{partial} was made with other settings: {there}, now {header}. Remove "
                "it, or go on with its settings"
            )
        done, end = 0, file.tell()
        # A kill may have torn the last line: it is made again.
        while (line := file.readline()).endswith(b"\n"):
            if done == len(example_ids) or _id_of(line) != example_ids[done]:
                raise ValueError(
                    f"{partial} is of other images, or damaged, from image {done} on: "
                    "remove it"
                )
            done, end = done + 1, file.tell()
        file.truncate(end)
    return done


def _id_of(line: bytes) -> str | None:
    try:
        return json.loads(line)[0]
    except (ValueError, LookupError, TypeError):
        return None


def _read_partial(partial: Path) -> Iterator[tuple[str, list[str]]]:
    with partial.open(encoding="utf-8") as file:
        next(file)  # the settings
        for line in file:
            example_id, captions = json.loads(line)
            yield example_id, captions


def _check_texts(example_id: str, texts: Sequence[str]) -> None:
    if not all(is_text(text) and text.strip() for text in texts):
        raise ValueError(
            f"the model wrote an empty caption for {example_id!r}: raise --min_length"
        )
