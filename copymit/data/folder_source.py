"""A folder of images as a source: what lies in it, with the captions that lie beside.

In: a folder, and optionally a captions file. Out: an `ExampleSource` that also says where
its captions are from and which files were left out.
"""

import functools
import hashlib
import json
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np

from copymit.data.caption_tables import CaptionTable, read_caption_table
from copymit.data.captions_beside import (
    describe_suffixes,
    pair_texts,
    read_beside,
    tables_among,
)
from copymit.data.captions_file import (
    fit_captions,
    is_text,
    listed,
    match_split,
    refuse,
)
from copymit.data.examples import Example, Provenance
from copymit.data.folder_listing import Listing, SplitError, list_folder, open_split
from copymit.data.images import ImageError

IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
_MAX_FILE_BYTES = 2**28
_MAX_TEXT_BYTES = 2**20
_KOHYA_FOLDER = re.compile(r"[1-9]\d*_(\S.*)")


class FolderSource:
    """The images of `folder/*`, or of `folder/<class>/*` with the folders as classes.

    Ids are paths relative to the folder, sorted. Captions are those of the captions file,
    or else of what lies beside the images: a table (`metadata.jsonl`, ...) or a text for
    each (`x.txt`, ...). Without either there are none: no caption is made up.

    Args:
      captions_file: see `read_captions`. Every image needs an entry, and every entry an
        image.
      captions_format: how its paths name the images: "relative" to the folder, "dcr"
        for files made elsewhere, or "auto", see `read_captions`.
      caption_column: of a table, see `read_caption_table`.
      class_names: readable names by folder name; by default that of Imagenette's
        folders if there are no others, what follows the number in kohya's ("10_sks dog"),
        else the folders' own names.
      split: which of the folders `train`, `test`, ... to read, or which images of a table
        with a column `split`.
    Attributes:
      caption_files: paths of the files that captions were read from.
    Raises:
      FileNotFoundError: if the folder or the captions file is absent.
      ValueError: if there are no images, images lie both in the folder and in class
        folders or too deep, a link leaves the folder, a folder has no class name, there
        are several splits and none was chosen, or the captions file is not in order.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        captions_file: str | os.PathLike | None = None,
        *,
        captions_format: str = "auto",
        caption_column: str = "",
        class_names: Mapping[str, str] | None = None,
        split: str | None = None,
    ):
        top = os.fspath(folder)
        self.folder, folder_split = open_split(top, split)
        listing = list_folder(self.folder)
        refuse(
            "file names are not valid text: rename them",
            (name for name in listing.images if not is_text(name)),
        )
        found = _find_captions(
            _Place(top, self.folder, listing, folder_split),
            Path(captions_file) if captions_file else None,
            captions_format,
            caption_column,
            None if folder_split else split,
        )
        self.example_ids: Sequence[str] = tuple(found.ids)
        self._captions = found.captions
        self.provenance = Provenance(
            found.origin, found.fault, found.left_out, self._hash_captions
        )
        self.caption_files: Sequence[str] = found.files
        self.class_names: Sequence[str] = _name_classes(listing.classes, class_names)
        label_by_folder = {name: label for label, name in enumerate(listing.classes)}
        self.labels = np.array(
            [label_by_folder.get(i.rpartition("/")[0], -1) for i in found.ids], np.int32
        )
        self.caption_counts = np.array([len(c) for c in found.captions], np.int32)

    def __len__(self) -> int:
        return len(self.example_ids)

    def _hash_captions(self) -> str:
        return hashlib.sha256(json.dumps(self._captions).encode()).hexdigest()

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        example_id = self.example_ids[index]
        image = _read(os.path.join(self.folder, example_id), _MAX_FILE_BYTES)
        if image is None:
            raise ImageError(example_id, f"has more than {_MAX_FILE_BYTES} bytes")
        label = int(self.labels[index])
        return Example(
            example_id, image, self._captions[index], label if label >= 0 else None
        )


class _Place(NamedTuple):
    """Where images lie: the folder that was given, the one of the split, what is in it."""

    top: str
    folder: str
    listing: Listing
    split: str


class _Found(NamedTuple):
    ids: Sequence[str]
    captions: list[tuple[str, ...]]
    origin: str
    fault: str
    left_out: Sequence[str]
    files: Sequence[str]


def _find_captions(
    place: _Place,
    captions_file: Path | None,
    captions_format: str,
    column: str,
    split: str | None,
) -> _Found:
    """Reads the captions file, or else what lies beside the images."""
    ids = place.listing.images
    beside, rest = pair_texts(ids, place.listing.others)
    tables = [Path(place.folder, name) for name in tables_among(rest)]
    rest = [name for name in rest if not tables_among([name])]
    if place.split and not tables:
        tables = [
            Path(place.top, n) for n in tables_among(sorted(os.listdir(place.top)))
        ]
    if captions_file is not None:
        table = read_caption_table(captions_file, column)
        table, ids = _choose_rows(table, ids, captions_format, split, captions_file)
        captions = fit_captions(table, ids, captions_format, str(captions_file))
        return _Found(ids, captions, captions_file.name, "", rest, [str(captions_file)])
    try:
        if len(tables) > 1 or (
            tables and any(set(s) != {"json"} for s in beside.values())
        ):
            raise ValueError(
                f"{place.folder!r} has captions in {listed([t.name for t in tables])} and "
                f"in {'others' if len(tables) > 1 else describe_suffixes(beside)}: say "
                "which with data.captions, or --captions, or remove the others"
            )
        if tables:
            table = _below(read_caption_table(tables[0], column), place, tables[0])
            table, ids = _choose_rows(table, ids, "auto", split, tables[0])
            captions = fit_captions(table, ids, "auto", str(tables[0]))
            return _Found(ids, captions, tables[0].name, "", rest, [str(tables[0])])
        if split is not None:
            raise SplitError(place.top, [], split)
        read = functools.partial(_read_text, place.folder)
        captions = [
            read_beside(beside[i], read, by_lines=True) if i in beside else ()
            for i in ids
        ]
        origin = describe_suffixes(beside) if any(captions) else ""
        names = [name for texts in beside.values() for name in texts.values()]
        files = [os.path.join(place.folder, name) for name in names]
        return _Found(ids, captions, origin, "", rest, files)
    except SplitError:
        raise
    except ValueError as error:
        # Whoever needs the captions stops here; an audit can do without.
        return _Found(ids, [()] * len(ids), "", str(error), rest, ())


def _choose_rows(
    table: CaptionTable,
    ids: Sequence[str],
    captions_format: str,
    split: str | None,
    path,
) -> tuple[CaptionTable, Sequence[str]]:
    """Takes one split of a table that has several."""
    known = sorted(set(table.splits.values()))
    if split is None and len(known) < 2:
        return table, ids
    if split not in known:
        raise SplitError(str(path), known, split)
    return match_split(table, ids, captions_format, split)


def _below(table: CaptionTable, place: _Place, path: Path) -> CaptionTable:
    """Keeps of a table above the splits what is of this one; paths start in its folder."""
    prefix = f"{place.split}/"
    if str(path.parent) != place.top or not place.split:
        return table
    return CaptionTable(
        {
            key.removeprefix(prefix): value
            for key, value in table.entries.items()
            if key.startswith(prefix)
        },
        {},
    )


def _read_text(folder: str, name: str) -> bytes:
    data = _read(os.path.join(folder, name), _MAX_TEXT_BYTES)
    if data is None:
        raise ValueError(f"{name!r} has more than {_MAX_TEXT_BYTES} bytes of text")
    return data


def _read(path: str, most: int) -> bytes | None:
    """Reads a file, or nothing if it is larger than that."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    return data if len(data) <= most else None


def _name_classes(
    folders: Sequence[str], class_names: Mapping[str, str] | None
) -> tuple[str, ...]:
    if class_names is None:
        is_imagenette = set(folders) <= set(IMAGENETTE_CLASSES)
        class_names = IMAGENETTE_CLASSES if is_imagenette else _own_names(folders)
    refuse(
        "folders have no entry in class_names: add them",
        (folder for folder in folders if folder not in class_names),
    )
    names = tuple(class_names[folder] for folder in folders)
    refuse(
        "class names are empty, no text, or given to two folders",
        (
            f"{folder}: {name!r}"
            for folder, name in zip(folders, names, strict=True)
            if not isinstance(name, str) or not name.strip() or names.count(name) > 1
        ),
    )
    return names


def _own_names(folders: Sequence[str]) -> dict[str, str]:
    """Names classes by their folders, without the repeats that kohya's tool has there."""
    matches = [_KOHYA_FOLDER.fullmatch(folder) for folder in folders]
    names = [match[1] for match in matches if match]
    if len(set(names)) == len(folders):
        return dict(zip(folders, names, strict=True))
    return {folder: folder for folder in folders}
