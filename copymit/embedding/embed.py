"""The embed stage: images in, features of every image in a store out.

Images are read and prepared in threads, and embedded in batches of one shape that are
spread over the local devices. Each process embeds every n-th shard of a set, and needs
no other one for it. An image whose pixels were embedded before, in this store or another,
is not embedded again.
"""

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from copymit.data.images import ImageError
from copymit.embedding.embedder import Embedder
from copymit.embedding.image_set import SKIP, ImageSet
from copymit.embedding.known import KnownFeatures
from copymit.embedding.store import (
    DIGEST_BYTES,
    EmbeddingStore,
    Shard,
    Skipped,
    plan_shards,
)
from copymit.models.backend import target_backend
from copymit.progress import Progress

logger = logging.getLogger(__name__)

_BLANK = b"\x02"
_ROWS, _EVERYWHERE = PartitionSpec("data"), PartitionSpec()
# Images that a network on a CPU sees at a time; 1, 4 and 8 are slower.
_MAX_PART = 2


def embed(
    embedder: Embedder,
    images: ImageSet,
    store: EmbeddingStore,
    *,
    batch_size: int,
    known: Sequence[EmbeddingStore] = (),
    skip_corrupt: bool = False,
    shard_rows: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Embeds all images of a set into a store; those of finished shards are not read.

    Args:
      batch_size: most images at a time over all local devices.
      known: stores that may hold features of the same images.
      skip_corrupt: leaves out images that cannot be read, instead of stopping there;
        the store lists them.
      shard_rows: see `plan_shards`.
      share: (i, n) embeds the shards of remainder i modulo n alone. Whoever makes the
        last one of the set removes what the store held before.
    Raises:
      ImageError: names an image that cannot be read.
      ValueError: names an image whose features are not finite.
    """
    plan = plan_shards(images.ids, embedder.protocol, shard_rows)
    first = share[0] * jax.process_count() + jax.process_index()
    own = range(first, plan.num_shards, share[1] * jax.process_count())
    missing = set(store.missing(plan))
    to_do = [index for index in own if index in missing]
    total, left = (sum(len(plan.rows(i)) for i in part) for part in (own, to_do))
    what = f"{images.name} with {embedder.name}"
    what += f", {total - left} done before," if total > left else ""
    if to_do:
        features_known = KnownFeatures([store, *known], embedder.protocol)
        # As many batches of one size as fill a shard.
        batches = -(-plan.shard_rows // batch_size)
        network = _Network(embedder, -(-plan.shard_rows // batches))
        progress = Progress(what, left)
        with ThreadPoolExecutor() as pool:
            for index in to_do:
                shard, features = _embed_shard(
                    *(network, images, plan.rows(index), pool, features_known),
                    *(skip_corrupt, progress),
                )
                store.write(plan, index, shard, features)
    else:
        logger.info("%s nothing left", what)
    if not store.missing(plan):
        store.keep_only(plan)


def embed_arrays(
    embedder: Embedder, images: UInt8[np.ndarray, "B H W 3"], batch_size: int
) -> Float[np.ndarray, "B D"]:
    """Computes the features of images in memory, not normalised."""
    network = _Network(embedder, min(batch_size, len(images)))
    prepared = [embedder.prepare(image) for image in images]
    starts = range(0, len(images), network.batch_size)
    rows = [network(prepared[i : i + network.batch_size]) for i in starts]
    return np.concatenate(rows)


def embed_texts(
    compute: Callable[[Sequence[str]], Float[np.ndarray, "B D"]],
    protocol: str,
    texts: Mapping[str, str],
    store: EmbeddingStore,
) -> None:
    """Computes the features of texts into a store; finished shards are kept.

    Args:
      compute: texts -> features.
      protocol: in words, everything that could change a number.
      texts: by their ids; the digests of the rows are theirs.
    """
    ids = list(texts)
    plan = plan_shards([f"{name}\n{text}" for name, text in texts.items()], protocol)
    missing = store.missing(plan)
    left = sum(len(plan.rows(index)) for index in missing)
    progress = Progress(store.directory.name, left, unit="texts")
    for index in missing:
        own = [ids[row] for row in plan.rows(index)]
        words = [texts[name] for name in own]
        digests = [hashlib.sha256(t.encode()).digest()[:DIGEST_BYTES] for t in words]
        store.write(plan, index, Shard(own, digests, []), compute(words))
        progress.add(len(own))
    store.keep_only(plan)


class _Network:
    """The embedder on all local devices, with counts of what it did."""

    def __init__(self, embedder: Embedder, batch_size: int):
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._rows = NamedSharding(mesh, _ROWS)
        everywhere = NamedSharding(mesh, _EVERYWHERE)
        self._params = jax.device_put(embedder.params, everywhere)
        self._apply = _spread(embedder.apply, mesh, target_backend())
        self.embedder = embedder
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self.num_reused = 0

    def __call__(self, prepared: Sequence[np.ndarray]) -> Float[np.ndarray, "B D"]:
        """Embeds at most a batch; it is filled up, so that one program serves all."""
        batch = np.stack(prepared)
        batch = np.resize(batch, (self.batch_size, *batch.shape[1:]))
        features = self._apply(self._params, jax.device_put(batch, self._rows))
        return np.asarray(features, np.float32)[: len(prepared)]


@functools.lru_cache(maxsize=4)
def _spread(apply: Callable[[Any, Array], Array], mesh: Mesh, backend: str) -> Callable:
    """Compiles a network once for all sets; every device has rows of its own."""
    if backend == "cpu":
        apply = functools.partial(_apply_in_parts, apply)
    return jax.jit(
        jax.shard_map(apply, mesh=mesh, in_specs=(_EVERYWHERE, _ROWS), out_specs=_ROWS)
    )


def _apply_in_parts(apply: Callable[[Any, Array], Array], params: Any, images: Array):
    """Applies a network to a few images at a time, whose feature maps fit the caches.

    One program for all of them, so that they also share its memory: what each run of a
    program allocates, the kernel fills with zeros first.
    """
    B, *shape = images.shape
    part = math.gcd(B, _MAX_PART)
    parts = images.reshape(B // part, part, *shape)
    features = jax.lax.map(functools.partial(apply, params), parts)
    return features.reshape(B, -1)


class _Read(NamedTuple):
    position: int
    digest: bytes
    place: int | None  # among the known features
    prepared: np.ndarray | None


def _embed_shard(
    network: _Network,
    images: ImageSet,
    rows: range,
    pool: ThreadPoolExecutor,
    known: KnownFeatures,
    skip_corrupt: bool,
    progress: Progress,
) -> tuple[Shard, Float[np.ndarray, "R D"]]:
    prepare = network.embedder.prepare
    original = images.read_original if network.embedder.any_shape else None
    read_pixels = original or images.read

    def read(position: int) -> _Read | ImageError:
        try:
            pixels = read_pixels(position)
        except ImageError as error:
            return error
        digest = pixel_digest(pixels)
        place = known.find(digest)
        return _Read(
            position, digest, place, prepare(pixels) if place is None else None
        )

    done: list[_Read] = []
    features: list[Any] = []  # a row per image that could be read
    waiting: list[int] = []  # of them, those that the network has not seen
    skipped: list[Skipped] = []
    counted = 0
    for results in _in_batches(pool, read, rows, network.batch_size):
        for result in results:
            if isinstance(result, ImageError):
                if not skip_corrupt:
                    reason = f"{result.reason} ({images.name}); {SKIP}"
                    raise ImageError(result.name, reason)
                skipped.append(Skipped(result.name, result.reason))
                continue
            if result.place is None:
                waiting.append(len(done))
            else:
                network.num_reused += 1
            features.append(result.prepared)
            done.append(result._replace(prepared=None))
            if len(waiting) == network.batch_size:
                _fill(network, features, waiting, images, done)
        before, counted = counted, len(done) + len(skipped) - len(waiting)
        progress.add(counted - before, _note(network))
    reused = [row for row, result in enumerate(done) if result.place is not None]
    found = known.read([done[row].place for row in reused])  # type: ignore[misc]
    for row, known_features in zip(reused, found, strict=True):
        if known_features is None:
            features[row] = prepare(read_pixels(done[row].position))
            waiting.append(row)
        else:
            features[row] = known_features
        if len(waiting) == network.batch_size:
            _fill(network, features, waiting, images, done)
    if waiting:
        _fill(network, features, waiting, images, done)
    progress.add(len(rows) - counted, _note(network))
    ids = [images.ids[result.position] for result in done]
    table = np.stack(features) if features else np.empty((0, 1), np.float32)
    return Shard(ids, [result.digest for result in done], skipped), table


def _note(network: _Network) -> str:
    known = network.num_reused
    return f"{known} had known pixels" if known else ""


def _fill(
    network: _Network,
    features: list[Any],
    waiting: list[int],
    images: ImageSet,
    done: Sequence[_Read],
) -> None:
    """Puts the network's features where prepared images wait."""
    made = network([features[i] for i in waiting])
    bad = np.flatnonzero(~np.isfinite(made).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{network.embedder.name} gives NaN or infinite features for {len(bad)} of "
            f"the {images.name}, first {images.ids[done[waiting[bad[0]]].position]}: "
            "check the image and the weights"
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
    first = pixels[:1, :1]
    blank = bool((pixels[::16, ::16] == first).all() and (pixels == first).all())
    return digest.digest()[: DIGEST_BYTES - 1] + (_BLANK if blank else b"\x01")


def is_blank(digest: bytes) -> bool:
    """Whether the image of a `pixel_digest` has one colour only."""
    return digest.endswith(_BLANK)
