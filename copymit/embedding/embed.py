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
    Plan,
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


class Job(NamedTuple):
    """What one embedder is to make of a set of images.

    Attributes:
      store: receives the features.
      known: stores that may hold features of the same images.
      cut: the part of each image that it sees, at the size of all; None is the whole.
    """

    embedder: Embedder
    store: EmbeddingStore
    known: Sequence[EmbeddingStore] = ()
    cut: Callable[[np.ndarray], np.ndarray] | None = None


def embed(
    embedder: Embedder,
    images: ImageSet,
    store: EmbeddingStore,
    *,
    known: Sequence[EmbeddingStore] = (),
    **options: Any,
) -> None:
    """Embeds all images of a set by one embedder; see `embed_all`."""
    embed_all([Job(embedder, store, known)], images, **options)


def embed_all(
    jobs: Sequence[Job],
    images: ImageSet,
    *,
    batch_size: int,
    skip_corrupt: bool = False,
    shard_rows: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Embeds all images of a set by several embedders, and reads each image once.

    Finished shards stay as they are; an image whose shards are all finished is not read.

    Args:
      batch_size: most images at a time over all local devices.
      skip_corrupt: leaves out images that cannot be read, instead of stopping there;
        the stores list them.
      shard_rows: see `plan_shards`.
      share: (i, n) embeds the shards of remainder i modulo n alone. Whoever makes the
        last one of a store removes what it held before.
    Raises:
      ImageError: names an image that cannot be read.
      ValueError: names an image whose features are not finite.
    """
    whole = plan_shards(images.ids, "", shard_rows)
    plans = [whole._replace(protocol=job.embedder.protocol) for job in jobs]
    first = share[0] * jax.process_count() + jax.process_index()
    own = range(first, whole.num_shards, share[1] * jax.process_count())
    missing = [
        set(own) & set(job.store.missing(plan))
        for job, plan in zip(jobs, plans, strict=True)
    ]
    to_do = sorted(set().union(*missing))
    total, left = (sum(len(whole.rows(i)) for i in part) for part in (own, to_do))
    names = dict.fromkeys(job.embedder.name for job in jobs)
    what = f"{images.name} with {', '.join(names)}"
    what += f", {total - left} done before," if total > left else ""
    if to_do:
        # As many batches of one size as fill a shard.
        size = -(-whole.shard_rows // -(-whole.shard_rows // batch_size))
        networks: dict[str, _Network] = {}  # one for all parts of images
        workers = {}
        for i, job in enumerate(jobs):
            if missing[i]:
                protocol = job.embedder.protocol
                if protocol not in networks:
                    networks[protocol] = _Network(job.embedder, size)
                workers[i] = _Worker(job, networks[protocol], images)
        progress = Progress(what, left)
        with ThreadPoolExecutor() as pool:
            for index in to_do:
                active = {i: w for i, w in workers.items() if index in missing[i]}
                seen_by = list(active.values())
                skipped, waiting = _embed_rows(
                    *(seen_by, images, whole.rows(index), pool, size),
                    *(skip_corrupt, progress),
                )
                for i, worker in active.items():
                    worker.write(plans[i], index, skipped)
                progress.add(waiting, _note(seen_by))
    else:
        logger.info("%s nothing left", what)
    for job, plan in zip(jobs, plans, strict=True):
        if not job.store.missing(plan):
            job.store.keep_only(plan)


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
    """The embedder on all local devices."""

    def __init__(self, embedder: Embedder, batch_size: int):
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._rows = NamedSharding(mesh, _ROWS)
        everywhere = NamedSharding(mesh, _EVERYWHERE)
        self._params = jax.device_put(embedder.params, everywhere)
        self._apply = _spread(embedder.apply, mesh, target_backend())
        self.embedder = embedder
        self.batch_size = -(-batch_size // mesh.size) * mesh.size

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
    """An image as one embedder sees it.

    Attributes:
      place: of its features among the known ones, or None.
      prepared: what the network takes, unless they are known.
    """

    position: int
    digest: bytes
    place: int | None
    prepared: np.ndarray | None


class _Worker:
    """One job at work: its network, the features it knows, and the rows of a shard."""

    def __init__(self, job: Job, network: _Network, images: ImageSet):
        self._job, self._network, self._images = job, network, images
        self._known = KnownFeatures([job.store, *job.known], job.embedder.protocol)
        self.is_cut = job.cut is not None
        self.sees_original = job.embedder.any_shape and not self.is_cut
        self.num_reused = 0
        self._begin()

    def _begin(self) -> None:
        self._done: list[_Read] = []
        self._features: list[Any] = []  # a row per image that could be read
        self.waiting: list[int] = []  # of them, those that the network has not seen

    def look(self, position: int, pixels: np.ndarray, digest: bytes | None) -> _Read:
        """Prepares an image unless its features are known.

        Args:
          digest: of its pixels, if somebody computed it.
        """
        if self._job.cut is not None:
            pixels, digest = self._job.cut(pixels), None
        digest = digest or pixel_digest(pixels)
        place = self._known.find(digest)
        prepared = self._job.embedder.prepare(pixels) if place is None else None
        return _Read(position, digest, place, prepared)

    def add(self, read: _Read) -> None:
        """Takes an image, and embeds those that fill a batch."""
        if read.place is None:
            self.waiting.append(len(self._done))
        else:
            self.num_reused += 1
        self._features.append(read.prepared)
        self._done.append(read._replace(prepared=None))
        self._fill(self._network.batch_size)

    def write(self, plan: Plan, index: int, skipped: list[Skipped]) -> None:
        """Embeds what is left, writes the shard and begins the next one."""
        reused = [i for i, read in enumerate(self._done) if read.place is not None]
        found = self._known.read([self._done[i].place for i in reused])  # type: ignore[misc]
        for row, features in zip(reused, found, strict=True):
            self._features[row] = features
            if features is None:  # another process has removed them since
                self._features[row] = self._prepare_again(self._done[row].position)
                self.waiting.append(row)
            self._fill(self._network.batch_size)
        self._fill(1)
        ids = [self._images.ids[read.position] for read in self._done]
        digests = [read.digest for read in self._done]
        table = (
            np.stack(self._features) if self._features else np.empty((0, 1), np.float32)
        )
        self._job.store.write(plan, index, Shard(ids, digests, skipped), table)
        self._begin()

    def _prepare_again(self, position: int) -> np.ndarray:
        read = self._images.read_original if self.sees_original else None
        pixels = (read or self._images.read)(position)
        cut = self._job.cut
        return self._job.embedder.prepare(pixels if cut is None else cut(pixels))

    def _fill(self, least: int) -> None:
        """Puts the network's features where so many prepared images wait."""
        if len(self.waiting) < least:
            return
        embedder = self._job.embedder
        made = self._network([self._features[i] for i in self.waiting])
        bad = np.flatnonzero(~np.isfinite(made).all(axis=1))
        if len(bad):
            first = self._done[self.waiting[bad[0]]].position
            raise ValueError(
                f"{embedder.name} gives NaN or infinite features for {len(bad)} of the "
                f"{self._images.name}, first {self._images.ids[first]}: check the image "
                "and the weights"
            )
        for i, row in zip(self.waiting, made, strict=True):
            self._features[i] = row
        self.waiting.clear()


def _embed_rows(
    workers: Sequence[_Worker],
    images: ImageSet,
    rows: range,
    pool: ThreadPoolExecutor,
    batch_size: int,
    skip_corrupt: bool,
    progress: Progress,
) -> tuple[list[Skipped], int]:
    """Reads images for all workers, which embed those that fill a batch.

    Returns:
      Those that cannot be read, and how many images wait for the shard to be written.
    """
    read_image = images.read_original or images.read
    fit = None if all(worker.sees_original for worker in workers) else images.fit

    def read(position: int) -> list[_Read] | ImageError:
        try:
            original = read_image(position)
            fitted = fit(original) if fit else original
        except ImageError as error:
            return error
        digests: dict[int, bytes] = {}
        reads = []
        for worker in workers:
            pixels = original if worker.sees_original else fitted
            seen = worker.look(position, pixels, digests.get(id(pixels)))
            if not worker.is_cut:
                digests[id(pixels)] = seen.digest
            reads.append(seen)
        return reads

    skipped: list[Skipped] = []
    seen = counted = 0
    for results in _in_batches(pool, read, rows, batch_size):
        for result in results:
            if isinstance(result, ImageError):
                if not skip_corrupt:
                    reason = f"{result.reason} ({images.name}); {SKIP}"
                    raise ImageError(result.name, reason)
                skipped.append(Skipped(result.name, result.reason))
                continue
            for worker, one in zip(workers, result, strict=True):
                worker.add(one)
        seen += len(results)
        before, counted = counted, seen - max(len(w.waiting) for w in workers)
        progress.add(counted - before, _note(workers))
    return skipped, seen - counted


def _note(workers: Sequence[_Worker]) -> str:
    known = min(worker.num_reused for worker in workers)
    return f"{known} had known pixels" if known else ""


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
