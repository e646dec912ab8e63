"""Embedding a set of images: a fake embedder with a known answer, kills, and reuse."""

import logging
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from copymit.data.images import ImageError
from copymit.embedding import embed as embed_module
from copymit.embedding.embed import (
    Job,
    embed,
    embed_all,
    embed_arrays,
    is_blank,
    pixel_digest,
)
from copymit.embedding.embedder import Embedder
from copymit.embedding.image_set import ImageSet, open_images
from copymit.embedding.resizing import resize_to
from copymit.embedding.store import EmbeddingStore, load_embeddings
from copymit.embedding.tiles import list_tiles
from copymit.models.backend import tracing_for

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


def run(counter, images, store, inputs=None, **options):
    """Embeds; of other `inputs` than before, every image is read again."""
    if inputs is not None:
        store = EmbeddingStore(store.directory, inputs)
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
    run(Counter(), images_of(range(9)), store)
    unread = ImageSet("generations", images_of(range(9)).ids, lambda i: 1 / 0)
    again = run(Counter(), unread, store)
    np.testing.assert_allclose(again.features[:, 0], range(9))


def test_a_killed_run_goes_on_after_its_last_shard(store, monkeypatch):
    pixels = flat(range(9))

    def dies(i):
        if i == 6:
            raise KeyboardInterrupt
        return pixels[i]

    images = images_of(range(9))
    with pytest.raises(KeyboardInterrupt):
        run(Counter(), images._replace(read=dies), store)
    assert [len(digests) for _, digests in store.known("mean colour")] == [4]
    counter = Counter()
    found = run(counter, images, store)
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
    found = run(counter, images_of([1, 99, 3]), store, "since changed")
    np.testing.assert_allclose(found.features[:, 0], [1, 99, 3])
    assert counter.prepared == 1


def test_features_of_another_protocol_are_thrown_away(store):
    run(Counter(), images_of(range(6)), store)
    counter = Counter("mean colour, twice")
    found = run(counter, images_of(range(6)), store)
    assert (counter.prepared, found.protocol) == (6, "mean colour, twice")


def test_a_set_that_shrank_keeps_no_rows_of_the_larger_one(store):
    run(Counter(), images_of(range(9)), store)
    found = run(Counter(), images_of(range(3)), store)
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
    again = run(Counter(), images, store, skip_corrupt=True)
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


@pytest.mark.parametrize("kill_after", [0, 3, 7])
def test_images_that_moved_are_known_however_often_the_new_set_is_killed(
    store, kill_after
):
    """Rows of an earlier set are read while the new one is written, never over them."""
    run(Counter(), images_of(range(12)), store)
    moved = images_of([*range(100, 105), *range(12)], "new")
    counter, read = Counter(), []

    def dies(i):
        read.append(i)
        if len(read) > kill_after:
            raise KeyboardInterrupt
        return moved.read(i)

    with pytest.raises(KeyboardInterrupt):
        run(counter, moved._replace(read=dies), store, "more images")
    found = run(counter, moved, store, "more images")
    np.testing.assert_allclose(found.features[:, 0], [*range(100, 105), *range(12)])
    assert counter.prepared <= 5 + min(kill_after, 3)
    assert len(list(store.directory.iterdir())) == 2 * 5


def test_more_known_shards_than_a_process_may_have_files_open(tmp_path, few_open_files):
    """A second run ended with "Too many open files" beyond 1,024 shards."""
    before, values = EmbeddingStore(tmp_path / "before"), list(range(120))
    embed(Counter().embedder, images_of(values), before, batch_size=4, shard_rows=2)
    counter = Counter()
    now = EmbeddingStore(tmp_path / "now", "the same images, in another order")
    images = images_of(values[::-1], "new")
    embed(counter.embedder, images, now, batch_size=4, shard_rows=40, known=[before])
    assert counter.prepared == 0
    found = load_embeddings(now)
    np.testing.assert_allclose(found.features[:, 0], values[::-1])


def test_known_features_that_vanish_meanwhile_are_computed(store, tmp_path):
    run(Counter(), images_of([5, 6, 7, 8, 9]), store)
    values, counter = [9, 5, 1, 6], Counter()

    def read(i):
        for path in store.directory.glob("00000-*"):
            path.unlink(missing_ok=True)  # as another process may
        return images_of(values).read(i)

    images = images_of(values, "new")._replace(read=read)
    found = run(counter, images, EmbeddingStore(tmp_path / "other"), known=[store])
    np.testing.assert_allclose(found.features[:, 0], values)
    assert counter.prepared == 3


def test_progress_counts_what_is_left_to_do(store, caplog):
    caplog.set_level(logging.INFO)
    images = images_of(range(11))
    for index in (1, 0):
        embed(
            *(Counter().embedder, images, store),
            batch_size=2,
            shard_rows=4,
            share=(index, 2),
        )
    shutil.copytree(store.directory, store.directory.parent / "known")
    next(store.directory.glob("00001-*.npy")).unlink()
    run(Counter(), images, store)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("copymit")]
    assert [re.sub(r"  [\d,.]+ images/s  in \d+s", "", line) for line in lines] == [
        "generations with fake 4/4",
        "generations with fake 7/7",
        "generations with fake, 7 done before, 4/4",
    ]
    run(Counter(), images, store)
    assert caplog.messages[-1] == "generations with fake, 11 done before, nothing left"


def test_the_end_is_told_when_the_features_are_written(store, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    told, write = [], EmbeddingStore.write

    def watched(*args):
        told.append(list(caplog.messages))
        write(*args)

    monkeypatch.setattr(EmbeddingStore, "write", watched)
    run(Counter(), images_of(range(3)), store)  # which fill no batch
    assert told == [[]]
    assert caplog.messages[-1].startswith("generations with fake 3/3")


def test_a_batch_is_never_larger_than_a_shard(store):
    sizes = []

    def apply(_, batch):
        sizes.append(len(batch))
        return batch.astype(jnp.float32).mean(axis=(1, 2))

    embedder = Embedder("fake", "mean colour", lambda image: image, (), apply)
    for batch_size in (1000, 7, 4):
        other = EmbeddingStore(store.directory, f"batches of {batch_size}")
        with tracing_for("tpu"):  # a CPU's network sees parts of batches
            embed(
                *(embedder, images_of(range(20)), other),
                batch_size=batch_size,
                shard_rows=8,
            )
        embedder = embedder._replace(protocol=f"but {batch_size}")
    assert sizes == [8, 4]  # each shape is compiled once


@pytest.mark.parametrize(("count", "part"), [(1, 1), (7, 1), (8, 2), (10, 2)])
def test_a_network_on_a_cpu_sees_equal_parts_of_a_batch(count, part):
    sizes = []

    def apply(scale, batch):
        sizes.append(len(batch))
        return scale * batch.astype(jnp.float32).mean(axis=(1, 2))

    images = flat(range(count))
    embedder = Embedder("fake", "mean", lambda image: image, jnp.float32(2), apply)
    features = embed_arrays(embedder, images, batch_size=64)
    np.testing.assert_allclose(features, 2 * images.mean((1, 2)), rtol=1e-6)
    assert set(sizes) == {part}


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


def flattened(name, any_shape):
    """An embedder whose features are the pixels that it sees."""
    return Embedder(
        name,
        f"pixels of {name}",
        lambda image: image,
        (),
        lambda _, batch: batch.reshape(len(batch), -1).astype(jnp.float32),
        any_shape,
    )


def test_each_image_is_read_once_for_all_embedders_and_tiles(rng, tmp_path):
    """It was decoded again for each, and for each tile of each."""
    pixels = rng.integers(0, 256, (7, 12, 16, 3), dtype=np.uint8)
    reads = []

    def read(position):
        reads.append(position)
        return pixels[position]

    images = open_images(
        "references",
        ImageSet("references", [str(i) for i in range(7)], read),
        8,
        keep_original=True,
    )
    expected = {
        "whole": [images.read(i) for i in range(7)],
        "original": list(pixels),
        "tile": [images.read(i)[4:, :4] for i in range(7)],
    }
    reads.clear()
    stores = {name: EmbeddingStore(tmp_path / name, name) for name in expected}
    jobs = [
        Job(flattened("whole", False), stores["whole"]),
        Job(flattened("original", True), stores["original"]),
        Job(flattened("original", True), stores["tile"], (), list_tiles(2)[2].cut),
    ]
    options = {"batch_size": 2, "shard_rows": 4}
    embed_all(jobs[:1], images, **options, share=(0, 2))  # shard 0 is there before
    embed_all(jobs, images, **options)
    assert sorted(reads) == sorted([*range(4), *range(7)])
    for name, seen in expected.items():
        features = load_embeddings(stores[name]).features
        np.testing.assert_array_equal(features, np.reshape(seen, (7, -1)))
    for name, store in stores.items():  # each alone makes the same files
        alone = EmbeddingStore(tmp_path / f"{name} alone", name)
        (job,) = (job for job in jobs if job.store is store)
        embed_all([job._replace(store=alone)], images, **options)
        names = sorted(path.name for path in store.directory.iterdir())
        assert names == sorted(path.name for path in alone.directory.iterdir())
        for file in names:
            ours, theirs = (s.directory / file for s in (store, alone))
            assert ours.read_bytes() == theirs.read_bytes()
