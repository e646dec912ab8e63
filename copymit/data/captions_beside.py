"""Captions found beside images: a table in the folder, or a text file for each image.

In: the names of images and of what lies beside them. Out: the captions of each image and
where they are from, or why none could be read. The same rules hold for folders, for tar
files and for what img2dataset wrote: `x.txt`, `x.caption`, `x.captions`, `x.text`, numbered
ones (`x.0.txt`, `x.1.txt`), and the field `caption` of `x.json` belong to `x.png`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from copymit.data.caption_tables import (
    MissingColumnError,
    choose_caption_columns,
    texts_of,
)
from copymit.data.texts import decode_text, split_lines

TABLE_NAMES = tuple(
    f"{stem}.{suffix}"
    for stem, suffixes in (
        ("metadata", ("jsonl", "csv", "parquet")),
        ("captions", ("json", "jsonl", "csv", "tsv", "txt", "parquet")),
    )
    for suffix in suffixes
)
_ONE_TEXT = ("txt", "caption", "text")
_MANY_TEXTS = "captions"
_FACTS = "json"
_NUMBERED = re.compile(rf"(\d+)\.({'|'.join(_ONE_TEXT)})")
TEXT_SUFFIXES = (*_ONE_TEXT, _MANY_TEXTS, _FACTS)

Beside = dict[str, str]  # suffix -> name of the file that has it


def pair_texts(
    images: Iterable[str], others: Iterable[str]
) -> tuple[dict[str, Beside], list[str]]:
    """Gives each text file to the images that it lies beside.

    Names may have dots: `v1.2.txt` belongs to `v1.2.png`, and `v1.2.0.txt`, too.

    Args:
      images, others: relative paths with `/`.
    Returns:
      The texts of each image that has any, by their suffix in lower case; and the others
      that belong to no image.
    """
    by_stem: dict[str, list[str]] = {}
    for image in images:
        folder, slash, name = image.rpartition("/")
        # Some programs add the suffix to the whole name: x.png.txt.
        for stem in {name, name.rpartition(".")[0] or name}:
            by_stem.setdefault(folder + slash + stem, []).append(image)
    beside: dict[str, Beside] = {}
    rest = []
    for other in others:
        folder, slash, stem = other.rpartition("/")
        suffix = ""
        while "." in stem:
            stem, _, last = stem.rpartition(".")
            suffix = f"{last}.{suffix}".rstrip(".").lower()
            owners = by_stem.get(folder + slash + stem, ())
            if owners and (suffix in TEXT_SUFFIXES or _NUMBERED.fullmatch(suffix)):
                for image in owners:
                    beside.setdefault(image, {})[suffix] = other
                break
        else:
            rest.append(other)
    return beside, rest


def read_beside(
    texts: Beside, read: Callable[[str], bytes], *, by_lines: bool
) -> tuple[str, ...]:
    """Reads the captions of one image, none if its texts are blank.

    Args:
      texts: what `pair_texts` found.
      read: name -> content.
      by_lines: whether each line of a text is a caption, as tools for fine-tuning have it
        (kohya's reads the first alone); webdataset's texts are one caption.
    Raises:
      ValueError: if texts contradict each other, are not UTF-8, or are no JSON object.
    """
    plain = [s for s in (*_ONE_TEXT, _MANY_TEXTS) if s in texts]
    numbered = sorted(
        (int(match[1]), s) for s in texts if (match := _NUMBERED.fullmatch(s))
    )
    if len(plain) + bool(numbered) > 1:
        names = [texts[s] for s in (*plain, *(s for _, s in numbered))]
        raise ValueError(
            f"an image has captions in {', '.join(names)}: keep one of them"
        )
    found: list[str] = []
    for suffix in (*plain, *(s for _, s in numbered)):
        text = decode_text(read(texts[suffix]), repr(texts[suffix]))
        is_list = suffix == _MANY_TEXTS or (by_lines and not numbered)
        found += split_lines(text) if is_list else [text]
    captions = tuple(text.strip() for text in found if text.strip())
    if not captions and _FACTS in texts:
        facts = parse_metadata(read(texts[_FACTS]))
        captions = captions_in(facts, repr(texts[_FACTS]))
    return captions


def captions_in(facts: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Picks the captions out of what is known of an image; none if none are there.

    Raises:
      ValueError: if several fields may be meant, or one holds no text.
    """
    try:
        fields = choose_caption_columns(list(facts), "", where)
    except MissingColumnError:
        return ()
    texts = texts_of([facts[field] for field in fields if facts[field] is not None])
    if texts is None:
        raise ValueError(f"{where}: {', '.join(fields)} holds no text")
    return tuple(text.strip() for text in texts if text.strip())


def parse_metadata(data: bytes) -> dict[str, Any]:
    """Reads the `.json` that lies beside an image.

    Raises:
      ValueError: if it is not one JSON object.
    """
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is damaged: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"its .json holds a {type(entries).__name__}, not an object")
    return entries


def describe_suffixes(beside: Mapping[str, Beside]) -> str:
    """Says of which kinds the texts beside images are, such as ".txt beside the images"."""
    found = {
        _NUMBERED.sub(r"0.\2 ...", suffix)
        for texts in beside.values()
        for suffix in texts
        if suffix != _FACTS or len(texts) == 1
    }
    return f"{', '.join(f'.{s}' for s in sorted(found))} beside the images"


def tables_among(names: Sequence[str]) -> list[str]:
    """Lists the names, in any folder, that stand for a table of captions."""
    return [n for n in names if n.rpartition("/")[2].lower() in TABLE_NAMES]
