"""The embed stage: every image by every embedder that the settings ask for."""

import hashlib
import logging
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from copymit.embedding.clip import (
    CLIP_MODELS,
    embed_captions,
    make_clip_captions,
)
from copymit.embedding.embed import embed
from copymit.embedding.image_set import ImageSet
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import EmbeddingStore, Shard, listing_digest
from copymit.embedding.tiles import Tile, list_tiles, tile_set
from copymit.evaluation.artefacts import Artefacts
from copymit.evaluation.subject import Subject

logger = logging.getLogger(__name__)

# Training images whose captions are scored, for comparison with the generations'.
_BACKGROUND_CAPTIONS = 2_000


class Work(NamedTuple):
    """A set of images, or one tile of each, for an embedder."""

    embedder: str
    images: ImageSet
    tile: Tile | None


def embedder_names(subject: Subject) -> list[str]:
    """Lists the embedders that need all images: of similarity, then of quality."""
    settings = subject.eval
    names = [*settings.embedders, *settings.quality_embedders]
    return list(dict.fromkeys(names))


def run_embed(subject: Subject, artefacts: Artefacts, digest: str) -> None:
    """Embeds what is not embedded yet.

    Args:
      digest: of everything that features depend on: shards of the same are kept.
    """
    (subject.out / "embeddings").mkdir(exist_ok=True)
    marker = subject.out / "embeddings" / "inputs.digest"
    trusted = marker.exists() and marker.read_text() == digest
    if jax.process_index() == 0:
        marker.write_text(digest)
    for work in _list_work(subject):
        images = tile_set(work.images, work.tile) if work.tile else work.images
        place = (work.embedder, work.images.name, work.tile)
        embed(
            make_embedder(work.embedder, subject.eval.weights),
            images,
            artefacts.store(*place),
            batch_size=subject.eval.batch_size,
            known=artefacts.known_stores(*place),
            trusted=trusted,
            skip_corrupt=subject.eval.on_corrupt == "skip",
        )
    if subject.eval.clip_score and jax.process_index() == 0:
        _embed_captions(subject, artefacts)


def _list_work(subject: Subject) -> list[Work]:
    sets = [subject.generations(), subject.references]
    if subject.heldout is not None:
        sets.append(subject.heldout)
    names = embedder_names(subject)
    work = [Work(name, images, None) for name in names for images in sets]
    headline = subject.eval.embedders[0]
    for tile in list_tiles(subject.eval.tiles):
        work += [Work(headline, images, tile) for images in sets[:2]]
    clip = subject.eval.clip_score
    if clip and clip not in names:
        few = _subset(sets[1], background_rows(subject, _BACKGROUND_CAPTIONS))
        work += [Work(clip, sets[0], None), Work(clip, few, None)]
    return work


def background_rows(subject: Subject, limit: int) -> Int[np.ndarray, " N"]:
    """Draws references without replacement, the same for the same seed; 0 is all."""
    count = len(subject.references.ids)
    if not 0 < limit < count:
        return np.arange(count)
    rng = np.random.default_rng(subject.eval.seed)
    return np.sort(rng.choice(count, limit, replace=False))


def _subset(images: ImageSet, rows: np.ndarray) -> ImageSet:
    original = images.read_original
    return images._replace(
        ids=[images.ids[i] for i in rows],
        read=lambda i: images.read(int(rows[i])),
        read_original=original and (lambda i: original(int(rows[i]))),
    )


def _embed_captions(subject: Subject, artefacts: Artefacts) -> None:
    """Embeds prompts, and the first captions of some references."""
    name = subject.eval.clip_score
    prompts = subject.prompts()
    captions = {}
    if prompts is not None:
        used = prompts.get("prompt_used", prompts["prompt"])
        captions["prompts"] = dict(zip(prompts["id"], used, strict=True))
    if subject.captions:
        rows = background_rows(subject, _BACKGROUND_CAPTIONS)
        ids = [subject.references.ids[i] for i in rows]
        captions["captions"] = {i: subject.captions[i][0] for i in ids}
    embedder = make_clip_captions(name, subject.eval.weights[CLIP_MODELS[name].weights])
    for images, texts in captions.items():
        store = artefacts.store(name, images)
        store.claim(embedder.protocol)
        digests = [hashlib.sha256(t.encode()).digest()[:16] for t in texts.values()]
        finished = store.read(0)
        if finished and (finished.ids, finished.digests) == (list(texts), digests):
            continue
        features = embed_captions(embedder, list(texts.values()))
        listing = listing_digest(list(texts))
        store.write(0, Shard(list(texts), digests, features, [], listing))
        logger.info("%s: embedded %d %s", name, len(texts), images)


def list_skipped(stores: list[EmbeddingStore]) -> dict[str, str]:
    """Lists the images that could not be read, and why."""
    shards = [shard for store in stores for shard in store.shards()]
    return {image.id: image.reason for shard in shards for image in shard.skipped}
