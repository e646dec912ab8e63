"""Where examples come from: the embedded set, a folder of images, a prepared data set.

In: a name or a folder, and optionally a captions file. Out: an `ExampleSource`, and the
indices of the examples that are selected from it.
"""

import json
import operator
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from copymit.data.captions_file import is_text, listed, read_captions, refuse
from copymit.data.examples import Example, ExampleSource
from copymit.data.images import ImageError
from copymit.data.record_source import RecordSource, is_begun

FLUENT_EMOJI_FILE = Path(__file__).parent / "embedded" / "fluent_emoji_64.parquet"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
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
_TOKEN_IDS = re.compile(r"\s*\[\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*\]\s*")


class LayoutError(ValueError):
    """A folder is there, but its images lie otherwise than in folder/<class>/*."""


class Selection(NamedTuple):
    """Indices into a source, each sorted, with nothing in common."""

    train: Int[np.ndarray, " N"]
    heldout: Int[np.ndarray, " M"]


def load_source(
    name_or_path: str,
    *,
    captions: str | None = None,
    captions_format: str = "auto",
    class_names: Mapping[str, str] | None = None,
) -> ExampleSource:
    """Opens the embedded set by its name, `fluent_emoji`, or else a folder.

    The folder holds images, or is what `python -m copymit.data.prepare` wrote, in which
    case it may also be a `gs://` one.

    Args:
      captions: a captions file for a folder, see `FolderSource`.
    Raises:
      FileNotFoundError: if it is neither a known name nor a folder.
      ValueError: if a set that has captions and class names is given others, or if the
        folder or its captions file is not in order.
    """
    if name_or_path != "fluent_emoji" and is_begun(name_or_path):
        if captions is not None or class_names is not None:
            raise ValueError(
                f"the prepared data set {name_or_path!r} has captions and class names "
                "of its own: give none, or prepare it with others"
            )
        return RecordSource(name_or_path)
    if name_or_path != "fluent_emoji":
        return FolderSource(
            name_or_path,
            captions,
            captions_format=captions_format,
            class_names=class_names,
        )
    if captions is not None or class_names is not None:
        raise ValueError(
            "fluent_emoji has captions and class names of its own: give none, "
            "or give ./fluent_emoji if you mean a folder of that name"
        )
    return EmbeddedSource()


class EmbeddedSource:
    """The embedded data set `fluent_emoji`: 1,852 pictures of 64 px with texts.

    The first caption is the picture's label ("red apple"), then come its shortcodes and
    tags; the 9 classes are emojibase's groups.

    Args:
      parquet_file: a file that `copymit.data.embedded.build` wrote.
    Raises:
      FileNotFoundError: if the file is absent.
      ValueError: if it was not written by the build script.
    """

    def __init__(self, parquet_file: str | os.PathLike = FLUENT_EMOJI_FILE):
        if not Path(parquet_file).is_file():
            raise FileNotFoundError(
                f"no embedded data at {os.fspath(parquet_file)!r}: install the package "
                "again, or run python -m copymit.data.embedded.build"
            )
        try:
            table = pq.ParquetFile(parquet_file).read()
            names = json.loads((table.schema.metadata or {})[b"class_names"])
            columns = {name: table[name] for name in Example._fields[:3]}
            labels = table["label"].to_numpy().astype(np.int32)
        except (pa.ArrowException, KeyError) as error:
            raise ValueError(
                f"{os.fspath(parquet_file)!r} is not embedded data ({error}): "
                "rebuild it with python -m copymit.data.embedded.build"
            ) from error
        self.class_names: Sequence[str] = tuple(names)
        self.example_ids: Sequence[str] = tuple(columns["example_id"].to_pylist())
        self.labels = labels
        self._images: list[bytes] = columns["image"].to_pylist()
        self._captions = [tuple(texts) for texts in columns["captions"].to_pylist()]
        self.caption_counts = np.array([len(c) for c in self._captions], np.int32)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        return Example(
            self.example_ids[index],
            self._images[index],
            self._captions[index],
            int(self.labels[index]),
        )


class FolderSource:
    """The images of `folder/*`, or of `folder/<class>/*` with the folders as classes.

    Ids are paths relative to the folder, sorted. Hidden files and files without an
    image suffix are left out. Without a captions file the single caption is "An image
    of {class}", or "An image" where there are no classes.

    Args:
      captions_file: one JSON object, image path -> list of captions. Every image needs
        an entry, and every entry an image.
      captions_format: how its paths name the images: "relative" to the folder, "dcr"
        for files made elsewhere, or "auto", see `read_captions`.
      class_names: readable names by folder name; by default that of Imagenette's
        folders if there are no others, else the folders' own names.
    Raises:
      FileNotFoundError: if the folder or the captions file is absent.
      ValueError: if there are no images, images lie both in the folder and in class
        folders or too deep, a link leaves the folder, a folder has no class name, or
        the captions are not in order.
    Source: captions "An image of {class}" and "An image" as in DCR diff_train.py.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        captions_file: str | os.PathLike | None = None,
        *,
        captions_format: str = "auto",
        class_names: Mapping[str, str] | None = None,
    ):
        self.folder = os.fspath(folder)
        images = _list_images(self.folder)
        ids_and_folders = sorted(
            (f"{name}/{image}" if name else image, name)
            for name, names in images.items()
            for image in names
        )
        self.example_ids: Sequence[str] = tuple(i for i, _ in ids_and_folders)
        refuse(
            "file names are not valid text: rename them",
            (i for i in self.example_ids if not is_text(i)),
        )
        folders = [] if "" in images else sorted(images)
        self.class_names: Sequence[str] = _name_classes(folders, class_names)
        label_by_folder = {name: label for label, name in enumerate(folders)}
        self.labels = np.array(
            [label_by_folder.get(name, -1) for _, name in ids_and_folders], np.int32
        )
        if captions_file is None:
            # Label -1, no class, is the last entry.
            defaults = [(f"An image of {name}",) for name in self.class_names]
            defaults.append(("An image",))
            self._captions = [defaults[label] for label in self.labels]
        else:
            self._captions = read_captions(
                Path(captions_file), self.example_ids, captions_format
            )
        self.caption_counts = np.array([len(c) for c in self._captions], np.int32)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = operator.index(index)
        example_id = self.example_ids[index]
        with open(os.path.join(self.folder, example_id), "rb") as file:
            image = file.read(_MAX_FILE_BYTES + 1)
        if len(image) > _MAX_FILE_BYTES:
            raise ImageError(example_id, f"has more than {_MAX_FILE_BYTES} bytes")
        label = int(self.labels[index])
        return Example(
            example_id, image, self._captions[index], label if label >= 0 else None
        )


def parse_token_ids(caption: str) -> list[int] | None:
    """Reads a caption that is the text of a list of token ids; None if it is not.

    Source: DCR stores its random captions so, for example "[49406, 320]".
    """
    if not _TOKEN_IDS.fullmatch(caption):
        return None
    return [int(token_id) for token_id in re.findall("[0-9]+", caption)]


def select_examples(
    source: ExampleSource,
    *,
    classes: Sequence[str] = (),
    num_examples: int | None,
    num_heldout: int = 0,
    seed: int,
) -> Selection:
    """Draws training and held-out examples, at random but the same for the same seed.

    More training examples contain the fewer, and neither number changes what the other
    draws.

    Args:
      classes: draw from these classes only; all examples if empty.
      num_examples: None or 0 takes all that are not held out.
    Raises:
      ValueError: if a class is unknown, a number is negative, or there are too few
        examples.
    """
    if min(num_examples or 0, num_heldout, seed) < 0:
        raise ValueError(
            "num_examples, num_heldout and seed must not be negative, got "
            f"{num_examples}, {num_heldout} and {seed}"
        )
    if isinstance(classes, str):
        raise ValueError(f"classes must be a list of names, got the text {classes!r}")
    unknown = sorted(set(classes) - set(source.class_names))
    if unknown:
        known = ", ".join(source.class_names) or "none, this source has no classes"
        raise ValueError(f"unknown classes {', '.join(unknown)}; known: {known}")
    labels = [source.class_names.index(name) for name in classes]
    candidates = (
        np.flatnonzero(np.isin(source.labels, labels))
        if labels
        else np.arange(len(source))
    )
    available = len(candidates) - num_heldout
    if available < max(num_examples or 0, 1):
        raise ValueError(
            f"{num_examples or 'at least 1'} training and {num_heldout} held-out "
            f"examples were asked for, but there are only {len(candidates)}"
            + (f" in {', '.join(classes)}" if classes else "")
            + ": ask for fewer or add images"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    order = generator.permutation(candidates).astype(np.int64)
    return Selection(
        train=np.sort(order[: num_examples or available]),
        heldout=np.sort(order[len(order) - num_heldout :]),
    )


def _list_images(folder: str) -> dict[str, list[str]]:
    """Maps each class folder to its image names; "" stands for the folder itself."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"no folder {folder!r}, and no embedded data set of that name "
            "(there is one: fluent_emoji)"
        )
    root = os.path.realpath(folder)
    images, subfolders = _scan(folder, root)
    inside = {name: _scan(os.path.join(folder, name), root) for name in subfolders}
    filled = sorted(name for name, (names, _) in inside.items() if names)
    if images and filled:
        raise LayoutError(
            f"{folder!r} has images both in itself ({listed(images)}) and in its "
            f"folders ({listed(filled)}): use either folder/* or folder/<class>/*"
        )
    if images:
        return {"": images}
    too_deep = [f"{name}/{deep}" for name in inside for deep in inside[name][1]]
    if too_deep:
        raise LayoutError(
            f"{folder!r} has folders that lie too deep ({listed(too_deep)}): images "
            "are read from folder/* or folder/<class>/*, so point to the folder that "
            f"holds the classes, such as {os.path.join(folder, subfolders[0])!r}"
        )
    if not filled:
        raise ValueError(
            f"no images in {folder!r} nor in its folders; known suffixes: "
            + " ".join(IMAGE_SUFFIXES)
        )
    empty = sorted(set(inside) - set(filled))
    refuse(f"class folders of {folder!r} hold no images: fill or remove them", empty)
    return {name: inside[name][0] for name in filled}


def _scan(folder: str, root: str) -> tuple[list[str], list[str]]:
    """Lists the names of a folder's images and of its folders, without hidden ones."""
    images, subfolders, leaving, irregular = [], [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
            # Unlike the entry's own methods, os.path survives links in a circle.
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
            is_file = os.path.isfile(entry.path) if is_link else entry.is_file()
            if entry.name.startswith(".") or not (is_image or is_folder):
                continue
            target = os.path.realpath(entry.path) if is_link else root
            if os.path.commonpath([root, target]) != root:
                leaving.append(entry.path)
            elif is_folder:
                subfolders.append(entry.name)
            elif is_file:
                images.append(entry.name)
            else:
                irregular.append(entry.path)
    if leaving:
        raise LayoutError(
            f"{len(leaving)} links leave the folder: copy the files into it: "
            f"{listed(leaving)}"
        )
    refuse("are broken links or no regular files: remove them", irregular)
    return sorted(images), sorted(subfolders)


def _name_classes(
    folders: Sequence[str], class_names: Mapping[str, str] | None
) -> tuple[str, ...]:
    if class_names is None:
        is_imagenette = set(folders) <= set(IMAGENETTE_CLASSES)
        class_names = IMAGENETTE_CLASSES if is_imagenette else {f: f for f in folders}
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
