"""Images that copymit did not make, and the training images of their model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from etils import epath
from ml_collections import ConfigDict

from copymit.config import flatten
from copymit.data.examples import ExampleSource, describe_captions, describe_left_out
from copymit.embedding.headline import usual_side
from copymit.embedding.image_set import (
    Sizes,
    common_size,
    count_sizes,
    open_source,
    resized,
    view_images,
)
from copymit.evaluation.settings import resolve_embedders
from copymit.evaluation.stages import compute_digest, images_digest
from copymit.evaluation.subject.places import all_paths, name_after, place_of, title_of
from copymit.evaluation.subject.record import read_record
from copymit.evaluation.subject.subject import Given, Subject, captions_of

logger = logging.getLogger(__name__)


def open_pair(
    generations: Any,
    references: Any,
    workdir: epath.PathLike,
    eval_config: ConfigDict,
    name: str | None,
    prompts: Sequence[str] | None = None,
    heldout: Any = None,
) -> Subject:
    """Opens images that copymit did not make, and the training images of their model.

    Args:
      generations, references: whatever `open_images` knows. Networks see each image as
        its protocol says; what compares pixels sees all resized and cropped to the short
        side of the generations. With `eval.resolution` all see all at that size. Which
        network gives the headline, if none is named, goes by that size or, if they are
        smaller, by the size of the references as they are.
      name: of the evaluation; by default after where the images lie.
      prompts: of each generation, in order; by default the texts beside the images, if
        each has one.
      heldout: images of the same kind that the model was never trained on, if there are
        any: whatever `open_images` knows.
    Raises:
      FileNotFoundError, ValueError: for images that are missing, empty, corrupt or of
        several short sides.
    """
    images = {"generations": generations, "references": references}
    if heldout is not None:
        images["heldout"] = heldout
    places = {which: place_of(value) for which, value in images.items()}
    digests = {which: images_digest(value) for which, value in images.items()}
    out = epath.Path(workdir) / "eval" / (name or name_after(generations, places))
    given, trained = (
        open_source(images) or images for images in (generations, references)
    )
    for which, value in {"generations": given, "references": trained}.items():
        if isinstance(value, ExampleSource):
            logger.info("%s, %s", which, describe_captions(value))
            if left_out := describe_left_out(value):
                logger.warning("%s, %s", which, left_out)
    made, size = view_images("generations", given), eval_config.resolution
    trained_on, fixed = view_images("references", trained), bool(size)
    sizes: Sizes = {}
    counted_of = compute_digest([digests["generations"], eval_config.on_corrupt])
    if not size:
        skip = eval_config.on_corrupt == "skip"
        sizes = _known_sizes(out, counted_of) or count_sizes(made, skip)
        size = common_size(made.name, sizes)
    as_they_are = any(width != height for width, height in sizes)
    made = resized(made, size, keep_original=as_they_are)
    eval_config, choice = resolve_embedders(
        eval_config,
        lambda: size if fixed else min(size, usual_side(trained_on) or size),
    )
    prompts = None if prompts is None else list(prompts)
    texts = _texts_of(given) if prompts is None else prompts
    if texts is not None and len(texts) != len(made.ids):
        raise ValueError(
            f"{len(texts)} prompts for {len(made.ids)} generations: give one each"
        )
    about = {which: _describe(value) for which, value in images.items()}
    table = None
    if texts is not None:
        table = pd.DataFrame({"id": list(made.ids), "prompt": texts})
    return Subject(
        title=title_of(generations),
        out=out,
        settings=flatten({"eval": eval_config.to_dict()}) | about,
        identity=digests | {"prompts": texts},
        record={
            "kind": "images",
            "places": places,
            "eval": eval_config.to_dict(),
            "prompts": prompts,
            "sizes": {"of": counted_of, "counts": [[*k, n] for k, n in sizes.items()]},
        },
        eval=eval_config,
        references=resized(trained_on, size, keep_original=not fixed),
        heldout=None
        if heldout is None
        else resized(view_images("heldout", heldout), size, keep_original=not fixed),
        size=size,
        captions=captions_of(trained) if isinstance(trained, ExampleSource) else {},
        made=Given(made, table),
        choice=choice,
    )


def _known_sizes(out: epath.Path, counted_of: str) -> Sizes:
    """Reads from the record what an earlier start counted; nothing of other images."""
    known = (read_record(out) or {}).get("sizes", {})
    if known.get("of") != counted_of:
        return {}
    return {(width, height): count for width, height, count in known["counts"]}


def _texts_of(source: Any) -> list[str] | None:
    """Reads the texts beside images, if each has one."""
    if not isinstance(source, ExampleSource) or not source.caption_counts.all():
        return None
    return [source[i].captions[0] for i in range(len(source))]


def _describe(images: Any) -> str:
    if isinstance(images, str | Path):
        return str(images)
    if isinstance(images, list | tuple) and all_paths(images):
        return f"{len(images)} files, {images[0]} to {images[-1]}"
    return f"{type(images).__name__}"
