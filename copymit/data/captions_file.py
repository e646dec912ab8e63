"""The captions file of a folder: one JSON object, image path -> list of captions.

In: the file and the ids of the images found. Out: the captions of each image, or one
error that lists everything wrong with the file. Its paths are only compared with the
ids; they are never opened.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

CAPTIONS_FORMATS = ("auto", "relative", "dcr")
_NUM_LISTED = 10
_LAYOUT = "it must be one object, image path -> list of captions"


def read_captions(
    path: Path, example_ids: Sequence[str], captions_format: str
) -> list[tuple[str, ...]]:
    """Reads the captions of each image, in the order of `example_ids`.

    Args:
      captions_format: "relative": the paths are the ids. "dcr": the paths may be rooted
        elsewhere, and each belongs to the image that shares its longest suffix. "auto":
        "relative" if any path is an id, else "dcr".
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not such an object, a path occurs twice or does not mean
        exactly one image, an image has no entry or several, or a caption is empty or no
        text.
    """
    if captions_format not in CAPTIONS_FORMATS:
        raise ValueError(
            f"captions_format must be one of {', '.join(CAPTIONS_FORMATS)}, "
            f"got {captions_format!r}"
        )
    entries = _read_json_object(path)
    matches = _match_paths(entries, example_ids, captions_format)
    found: dict[str, list[str]] = {}
    for key, ids in matches.items():
        if len(ids) == 1:
            found.setdefault(ids[0], []).append(key)
    faults = {
        "captions for images that are absent": [k for k in matches if not matches[k]],
        "captions that fit several images": [k for k in matches if matches[k][1:]],
        "images with several entries": [i for i in found if found[i][1:]],
        "images without captions": [
            i for i in example_ids if all(entries[k] == [] for k in found.get(i, []))
        ],
        "entries that are not a list of texts": [
            k for k, v in entries.items() if not _is_list_of_texts(v)
        ],
        "entries with an empty caption": [
            k for k, v in entries.items() if _is_list_of_texts(v) and _has_blank(v)
        ],
    }
    report = [
        f"\n  {len(items)} {what}: {listed(items)}"
        for what, items in faults.items()
        if items
    ]
    if report:
        raise ValueError(
            f"captions file {str(path)!r} has{''.join(report)}\nEvery image needs one "
            "entry and every entry one image: correct the file or the folder"
        )
    return [tuple(entries[found[example_id][0]]) for example_id in example_ids]


def refuse(what: str, items: Iterable[str]) -> None:
    """Raises a `ValueError` that counts and lists the items, if there are any."""
    items = list(items)
    if items:
        raise ValueError(f"{len(items)} {what}: {listed(items)}")


def listed(items: Sequence[str]) -> str:
    """Names the first ten items, each quoted and safe to print."""
    more = ", ..." if len(items) > _NUM_LISTED else ""
    return ", ".join(map(repr, items[:_NUM_LISTED])) + more


def is_text(value: object) -> bool:
    """Tells whether a value is a string that can be written to other files."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # A lone surrogate.
        return False


def _match_paths(
    paths: Iterable[str], example_ids: Sequence[str], captions_format: str
) -> dict[str, list[str]]:
    """Maps each path of a captions file to the images that it may mean."""
    known = set(example_ids)
    exact = captions_format == "auto" and not known.isdisjoint(paths)
    if captions_format == "relative" or exact:
        return {path: [path] if path in known else [] for path in paths}
    by_suffix: dict[str, list[str]] = {}
    for example_id in example_ids:
        for suffix in {example_id, PurePosixPath(example_id).name}:
            by_suffix.setdefault(suffix, []).append(example_id)
    matches = {}
    for path in paths:
        parts = path.split("/")
        # An id has at most two parts, class and file, so no longer suffix can match.
        suffixes = ("/".join(parts[-2:]), parts[-1])
        matches[path] = next((by_suffix[s] for s in suffixes if s in by_suffix), [])
    return matches


def _read_json_object(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {str(path)!r}")
    repeated: list[str] = []

    def keep_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=keep_pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"captions file {str(path)!r} is not JSON ({error}): {_LAYOUT}"
        ) from error
    if not isinstance(entries, dict):
        raise ValueError(
            f"captions file {str(path)!r} holds a {type(entries).__name__}: {_LAYOUT}"
        )
    refuse(f"paths occur more than once in captions file {str(path)!r}", repeated)
    return entries


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _has_blank(captions: list[str]) -> bool:
    return any(not caption.strip() for caption in captions)
