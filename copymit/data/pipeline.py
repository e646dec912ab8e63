"""Batches of a run: which examples, decoded, flipped, captioned and tokenised.

Enters: an example source, the duplication and the functions that caption and tokenise.
Leaves: an iterator of batches of this process, at any step, loaded by Grain.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypedDict

import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8

from copymit.data.captions import CaptionFunction
from copymit.data.examples import Example, ExampleSource
from copymit.data.images import decode_resized
from copymit.data.row_store import RowStore
from copymit.data.schedule import Schedule, draw_generator, example_at
from copymit.interrupts import leave_to_parent

# Decoded images are kept in memory when all of them together are smaller than this.
CACHE_BYTES = 2**30


class Batch(TypedDict, total=False):
    """One step's share of a process, along axis 0.

    Images come as pixels or as cached moments of their latents, captions as token ids
    or as cached embeddings. `pixel_values` stays uint8 until it is on the device: a
    quarter of the transfer.
    """

    pixel_values: Any  # UInt8 "B H W 3"
    moments: Any  # Float32 "B h w m"
    input_ids: Any  # Int32 "B L"
    encoder_hidden_states: Any  # Float32 "B L D"
    example_index: Any  # Int32 "B"


class Encode(Protocol):
    """A tokenizer: texts to token ids."""

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]: ...


@dataclass(frozen=True)
class Images:
    """Random access to the resized images of a run, cached when they fit in memory.

    `indices` maps an example index of the run to an index of the source.
    """

    source: ExampleSource
    indices: Int[np.ndarray, " N"]
    resolution: int
    cache: UInt8[np.ndarray, "N H W 3"] | None

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        return self.pixels(index, self.example(index))

    def example(self, index: int) -> Example:
        """Reads the example, with its file still encoded."""
        return self.source[int(self.indices[index])]

    def pixels(
        self, index: int, example: Example, place: float = 0.5
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Decodes the image of an example that was read already.

        Args:
          place: of the crop, see `resize_and_crop`.
        """
        if self.cache is not None and place == 0.5:
            return self.cache[index]
        name = example.example_id
        return decode_resized(example.image, name, self.resolution, place)


def load_images(
    source: ExampleSource, indices: Int[np.ndarray, " N"], resolution: int
) -> Images:
    """Prepares access to the images, decoding all of them now if they are small."""
    images = Images(source, indices, resolution, None)
    if len(indices) * resolution**2 * 3 > CACHE_BYTES:
        return images
    cache = np.stack([images[i] for i in range(len(indices))])
    return replace(images, cache=cache)


class CachedMoments(NamedTuple):
    """Moments of the latents of every image of a run.

    Attributes:
      rows: image after image, each with its `views`: upright, mirrored.
    """

    rows: RowStore
    views: int


class CachedEmbeddings(NamedTuple):
    """Text embeddings of every caption of a run.

    Attributes:
      positions: the bytes of a row of token ids -> its row in `rows`.
    """

    rows: RowStore
    positions: Mapping[bytes, int]


class Draws:
    """The draws of one process as a Grain source: position -> one training record."""

    def __init__(
        self,
        images: Images,
        duplicated: Bool[np.ndarray, " N"],
        schedule: Schedule,
        caption: CaptionFunction,
        encode: Encode,
        *,
        num_steps: int,
        batch_size: int,
        caption_dropout: float,
        random_flip: bool,
        random_crop: bool = False,
        process_index: int,
        process_count: int,
    ):
        if batch_size % process_count:
            raise ValueError(
                f"train.batch_size={batch_size} does not divide among {process_count} "
                "processes: make it a multiple"
            )
        self.images = images
        self.duplicated = duplicated
        self.schedule = schedule
        self.caption = caption
        self.encode = encode
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.local_batch_size = batch_size // process_count
        self.caption_dropout = caption_dropout
        self.random_flip = random_flip
        self.random_crop = random_crop
        self.process_index = process_index
        # Set once there are caches; until then images are decoded, captions tokenised.
        self.moments: CachedMoments | None = None
        self.embeddings: CachedEmbeddings | None = None

    def __len__(self) -> int:
        return self.num_steps * self.local_batch_size

    def __getitem__(self, position: int) -> Batch:
        step, slot = divmod(int(position), self.local_batch_size)
        slot += self.process_index * self.local_batch_size
        return self.record(step * self.batch_size + slot)

    def record(self, draw: int) -> Batch:
        """Makes the record of a draw: a pure function of (seed, draw)."""
        index = example_at(self.schedule, draw)
        rng = draw_generator(self.schedule.seed, draw, "example")
        # Drawn in this order whatever is switched on, so that two runs that differ in
        # one setting see the same numbers everywhere else.
        flip, drop = rng.random(2)
        example = self.images.example(index)
        caption = self.caption(example, bool(self.duplicated[index]), rng)
        if drop < self.caption_dropout:
            caption = ""
        mirrored = self.random_flip and bool(flip < 0.5)
        return Batch(
            example_index=np.int32(index),
            **self._image(draw, index, example, mirrored),  # type: ignore[typeddict-item]
            **self._text(caption),
        )

    def _image(
        self, draw: int, index: int, example: Example, mirrored: bool
    ) -> dict[str, np.ndarray]:
        if self.moments is not None:
            row = index * self.moments.views + int(mirrored)
            return {"moments": self.moments.rows[row]}
        place = 0.5
        if self.random_crop:
            place = draw_generator(self.schedule.seed, draw, "crop").random()
        pixels = self.images.pixels(index, example, place)
        flipped = pixels[:, ::-1] if mirrored else pixels
        return {"pixel_values": np.ascontiguousarray(flipped)}

    def _text(self, caption: str) -> dict[str, np.ndarray]:
        input_ids = self.encode([caption])[0]
        if self.embeddings is None:
            return {"input_ids": input_ids}
        position = self.embeddings.positions.get(input_ids.astype(np.int32).tobytes())
        if position is None:
            raise ValueError(
                f"caption {caption!r} is not in the cache of embeddings: captions that "
                "are made up while training cannot be cached; set "
                "data.cache_embeddings=False"
            )
        return {"encoder_hidden_states": self.embeddings.rows[position]}


def iterate_batches(
    draws: Draws, first_step: int, *, num_threads: int = 4, num_workers: int = 0
) -> Iterator[Batch]:
    """Iterates over this process's batches from `first_step` on.

    The position in the data is the step itself: Grain reads by random access, so to
    resume is to start reading elsewhere.
    """
    dataset = grain.MapDataset.source(draws)[first_step * draws.local_batch_size :]
    batches = dataset.batch(draws.local_batch_size, drop_remainder=True)
    iterator = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=8)
    )
    if num_workers:
        # Grain reads absl's flags, which only a program has parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        iterator = iterator.mp_prefetch(options, leave_to_parent)
    return iter(iterator)
