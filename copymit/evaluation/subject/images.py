"""Images that copymit did not make, and the training images of their model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from etils import epath
from ml_collections import ConfigDict

from copymit.config import flatten
from copymit.data.examples import ExampleSource
from copymit.embedding.headline import usual_side
from copymit.embedding.image_set import common_size, open_images, open_source
from copymit.evaluation.settings import resolve_embedders
from copymit.evaluation.stages import images_digest
from copymit.evaluation.subject.places import all_paths, name_after, place_of, title_of
from copymit.evaluation.subject.subject import Given, SourceCaptions, Subject


def open_pair(
    generations: Any,
    references: Any,
    workdir: epath.PathLike,
    eval_config: ConfigDict,
    name: str | None,
    prompts: Sequence[str] | None = None,
) -> Subject:
    """Opens images that copymit did not make, and the training images of their model.

    Args:
      generations, references: whatever `open_images` knows. Networks see each image as
        its protocol says; what compares pixels sees the references resized and cropped to
        the size of the generations. With `eval.resolution` all see all at that size.
        Which network gives the headline, if none is named, goes by the size of the
        generations or, if they are smaller, that of the references as they are.
      name: of the evaluation; by default after where the images lie.
      prompts: of each generation, in order; by default the texts beside the images of
        tar files, else none.
    Raises:
      FileNotFoundError, ValueError: for images that are missing, empty, corrupt or of
        several sizes.
    """
    skip = eval_config.on_corrupt == "skip"
    given, trained = (
        open_source(images) or images for images in (generations, references)
    )
    made = open_images(
        "generations", given, eval_config.resolution or None, skip_corrupt=skip
    )
    size = eval_config.resolution or common_size(made, skip)
    trained_on = open_images(
        "references", trained, size, keep_original=not eval_config.resolution
    )
    eval_config, choice = resolve_embedders(
        eval_config, lambda: min(size, usual_side(trained_on) or size)
    )
    prompts = None if prompts is None else list(prompts)
    texts = _texts_of(given, generations) if prompts is None else prompts
    if texts is not None and len(texts) != len(made.ids):
        raise ValueError(
            f"{len(texts)} prompts for {len(made.ids)} generations: give one each"
        )
    images = {"generations": generations, "references": references}
    places = {which: place_of(value) for which, value in images.items()}
    about = {which: _describe(value) for which, value in images.items()}
    table = None
    if texts is not None:
        table = pd.DataFrame({"id": list(made.ids), "prompt": texts})
    return Subject(
        title=title_of(generations),
        out=epath.Path(workdir) / "eval" / (name or name_after(generations, places)),
        settings=flatten({"eval": eval_config.to_dict()}) | about,
        identity={which: images_digest(value) for which, value in images.items()}
        | {"prompts": texts},
        record={
            "kind": "images",
            "places": places,
            "eval": eval_config.to_dict(),
            "prompts": prompts,
        },
        eval=eval_config,
        references=trained_on,
        heldout=None,
        size=size,
        captions=SourceCaptions(trained) if isinstance(trained, ExampleSource) else {},
        made=Given(made, table),
        choice=choice,
    )


def _texts_of(source: Any, images: Any) -> list[str] | None:
    """Reads the texts of tar files; a folder's are made up, and so no prompts."""
    if not (isinstance(source, ExampleSource) and str(images).endswith(".tar")):
        return None
    return [source[i].captions[0] for i in range(len(source))]


def _describe(images: Any) -> str:
    if isinstance(images, str | Path):
        return str(images)
    if isinstance(images, list | tuple) and all_paths(images):
        return f"{len(images)} files, {images[0]} to {images[-1]}"
    return f"{type(images).__name__}"
