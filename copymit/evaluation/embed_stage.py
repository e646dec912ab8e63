"""The embed stage: every image by every embedder that the settings ask for."""

import functools

import jax
import numpy as np
from jaxtyping import Int

from copymit.embedding.clip import (
    CLIP_MODELS,
    embed_captions,
    make_clip_captions,
)
from copymit.embedding.embed import Job, embed_all, embed_texts
from copymit.embedding.embedder import Embedder
from copymit.embedding.image_set import ImageSet
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import EmbeddingStore, load_embeddings
from copymit.evaluation.artefacts import (
    BACKGROUND_CAPTIONS,
    Artefacts,
    list_embedded,
    list_texts,
)
from copymit.evaluation.reconstruct import RECONSTRUCTIONS
from copymit.evaluation.stages import Share
from copymit.evaluation.subject import Subject


def run_embed(
    subject: Subject, artefacts: Artefacts, share: Share | None = None
) -> None:
    """Embeds what is not embedded yet, or a share of all; each image is read once."""
    rows = background_rows(subject, BACKGROUND_CAPTIONS)
    sets = {
        "generations": subject.generations(),
        "references": subject.references,
        "heldout": subject.heldout,
        "few_references": _subset(subject.references, rows),
        RECONSTRUCTIONS: subject.reconstructions(),
    }

    @functools.cache
    def load(embedder: str) -> Embedder:
        return make_embedder(embedder, subject.eval.weights)

    jobs: dict[str, list[Job]] = {}
    for place in list_embedded(subject):
        embedder, name, tile = place
        known = artefacts.known_stores(*place)
        job = Job(load(embedder), artefacts.store(*place), known, tile and tile.cut)
        jobs.setdefault(name, []).append(job)
    for name, own in jobs.items():
        images = sets[name]
        assert images is not None
        embed_all(
            own,
            images,
            batch_size=subject.eval.batch_size,
            skip_corrupt=subject.eval.on_corrupt == "skip",
            share=share or (0, 1),
        )
    first = jax.process_index() == 0 and not (share and share.number)
    if subject.eval.clip_score and first:
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
    compute = functools.partial(embed_captions, embedder)
    for images, texts in captions.items():
        embed_texts(compute, embedder.protocol, texts, artefacts.store(name, images))


def list_skipped(stores: list[EmbeddingStore]) -> dict[str, str]:
    """Lists the images that could not be read, and why."""
    skipped = [image for store in stores for image in load_embeddings(store).skipped]
    return {image.id: image.reason for image in skipped}
