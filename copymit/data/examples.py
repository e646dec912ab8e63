"""The one record type that every data source yields, and random access to it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Example(NamedTuple):
    """One training image with everything that is known about it.

    Attributes:
      example_id: unique within its source: a relative path with `/`, or a key.
      image: the encoded file (JPEG, PNG, WebP, ...) exactly as stored.
      captions: at least one text; the first is the default caption.
      label: index into the source's `class_names`, or None without classes.
    """

    example_id: str
    image: bytes
    captions: tuple[str, ...]
    label: int | None


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

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...
