"""The embed stage: every image by every embedder that the settings ask for."""

import hashlib
import logging

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
from copymit.embedding.store import (
    EmbeddingStore,
    Shard,
    listing_digest,
    load_embeddings,
)
from copymit.embedding.tiles import tile_set
from copymit.evaluation.artefacts import (
    BACKGROUND_CAPTIONS,
    Artefacts,
    list_embedded,
    list_texts,
)
from copymit.evaluation.subject import Subject

logger = logging.getLogger(__name__)


def run_embed(subject: Subject, artefacts: Artefacts) -> None:
    """Embeds what is not embedded yet."""
    rows = background_rows(subject, BACKGROUND_CAPTIONS)
    sets = {
        "generations": subject.generations(),
        "references": subject.references,
        "heldout": subject.heldout,
        "few_references": _subset(subject.references, rows),
    }
    for place in list_embedded(subject):
        embedder, name, tile = place
        images = sets[name]
        assert images is not None
        embed(
            make_embedder(embedder, subject.eval.weights),
            tile_set(images, tile) if tile else images,
            artefacts.store(*place),
            batch_size=subject.eval.batch_size,
            known=artefacts.known_stores(*place),
            skip_corrupt=subject.eval.on_corrupt == "skip",
        )
    if subject.eval.clip_score and jax.process_index() == 0:
        _embed_captions(subject, artefacts)


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
    captions = {}
    wanted, prompts = list_texts(subject), subject.prompts()
    if prompts is not None:
        used = prompts.get("prompt_used", prompts["prompt"])
        captions["prompts"] = dict(zip(prompts["id"], used, strict=True))
    if "captions" in wanted:
        rows = background_rows(subject, BACKGROUND_CAPTIONS)
        ids = [subject.references.ids[i] for i in rows]
        captions["captions"] = {i: subject.captions[i][0] for i in ids}
    embedder = make_clip_captions(name, subject.eval.weights[CLIP_MODELS[name].weights])
    for images, texts in captions.items():
        store = artefacts.store(name, images)
        digests = [hashlib.sha256(t.encode()).digest()[:16] for t in texts.values()]
        finished = store.read(0)
        about = (list(texts), digests, embedder.protocol)
        if finished and (finished.ids, finished.digests, finished.protocol) == about:
            continue
        features = embed_captions(embedder, list(texts.values()))
        listing = listing_digest(list(texts))
        shard = Shard(list(texts), digests, features, [], listing, embedder.protocol)
        store.write(0, shard)
        logger.info("%s: embedded %d %s", name, len(texts), images)


def list_skipped(stores: list[EmbeddingStore]) -> dict[str, str]:
    """Lists the images that could not be read, and why."""
    skipped = [image for store in stores for image in load_embeddings(store).skipped]
    return {image.id: image.reason for image in skipped}
