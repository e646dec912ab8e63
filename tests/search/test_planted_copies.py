"""Copies of training images, hidden among generations, are found by the whole search:
trained embedder, unit vectors, nearest reference."""

import io
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageOps

from copymit.data.images import decode_image
from copymit.data.sources import load_source
from copymit.models.efficientnet import load_efficientnet_lite0, preprocess
from copymit.search.nearest import search, search_exact

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"
SIZE_PX = 224
BATCH = 25


@pytest.fixture(scope="module")
def embed():
    model = load_efficientnet_lite0()
    compute = nnx.jit(lambda model, images: model(preprocess(images)))

    def embed_images(images):
        pixels = np.stack([np.asarray(image) for image in images])
        batches = np.split(pixels, range(BATCH, len(pixels), BATCH))
        rows = np.concatenate([compute(model, jnp.asarray(batch)) for batch in batches])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return embed_images


def resized(image, size_px):
    return image.resize((size_px, size_px), Image.Resampling.BILINEAR)


def crop(image, rng):
    size = int(image.width * rng.uniform(0.85, 0.95))
    x, y = rng.integers(0, image.width - size + 1, 2)
    return resized(image.crop((x, y, x + size, y + size)), SIZE_PX)


def flip(image, rng):
    return ImageOps.mirror(image)


def compress(image, rng):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def shrink(image, rng):
    return resized(resized(image, SIZE_PX // 2), SIZE_PX)


CHANGES = (crop, flip, compress, shrink)


def copies_are_found(embed, images, changes_of):
    """Plants copies of the first 50 images and returns how they and others score."""
    rng = np.random.default_rng(0)
    copies = []
    for i, image in enumerate(images[:50]):
        for change in changes_of(i):
            image = change(image, rng)
        copies.append(image)
    references = embed(images)
    result = search(embed(copies), references, 1)
    recall = (result.neighbours.indices[:, 0] == np.arange(50)).mean()
    background = search_exact(
        references, references, 1, exclude=np.arange(len(references))
    )
    return recall, result.neighbours.similarities, background.similarities


def test_changed_emoji_are_found(embed):
    source = load_source("fluent_emoji")
    chosen = np.random.default_rng(0).permutation(len(source))[:200]
    images = [
        resized(decode_image(source[i].image, source[i].example_id), SIZE_PX)
        for i in chosen
    ]
    # One change a copy: some flags are each other's mirror images.
    recall, copied, background = copies_are_found(
        embed, images, lambda i: [CHANGES[i % 4]]
    )
    assert recall >= 0.98
    assert np.median(copied) > np.percentile(background, 75)


@pytest.mark.slow
def test_photos_changed_in_four_ways_at_once_are_found(embed):
    archive = SHARED_DATA / "imagenette2-224.tar"
    if not archive.is_file():
        pytest.skip("needs ../shared/data/imagenette2-224.tar")
    images = []
    with tarfile.open(archive) as tar:
        photos = (
            member for member in tar if "/val/" in member.name and member.isfile()
        )
        for count, member in enumerate(photos):
            if count % 3 == 0:
                image = decode_image(tar.extractfile(member).read(), member.name)
                images.append(resized(image, SIZE_PX))
    assert len(images) > 150
    recall, copied, background = copies_are_found(embed, images, lambda i: CHANGES)
    assert recall >= 0.98
    assert np.median(copied) > np.percentile(background, 95)
