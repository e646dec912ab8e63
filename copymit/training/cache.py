"""Latents and caption embeddings that do not change, computed once and kept.

They lie in `cache/` of the working directory, or where `data.cache_dir` says, named by
everything that they depend on: the weights and sizes of the network, the content of the
images, the texts. A run that is interrupted computes only what is missing, other settings
make another cache, and runs that share the directory share what they have in common.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32
from ml_collections import ConfigDict

from copymit.config import cache_folder
from copymit.data.captions import VariedCaptions
from copymit.data.dataset import Dataset
from copymit.data.pipeline import CachedEmbeddings, CachedMoments, Images
from copymit.data.row_store import RowStore, row_size
from copymit.models.assembly import DiffusionModel
from copymit.models.functional import Params
from copymit.progress import Progress
from copymit.sharding import batch_sharding, wait_for_all
from copymit.storage import is_remote, write_whole
from copymit.training.state import TrainState

logger = logging.getLogger(__name__)

_IMAGES_PER_DEVICE = 8

# Embeddings that take less are kept whatever that saves.
_SMALL_BYTES = 2**30


def cache_moments(
    workdir: epath.Path,
    config: ConfigDict,
    model: DiffusionModel,
    state: TrainState,
    dataset: Dataset,
    images: Images,
    mesh: Mesh,
) -> CachedMoments:
    """Encodes every training image, and its mirror image if the run flips."""
    views = 2 if config.data.random_flip else 1
    pixels = jax.ShapeDtypeStruct((1, *images[0].shape), jnp.float32)
    encode = model.encode_images
    shape = jax.eval_shape(encode, state.frozen, pixels).shape[1:]
    autoencoder = config.model.autoencoder.to_dict()
    del autoencoder["pretrained"]  # the weights are what counts, not where they lay
    identity = {
        "autoencoder": autoencoder,
        "weights": fingerprint(state.frozen.get("vae", {})),
        "images": _content_digest(dataset),
        "resolution": config.data.resolution,
        "views": views,
        "dtype": config.train.dtype,
    }
    path = _claim(cache_folder(workdir, config), "moments", identity)
    store = RowStore(path / "rows", len(dataset.indices) * views, shape)

    def load(row: int) -> np.ndarray:
        index, mirrored = divmod(row, views)
        return images[index][:, ::-1] if mirrored else images[index]

    def compute(frozen, batch):
        return encode(frozen, batch.astype(jnp.float32) / 127.5 - 1)

    _fill(store, load, compute, state.frozen, mesh, "latents")
    return CachedMoments(store.load_small(), views)


def cache_embeddings(
    workdir: epath.Path,
    config: ConfigDict,
    model: DiffusionModel,
    state: TrainState,
    input_ids: Int[np.ndarray, "M L"],
    mesh: Mesh,
) -> CachedEmbeddings:
    """Encodes every caption that the run can meet.

    Args:
      input_ids: of the captions; repetitions are computed once.
    """
    if "text_encoder" not in state.frozen:
        raise ValueError(
            "data.cache_embeddings needs a text encoder that does not train: set "
            "model.text_encoder.train to False, or data.cache_embeddings to False"
        )
    rows = np.unique(np.asarray(input_ids, np.int32), axis=0)
    identity = {
        "text_encoder": config.model.text_encoder.to_dict(),
        "weights": fingerprint(state.frozen["text_encoder"]),
        "captions": hashlib.sha256(rows.tobytes()).hexdigest(),
        "dtype": config.train.dtype,
    }
    path = _claim(cache_folder(workdir, config), "embeddings", identity)
    shape, dtype = _embedding(config)
    store = RowStore(path / "rows", len(rows), shape, dtype=dtype)

    def compute(frozen, batch):
        return model.encode_text(frozen, batch).astype(dtype)

    _fill(store, rows.__getitem__, compute, state.frozen, mesh, "captions")
    positions = {row.tobytes(): i for i, row in enumerate(rows)}
    return CachedEmbeddings(store.load_small(), positions)


def embeddings_pay(config: ConfigDict, count: int, folder: epath.Path) -> bool:
    """Returns whether embeddings of so many captions are worth what they take, and says.

    Args:
      count: of captions that the run can meet.
      folder: where they would lie.
    """
    draws = config.train.steps * config.train.batch_size
    size = count * row_size(*_embedding(config))
    free = None if is_remote(folder) else _free_bytes(Path(folder))
    if count >= draws and size > _SMALL_BYTES:
        reason = f"the run draws only {draws}"
    elif free is not None and size > free / 2:
        reason = f"{folder} has {free / 1e9:.1f} GB left"
    else:
        logger.info("embeddings of %d captions take %.1f GB", count, size / 1e9)
        return True
    logger.warning(
        "data.cache_embeddings: embeddings of %d captions, %.1f GB, are not kept, since %s;"
        " they are computed at every step",
        count,
        size / 1e9,
        reason,
    )
    return False


def _embedding(config: ConfigDict) -> tuple[tuple[int, int], str]:
    """Returns the shape of a caption's embedding, and the dtype that it comes in."""
    text = config.model.text_encoder
    return (text.max_length, text.hidden_size), config.train.dtype


def _free_bytes(folder: Path) -> int:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def fingerprint(params: Params) -> str:
    """Hashes parameters by their bits: the same for any sharding, and quick on device."""

    def checksum(x: Array) -> UInt32[Array, " "]:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32).ravel()
        # Sums of integers do not depend on their order; odd weights notice a swap.
        weights = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2_654_435_762)
        return jnp.sum(bits * (weights + jnp.uint32(1)), dtype=jnp.uint32)

    sums = jax.device_get(jax.jit(lambda p: jax.tree.map(checksum, p))(params))
    return _digest({name: int(value) for name, value in sums.items()})


def _fill(
    store: RowStore,
    load: Callable[[int], np.ndarray],
    compute: Callable[[Any, Array], Float[Array, "B ..."]],
    frozen: Any,
    mesh: Mesh,
    what: str,
) -> None:
    """Computes the missing shards, this process its part, and waits for the others."""
    missing = store.missing_shards()
    mine = missing[jax.process_index() :: jax.process_count()]
    # Devices work in step: every process brings as many batches as the busiest one.
    shards = max(-(-len(missing) // jax.process_count()), 0)
    sharding = batch_sharding(mesh)
    size = _IMAGES_PER_DEVICE * max(1, len(mesh.local_devices))
    encode = jax.jit(compute, out_shardings=sharding)
    progress = Progress("cached", sum(len(store.shard(i)) for i in mine), unit=what)
    for turn in range(shards):
        rows = store.shard(mine[turn] if turn < len(mine) else missing[0])
        parts = []
        for first in range(0, store.shard_rows, size):
            chosen = np.resize(rows[first : first + size] or rows[:1], size)
            local = np.stack([load(int(row)) for row in chosen])
            batch = jax.make_array_from_process_local_data(sharding, local)
            parts.append(_local_rows(encode(frozen, batch)))
        if turn < len(mine):
            store.write(mine[turn], np.concatenate(parts)[: len(rows)])
            progress.add(len(rows))
    wait_for_all(f"cache of {what}")


def _local_rows(array: Float[Array, "B ..."]) -> Float[np.ndarray, "b ..."]:
    """Fetches this process's part of a batch, each row once."""
    parts = {
        shard.index[0].start or 0: shard.data for shard in array.addressable_shards
    }
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _content_digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for index in dataset.indices:
        example = dataset.source[int(index)]
        digest.update(hashlib.sha256(example.image).digest())
    return digest.hexdigest()


def _claim(folder: epath.Path, kind: str, identity: dict[str, Any]) -> epath.Path:
    """Names the directory of a cache and leaves a note in it of what it depends on."""
    path = folder / f"{kind}-{_digest(identity)[:16]}"
    if jax.process_index() == 0:
        path.mkdir(parents=True, exist_ok=True)
        write_whole(
            path / "identity.json", (json.dumps(identity, indent=1) + "\n").encode()
        )
    wait_for_all(f"directory of {kind}")
    return path


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


def every_caption(
    config: ConfigDict,
    dataset: Dataset,
    caption: Callable[[Any, bool, np.random.Generator], str],
) -> Sequence[str]:
    """Lists the captions that a run can meet.

    Args:
      caption: what `make_captions` returns, before mitigations.
    """
    varies = config.mitigation.train.multiple_captions
    rng = np.random.default_rng(0)
    texts = {""} if config.data.caption_dropout else set()
    for index, duplicated in zip(
        dataset.indices, dataset.duplication.duplicated, strict=True
    ):
        example = dataset.source[int(index)]
        texts.add(caption(example, False, rng))
        listed = isinstance(example.captions, VariedCaptions)
        if varies or (duplicated and (listed or config.data.duplication == "partial")):
            texts.update(example.captions)
    return sorted(texts)
