"""The embed stage: images in, features of every image in a store out.

Images are read and prepared in threads, and embedded in batches of one shape that are
spread over the local devices. Each process embeds every n-th shard of a set. An image
whose pixels were embedded before, in this store or another, is not embedded again.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, UInt8

from copymit.data.images import ImageError
from copymit.embedding.embedder import Embedder
from copymit.embedding.image_set import SKIP, ImageSet
from copymit.embedding.store import (
    SHARD_ROWS,
    EmbeddingStore,
    Shard,
    Skipped,
    listing_digest,
)
from copymit.metrics import format_duration

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 16
_BLANK = b"\x02"
_SECONDS_BETWEEN_REPORTS = 10


class KnownFeatures:
    """Features of images by their pixels, from stores of the same protocol."""

    def __init__(self, stores: Sequence[EmbeddingStore], protocol: str):
        self._shards = [
            shard
            for store in stores
            for shard in store.shards_of_any_inputs()
            if shard.protocol == protocol
        ]
        digests = [
            np.array(shard.digests, "S16") for shard in self._shards if shard.ids
        ]
        places = [
            np.stack([np.full(len(shard.ids), i), np.arange(len(shard.ids))], 1)
            for i, shard in enumerate(self._shards)
            if shard.ids
        ]
        self._digests = np.concatenate(digests) if digests else np.empty(0, "S16")
        order = np.argsort(self._digests, kind="stable")
        self._digests = self._digests[order]
        self._places = (
            np.concatenate(places)[order] if places else np.empty((0, 2), int)
        )

    def find(self, digest: bytes) -> np.ndarray | None:
        """Returns the features of an image, or None if it was never embedded."""
        row = int(np.searchsorted(self._digests, np.array(digest, "S16")))
        if row == len(self._digests):
            return None
        shard, position = self._places[row]
        if self._shards[shard].digests[position] != digest:
            return None
        return self._shards[shard].features[position]


def embed(
    embedder: Embedder,
    images: ImageSet,
    store: EmbeddingStore,
    *,
    batch_size: int,
    known: Sequence[EmbeddingStore] = (),
    skip_corrupt: bool = False,
    shard_rows: int = SHARD_ROWS,
) -> None:
    """Embeds all images of a set into a store; finished shards are kept.

    Where the store knows what its shards were made of, their images are not even read.

    Args:
      batch_size: images at a time over all local devices.
      known: stores that may hold features of the same images.
      skip_corrupt: leaves out images that cannot be read, instead of stopping there;
        the store lists them.
    Raises:
      ImageError: names an image that cannot be read.
      ValueError: names an image whose features are not finite.
    """
    features_known = KnownFeatures([store, *known], embedder.protocol)
    count = -(-len(images.ids) // shard_rows)
    own = range(jax.process_index(), count, jax.process_count())
    network = _Network(embedder, batch_size)
    progress = _Progress(f"{images.name} with {embedder.name}", len(own) * shard_rows)
    with ThreadPoolExecutor() as pool:
        for index in own:
            start = index * shard_rows
            rows = range(start, min(start + shard_rows, len(images.ids)))
            listing = listing_digest([images.ids[i] for i in rows])
            wanted = (listing, embedder.protocol, count)
            finished = store.read(index) if store.inputs else None
            if finished is None or finished[4:] != wanted:
                shard = _embed_shard(
                    network, images, rows, pool, features_known, skip_corrupt
                )
                store.write(index, Shard(*shard[:4], *wanted))
            progress.add(len(rows))
    if jax.process_index() == 0:
        store.truncate(count)
    logger.info(
        "%s with %s: %d embedded, %d known from before",
        images.name,
        embedder.name,
        network.num_embedded,
        network.num_reused,
    )


def embed_arrays(
    embedder: Embedder, images: UInt8[np.ndarray, "B H W 3"], batch_size: int
) -> Float[np.ndarray, "B D"]:
    """Computes the features of images in memory, not normalised."""
    network = _Network(embedder, min(batch_size, len(images)))
    prepared = [embedder.prepare(image) for image in images]
    starts = range(0, len(images), network.batch_size)
    rows = [network(prepared[i : i + network.batch_size]) for i in starts]
    return np.concatenate(rows)


class _Network:
    """The embedder on all local devices, with counts of what it did."""

    def __init__(self, embedder: Embedder, batch_size: int):
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("data",))
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(embedder.params, everywhere)
        self._apply = jax.jit(embedder.apply, out_shardings=self._rows)
        self.embedder = embedder
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        self.num_embedded = 0
        self.num_reused = 0

    def __call__(self, prepared: Sequence[np.ndarray]) -> Float[np.ndarray, "B D"]:
        """Embeds at most a batch; it is filled up, so that one program serves all."""
        self.num_embedded += len(prepared)
        batch = np.stack(prepared)
        batch = np.resize(batch, (self.batch_size, *batch.shape[1:]))
        features = self._apply(self._params, jax.device_put(batch, self._rows))
        return np.asarray(features, np.float32)[: len(prepared)]


class _Read(NamedTuple):
    id: str
    digest: bytes
    known: np.ndarray | None
    prepared: np.ndarray | None


def _embed_shard(
    network: _Network,
    images: ImageSet,
    rows: range,
    pool: ThreadPoolExecutor,
    known: KnownFeatures,
    skip_corrupt: bool,
) -> Shard:
    original = images.read_original if network.embedder.any_shape else None
    read_pixels = original or images.read

    def read(position: int) -> _Read | ImageError:
        image_id = images.ids[position]
        try:
            pixels = read_pixels(position)
        except ImageError as error:
            return error
        digest = pixel_digest(pixels)
        found = known.find(digest)
        prepared = None if found is not None else network.embedder.prepare(pixels)
        return _Read(image_id, digest, found, prepared)

    done: list[_Read] = []
    features: list[Any] = []  # a row per image that could be read
    waiting: list[int] = []  # of them, those that the network has not seen
    skipped: list[Skipped] = []
    for results in _in_batches(pool, read, rows, network.batch_size):
        for result in results:
            if isinstance(result, ImageError):
                if not skip_corrupt:
                    reason = f"{result.reason} ({images.name}); {SKIP}"
                    raise ImageError(result.name, reason)
                skipped.append(Skipped(result.name, result.reason))
                continue
            if result.known is None:
                waiting.append(len(done))
            else:
                network.num_reused += 1
            done.append(result._replace(prepared=None))
            features.append(
                result.prepared if result.known is None else np.array(result.known)
            )
            if len(waiting) == network.batch_size:
                _fill(network, features, waiting, images.name, done)
    if waiting:
        _fill(network, features, waiting, images.name, done)
    table = np.stack(features) if features else np.empty((0, 1), np.float32)
    return Shard([r.id for r in done], [r.digest for r in done], table, skipped, "")


def _fill(
    network: _Network,
    features: list[Any],
    waiting: list[int],
    name: str,
    done: Sequence[_Read],
) -> None:
    """Puts the network's features where prepared images wait."""
    made = network([features[i] for i in waiting])
    bad = np.flatnonzero(~np.isfinite(made).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{network.embedder.name} gives NaN or infinite features for {len(bad)} of "
            f"the {name}, first {done[waiting[bad[0]]].id}: check the image and the weights"
        )
    for i, row in zip(waiting, made, strict=True):
        features[i] = row
    waiting.clear()


def _in_batches(pool, read, rows: range, size: int) -> Iterator[list]:
    """Reads one batch ahead of the one that is worked on."""
    ahead = None
    for start in [*range(0, len(rows), size), None]:
        now, ahead = ahead, None
        if start is not None:
            ahead = [pool.submit(read, i) for i in rows[start : start + size]]
        if now is not None:
            yield [future.result() for future in now]


def pixel_digest(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Hashes an image's size and pixels, whatever file they came from.

    The last byte says whether the image has one colour only, see `is_blank`; it is never
    zero, which numpy's byte strings would not keep.
    """
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    blank = bool((pixels == pixels[:1, :1]).all())
    return digest.digest()[: _DIGEST_BYTES - 1] + (_BLANK if blank else b"\x01")


def is_blank(digest: bytes) -> bool:
    """Whether the image of a `pixel_digest` has one colour only."""
    return digest.endswith(_BLANK)


class _Progress:
    """Logs how far a long set is, with rate and time left."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, max(total, 1), 0
        self._started = self._reported = time.perf_counter()

    def add(self, count: int) -> None:
        self._done += count
        now = time.perf_counter()
        if now - self._reported < _SECONDS_BETWEEN_REPORTS:
            return
        self._reported = now
        rate = self._done / (now - self._started)
        left = format_duration(max(self._total - self._done, 0) / rate)
        logger.info(
            "%s: %d/%d  %.1f images/s  ETA %s",
            self._what,
            self._done,
            self._total,
            rate,
            left,
        )
