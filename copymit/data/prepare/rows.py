"""One example as it is stored: checked, its captions made storable, its facts in a row.

In: an example of any source. Out: its record and the row of the index that tells of it,
or the reason why it cannot be used.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa

from copymit.data.captions_file import is_text
from copymit.data.examples import ExampleSource
from copymit.data.images import ImageError, decode_image
from copymit.data.tf_example import encode_example

INDEX_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("label", pa.int32()),
        ("caption_count", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("url", pa.string()),
        ("similarity", pa.float64()),
        ("aesthetic_score", pa.float64()),
    ]
)
_COLUMNS = {
    "url": ("url", "image_url"),
    "similarity": ("similarity", "clip_similarity"),
    "aesthetic_score": ("aesthetic_score", "aesthetic"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+")


@runtime_checkable
class Described(Protocol):
    """A source that knows more of an example than its captions and its class."""

    def metadata(self, index: int) -> Mapping[str, Any]: ...


class Row(NamedTuple):
    """A good example: what is stored of it, and the row of the index."""

    record: bytes
    facts: dict[str, Any]


def make_row(source: ExampleSource, position: int, min_side: int) -> Row | str:
    """Returns the row of an example, or says why it cannot be used.

    The file of the image is kept as it is, but must decode. Control characters in
    captions become spaces.
    """
    try:
        example = source[position]
        image = decode_image(example.image, example.example_id)
        described = source.metadata(position) if isinstance(source, Described) else {}
    except ImageError as error:
        return error.reason
    except (ValueError, OSError) as error:
        return f"cannot be read ({error})"
    if min(image.size) < min_side:
        return f"is {image.width} x {image.height}, smaller than {min_side} pixels"
    captions = tuple(clean_caption(caption) for caption in example.captions)
    # A set without any captions is kept: styles that need none can train on it.
    if source.caption_counts.any() and not captions:
        return "has no caption"
    if not all(caption.strip() for caption in captions):
        return "has an empty caption"
    if not all(map(is_text, captions)):
        return "has a caption that is no valid text"
    example = example._replace(captions=captions)
    facts = {
        "example_id": example.example_id,
        "label": -1 if example.label is None else example.label,
        "caption_count": len(captions),
        "width": image.width,
        "height": image.height,
        **pick_metadata(described),
    }
    return Row(encode_example(example), facts)


def clean_caption(caption: str) -> str:
    """Replaces control characters, which other programs take for an end, by spaces."""
    return _CONTROL.sub(" ", caption).strip() if _CONTROL.search(caption) else caption


def pick_metadata(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Picks what the index keeps, under the names that LAION's tables have for it."""
    known = {name.lower(): value for name, value in entries.items()}
    found = {
        column: next((known[name] for name in names if name in known), None)
        for column, names in _COLUMNS.items()
    }
    url = found["url"]
    return {
        "url": url if is_text(url) else None,
        "similarity": _number(found["similarity"]),
        "aesthetic_score": _number(found["aesthetic_score"]),
    }


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
