"""The one record type that every data source yields, and random access to it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Example(NamedTuple):
    """One training image with everything that is known about it.

    Attributes:
      example_id: unique within its source: a relative path with `/`, or a key.
      image: the encoded file (JPEG, PNG, WebP, ...) exactly as stored.
      captions: the first is the default caption; none if none were found.
      label: index into the source's `class_names`, or None without classes.
    """

    example_id: str
    image: bytes
    captions: tuple[str, ...]
    label: int | None


class Provenance(NamedTuple):
    """Where a source's captions are from, and what of its files is not an example.

    Attributes:
      captions_from: in words; "" if it has none.
      caption_fault: why texts that are there could not be read; "" if all could.
      left_out: names of files that are neither images nor their captions.
      hash_captions: of captions that lie outside of what a run's config names; "" if
        none do.
    """

    captions_from: str = ""
    caption_fault: str = ""
    left_out: Sequence[str] = ()
    hash_captions: Callable[[], str] = str


@runtime_checkable
class ExampleSource(Protocol):
    """A fixed, ordered set of examples with random access.

    `example_ids`, `labels` and `caption_counts` are known without reading any image.
    A label of -1 in `labels` stands for an example without a class.
    """

    example_ids: Sequence[str]
    labels: np.ndarray  # (N,) int32
    caption_counts: np.ndarray  # (N,) int32
    class_names: Sequence[str]
    provenance: Provenance

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def describe_captions(source: ExampleSource, indices: np.ndarray | None = None) -> str:
    """Says in one line how many images have captions, how many each, and from where.

    Args:
      indices: of the images that are meant; all by default.
    """
    counts = (
        source.caption_counts if indices is None else source.caption_counts[indices]
    )
    some = counts[counts > 0]
    if not len(some):
        fault = source.provenance.caption_fault
        return f"captions: none of {len(counts)} images" + (
            f" ({fault})" if fault else ""
        )
    least, most = some.min(), some.max()
    each = f"{most}" if least == most else f"{least} to {most}"
    origin = source.provenance.captions_from
    return f"captions: {len(some)} of {len(counts)} images, {each} each" + (
        f", from {origin}" if origin else ""
    )


def describe_left_out(source: ExampleSource) -> str:
    """Counts and names the files that are neither images nor captions; "" if none."""
    left_out = source.provenance.left_out
    kinds = Counter(PurePosixPath(name).suffix or "without suffix" for name in left_out)
    if not kinds:
        return ""
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return (
        f"left out, neither images nor captions: {len(left_out)} files ({counts}), such as "
        f"{left_out[0]!r}"
    )
