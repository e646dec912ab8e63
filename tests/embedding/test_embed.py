"""Embedding a set of images: a fake embedder with a known answer, kills, and reuse."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from copymit.data.images import ImageError
from copymit.embedding import embed as embed_module
from copymit.embedding.embed import embed, is_blank, pixel_digest
from copymit.embedding.embedder import Embedder
from copymit.embedding.image_set import ImageSet, open_images
from copymit.embedding.resizing import resize_to
from copymit.embedding.store import EmbeddingStore, load_embeddings

SIZE_PX = 8


def flat(values):
    """Images of one colour each."""
    ones = np.ones((len(values), SIZE_PX, SIZE_PX, 3))
    return (ones * np.reshape(values, (-1, 1, 1, 1))).astype(np.uint8)


def images_of(values, prefix="image"):
    pixels = flat(values)
    ids = [f"{prefix} {i}" for i in range(len(pixels))]
    return ImageSet("generations", ids, pixels.__getitem__)


class Counter:
    """An embedder whose features are the mean colour, and how often it was asked."""

    def __init__(self, protocol="mean colour"):
        self.prepared = 0
        self.embedder = Embedder("fake", protocol, self._prepare, (), self._apply)

    def _prepare(self, image):
        self.prepared += 1
        return image[:2, :2]

    def _apply(self, _, images):
        assert images.shape[1:] == (2, 2, 3)
        return images.astype(jnp.float32).mean(axis=(1, 2))


def run(counter, images, store, trusted=False, **options):
    if not trusted:
        store = EmbeddingStore(store.directory)
    embed(counter.embedder, images, store, batch_size=2, shard_rows=4, **options)
    return load_embeddings(store)


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path / "store", "these images")


def test_every_image_is_embedded_once_and_in_order(store):
    values = [7, 3, 250, 0, 41, 9, 12, 200, 90]
    counter = Counter()
    found = run(counter, images_of(values), store)
    assert found.ids == [f"image {i}" for i in range(9)]
    np.testing.assert_allclose(found.features[:, 0], values)
    assert [len(shard) for shard in found.shards] == [4, 4, 1]
    assert (counter.prepared, found.protocol) == (9, "mean colour")


def test_finished_shards_of_trusted_inputs_are_not_even_read(store):
    run(Counter(), images_of(range(9)), store, trusted=True)
    unread = ImageSet("generations", images_of(range(9)).ids, lambda i: 1 / 0)
    again = run(Counter(), unread, store, trusted=True)
    np.testing.assert_allclose(again.features[:, 0], range(9))


def test_a_killed_run_goes_on_after_its_last_shard(store, monkeypatch):
    pixels = flat(range(9))

    def dies(i):
        if i == 6:
            raise KeyboardInterrupt
        return pixels[i]

    images = images_of(range(9))
    with pytest.raises(KeyboardInterrupt):
        run(Counter(), images._replace(read=dies), store, trusted=True)
    assert [len(shard.ids) for shard in store.shards_of_any_inputs()] == [4]
    counter = Counter()
    found = run(counter, images, store, trusted=True)
    np.testing.assert_allclose(found.features[:, 0], range(9))
    assert counter.prepared == 5


def test_known_pixels_are_not_embedded_again_whatever_they_are_called(store, tmp_path):
    run(Counter(), images_of([5, 6, 7, 8, 9]), store)
    counter = Counter()
    other = EmbeddingStore(tmp_path / "other")
    values = [9, 1, 5, 2, 7, 7]
    found = run(counter, images_of(values, "new"), other, known=[store])
    np.testing.assert_allclose(found.features[:, 0], values)
    assert counter.prepared == 2


def test_changed_pixels_under_an_old_name_are_embedded(store):
    run(Counter(), images_of([1, 2, 3]), store)
    counter = Counter()
    found = run(counter, images_of([1, 99, 3]), store)
    np.testing.assert_allclose(found.features[:, 0], [1, 99, 3])
    assert counter.prepared == 1


def test_features_of_another_protocol_are_thrown_away(store):
    run(Counter(), images_of(range(6)), store)
    counter = Counter("mean colour, twice")
    found = run(counter, images_of(range(6)), store, trusted=True)
    assert (counter.prepared, found.protocol) == (6, "mean colour, twice")


def test_a_set_that_shrank_keeps_no_rows_of_the_larger_one(store):
    run(Counter(), images_of(range(9)), store)
    found = run(Counter(), images_of(range(3)), store, trusted=True)
    assert found.ids == ["image 0", "image 1", "image 2"]


def corrupt(values, bad):
    pixels = flat(values)

    def read(i):
        if i in bad:
            raise ImageError(f"image {i}", "is corrupt")
        return pixels[i]

    return images_of(values)._replace(read=read)


def test_a_corrupt_image_stops_the_run_with_its_name(store):
    with pytest.raises(ImageError, match=r"'image 5' is corrupt \(generations\)"):
        run(Counter(), corrupt(range(9), {5}), store)


def test_skipped_images_are_listed_and_the_others_keep_their_rows(store):
    images = corrupt(range(9), {1, 8})
    found = run(Counter(), images, store, skip_corrupt=True)
    assert found.ids == [f"image {i}" for i in (0, 2, 3, 4, 5, 6, 7)]
    np.testing.assert_allclose(found.features[:, 0], [0, 2, 3, 4, 5, 6, 7])
    assert [(s.id, s.reason) for s in found.skipped] == [
        ("image 1", "is corrupt"),
        ("image 8", "is corrupt"),
    ]
    # They are listed, too, where no shard had to be made.
    again = run(Counter(), images, store, skip_corrupt=True, trusted=True)
    assert again.skipped == found.skipped


def test_a_set_without_any_readable_image_is_refused(store):
    with pytest.raises(FileNotFoundError, match="holds no embeddings"):
        run(Counter(), corrupt(range(3), {0, 1, 2}), store, skip_corrupt=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_name_the_image(value, store):
    def broken(_, images):
        mean = images.astype(jnp.float32).mean(axis=(1, 2))
        return jnp.where(mean == 3, value, mean)

    embedder = Embedder("fake", "broken", lambda image: image, (), broken)
    with pytest.raises(ValueError, match="1 of the generations, first image 1"):
        embed(embedder, images_of([7, 3, 9]), store, batch_size=2)


def test_two_processes_write_the_shards_of_one(store, tmp_path, monkeypatch):
    images = images_of(range(11))
    whole = run(Counter(), images, store)
    shared = EmbeddingStore(tmp_path / "shared")
    monkeypatch.setattr(embed_module.jax, "process_count", lambda: 2)
    for index in (1, 0):
        monkeypatch.setattr(
            embed_module.jax, "process_index", lambda index=index: index
        )
        embedder = Counter().embedder
        embed(embedder, images, shared, batch_size=2, shard_rows=4)
    found = load_embeddings(shared)
    assert found.ids == whole.ids
    np.testing.assert_array_equal(found.features, whole.features)


def test_the_digest_sees_pixels_and_shape_and_never_ends_in_zero(rng):
    image = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    same, turned = image.copy(), image.reshape(8, 4, 3)
    assert pixel_digest(image) == pixel_digest(same) != pixel_digest(turned)
    same[0, 0, 0] ^= 1
    assert pixel_digest(image) != pixel_digest(same)
    assert pixel_digest(image)[-1:] != b"\0"
    assert len(pixel_digest(image)) == 16


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 7)])
def test_an_image_of_one_colour_is_told_by_its_digest(colour):
    image = np.full((4, 6, 3), colour, np.uint8)
    assert is_blank(pixel_digest(image))
    image[3, 5, 2] += 1
    assert not is_blank(pixel_digest(image))


def test_a_network_is_fed_what_its_protocol_says_from_the_original_pixels(
    rng, tmp_path
):
    """A 640 x 480 photo was cropped before it was squashed: 28 grey levels apart."""
    photo = np.asarray(
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480))
    )
    images = open_images("references", [photo], 512, keep_original=True)
    squashed = resize_to(photo, 320, 320)
    fed = []
    for any_shape in (True, False):
        embedder = Embedder(
            "squash",
            f"squashed to 320 px, {any_shape}",
            lambda image: resize_to(image, 320, 320),
            (),
            lambda _, batch: batch.reshape(len(batch), -1).astype(jnp.float32),
            any_shape,
        )
        store = EmbeddingStore(tmp_path / str(any_shape))
        embed(embedder, images, store, batch_size=1)
        fed.append(load_embeddings(store).features.reshape(320, 320, 3))
    np.testing.assert_array_equal(fed[0], squashed)
    # Whoever needs a common size sees the crop, and the scores say so.
    assert np.abs(fed[1] - squashed).mean() > 10
