"""What lies in a folder of images: images, texts, and what is neither.

A file is an image by its content; its suffix only saves a look into it. Links that leave
the folder are refused, and what systems leave everywhere (hidden files, `__MACOSX`,
`Thumbs.db`) is passed over.
"""

import functools
import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from copymit.data.captions_file import listed, refuse
from copymit.data.images import HEAD_BYTES, IMAGE_SUFFIXES, is_image_file

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test")
_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")


class LayoutError(ValueError):
    """A folder is there, but its images lie otherwise than in folder/<class>/*."""


class SplitError(ValueError):
    """A data set has several splits, and none was chosen, or one that is absent."""

    def __init__(self, name: str, known: Sequence[str], asked: str | None):
        what = f"no split {asked!r} in" if asked else "several splits in"
        super().__init__(
            f"{what} {name!r}; there are: {listed(known) or 'none'}. Train and test are "
            "not merged: choose one with --split (of python -m copymit.data.prepare), or "
            "give its folder"
        )


class Listing(NamedTuple):
    """The files of a folder and of its class folders.

    Attributes:
      classes: names of the class folders that hold images, sorted; none if the images
        lie in the folder itself.
      images, others: relative paths, sorted.
    """

    classes: Sequence[str]
    images: Sequence[str]
    others: Sequence[str]


def is_junk(name: str) -> bool:
    """Tells whether a system left this file or folder, unasked."""
    return name.startswith(".") or name.lower() in _JUNK


def list_folder(folder: str) -> Listing:
    """Lists `folder/*` or `folder/<class>/*`.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if there are no images, they lie both in the folder and in class folders
        or too deep, or a link leaves the folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"no folder {folder!r}, and no embedded data set of that name "
            "(there is one: fluent_emoji)"
        )
    root = os.path.realpath(folder)
    top = _scan(folder, root)
    inside = {name: _scan(os.path.join(folder, name), root) for name in top.folders}
    filled = [name for name in sorted(inside) if inside[name].images]
    if top.images and filled:
        raise LayoutError(
            f"{folder!r} has images both in itself ({listed(top.images)}) and in its "
            f"folders ({listed(filled)}): use either folder/* or folder/<class>/*"
        )
    too_deep = [f"{name}/{deep}" for name in inside for deep in inside[name].folders]
    if too_deep and not top.images:
        raise LayoutError(
            f"{folder!r} has folders that lie too deep ({listed(too_deep)}): images "
            "are read from folder/* or folder/<class>/*, so point to the folder that "
            f"holds the classes, such as {os.path.join(folder, top.folders[0])!r}"
        )
    if not top.images and not filled:
        raise ValueError(
            f"no images in {folder!r} nor in its folders"
            + (f"; it holds {listed(top.others)}" if top.others else "")
            + f"; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    empty = sorted(set(inside) - set(filled)) if filled else []
    refuse(f"class folders of {folder!r} hold no images: fill or remove them", empty)
    below = [(name, inside[name]) for name in filled]
    return Listing(
        filled,
        sorted(
            [*top.images, *(f"{n}/{x}" for n, found in below for x in found.images)]
        ),
        sorted(
            [*top.others, *(f"{n}/{x}" for n, found in below for x in found.others)]
        ),
    )


def missing_numbers(names: Sequence[str]) -> list[str]:
    """Lists the numbers that are missing between the names `00000.tar`, `00001.tar`, ..."""
    stems = [name.partition(".")[0] for name in names]
    matches = [re.fullmatch(r"(.*?)(\d+)", stem) for stem in stems]
    if (
        len({match and (match[1], len(match[2])) for match in matches}) != 1
        or not names
    ):
        return []
    numbers = {int(match[2]) for match in matches if match}
    width = max((len(match[2]) for match in matches if match), default=0)
    return [
        f"{i:0{width}d}" for i in range(max(numbers, default=0)) if i not in numbers
    ]


def warn_of_missing(names: Sequence[str], where: str) -> None:
    """Tells which files of a numbered set are missing, as a download leaves it."""
    if missing := missing_numbers(names):
        logger.warning(
            "%s: %d of the numbered files are missing: %s",
            *(where, len(missing), listed(missing)),
        )


def open_split(folder: str, split: str | None) -> tuple[str, str]:
    """Finds the folder of one split, where the folders are splits and no classes.

    Returns:
      The folder to list, and the name of the split, "" if the folders are none.
    Raises:
      ValueError: if there are several and none was chosen, or an unknown one.
    """
    if not os.path.isdir(folder):
        return folder, ""
    with os.scandir(folder) as entries:
        names = sorted(
            e.name for e in entries if os.path.isdir(e.path) and not is_junk(e.name)
        )
    if not names or not all(name.lower() in SPLIT_NAMES for name in names):
        return folder, ""
    chosen = names[0] if split is None and len(names) == 1 else split
    if chosen not in names:
        raise SplitError(folder, names, split)
    return os.path.join(folder, chosen), chosen


class _Found(NamedTuple):
    images: list[str]
    folders: list[str]
    others: list[str]


def _scan(folder: str, root: str) -> _Found:
    """Lists the names of a folder's images, of its folders, and of other files."""
    found, leaving, irregular = _Found([], [], []), [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            # Unlike the entry's own methods, os.path survives links in a circle.
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            is_file = os.path.isfile(entry.path) if is_link else entry.is_file()
            target = os.path.realpath(entry.path) if is_link else root
            if os.path.commonpath([root, target]) != root:
                leaving.append(entry.path)
            elif is_folder:
                found.folders.append(entry.name)
            elif is_file:
                head = functools.partial(read_head, entry.path)
                is_picture = is_image_file(entry.name, head)
                (found.images if is_picture else found.others).append(entry.name)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                irregular.append(entry.path)
            else:
                found.others.append(entry.name)
    if leaving:
        raise LayoutError(
            f"{len(leaving)} links leave the folder: copy the files into it: "
            f"{listed(leaving)}"
        )
    refuse("are broken links or no regular files: remove them", irregular)
    return _Found(*map(sorted, found))


def read_head(path: str | os.PathLike) -> bytes:
    """Reads of a file what `is_image_file` looks at."""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)
