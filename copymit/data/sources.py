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

from copymit.data.captions_beside import TABLE_NAMES
from copymit.data.captions_file import CaptionedSource
from copymit.data.draw import draw_order
from copymit.data.examples import Example, ExampleSource, Provenance
from copymit.data.folder_listing import is_junk
from copymit.data.folder_source import FolderSource
from copymit.data.images import IMAGE_SUFFIXES
from copymit.data.prepare.huggingface import HuggingfaceSource
from copymit.data.prepare.img2dataset import Img2datasetSource
from copymit.data.record_source import RecordSource, is_begun

FLUENT_EMOJI_FILE = Path(__file__).parent / "embedded" / "fluent_emoji_64.parquet"
_TOKEN_IDS = re.compile(r"\s*\[\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*\]\s*")


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
      captions: a captions file, see `read_captions`; it goes before the captions that
        the set has itself.
    Raises:
      FileNotFoundError: if it is neither a known name nor a folder.
      ValueError: for what must be prepared first; has the command.
      ValueError: if a set that has captions and class names is given others, or if the
        folder or its captions file is not in order.
    """
    if name_or_path != "fluent_emoji" and is_begun(name_or_path):
        if class_names is not None:
            raise ValueError(
                f"the prepared data set {name_or_path!r} has class names of its own: "
                "give none, or prepare it with others"
            )
        source = RecordSource(name_or_path)
        if captions is None:
            return source
        return CaptionedSource(source, Path(captions), captions_format)
    if name_or_path != "fluent_emoji":
        _refuse_unprepared(name_or_path)
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


def open_folder(folder: str | os.PathLike) -> ExampleSource:
    """Opens a folder of any kind to look at its images: for training, see `load_source`.

    Raises:
      FileNotFoundError, ValueError: as the source of its kind.
    """
    if is_begun(folder):
        return RecordSource(folder)
    match kind_of(folder):
        case "img2dataset":
            return Img2datasetSource(folder)
        case "huggingface":
            return HuggingfaceSource(folder)
    return FolderSource(folder)


def kind_of(folder: str | os.PathLike) -> str:
    """Tells who wrote a folder, by the names of its files.

    Returns:
      `img2dataset` (or another program that writes tar files), `huggingface` or `images`.
    """
    if not os.path.isdir(folder):
        return "images"
    names = sorted(name for name in os.listdir(folder) if not is_junk(name))
    shards = [n for n in names if n.endswith(".tar") or re.fullmatch(r"\d{5,}", n)]
    if shards and any(name.endswith("_stats.json") for name in names):
        return "img2dataset"
    has_tables = bool({"state.json", "dataset_dict.json"} & set(names))
    folders = [n for n in names if os.path.isdir(os.path.join(folder, n))]
    for inside in (names, *(os.listdir(os.path.join(folder, n)) for n in folders)):
        if any(name.lower().endswith(IMAGE_SUFFIXES) for name in inside):
            return "images"
        has_tables |= any(
            name.endswith((".arrow", ".parquet")) and name.lower() not in TABLE_NAMES
            for name in inside
        )
    if any(name.endswith(".tar") for name in names):
        return "img2dataset"
    return "huggingface" if has_tables else "images"


def _refuse_unprepared(path: str) -> None:
    """Says which command makes a data set to train on of what cannot be read at random."""
    folder = os.path.dirname(path) if path.endswith(".tar") else path
    kind = "img2dataset" if path.endswith(".tar") else kind_of(path)
    if kind != "images":
        what = {"img2dataset": "tar files or what img2dataset wrote"}.get(
            kind, "tables of Hugging Face"
        )
        raise ValueError(
            f"data.source={path!r} is {what}: prepare it once, and train from there:\n"
            f"  python -m copymit.data.prepare {kind} {folder or '.'} --output=DIR\n"
            "  python train.py ... --config.data.source=DIR"
        )


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
        self.provenance = Provenance("the embedded set")

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


def _draw(
    source: ExampleSource, candidates: Int[np.ndarray, " N"], seed: int
) -> Int[np.ndarray, " N"]:
    """Returns the candidates in the order of the draw."""
    if isinstance(source, EmbeddedSource):
        # Its order is its own, and published numbers are of this draw.
        generator = np.random.Generator(np.random.PCG64(seed))
        return generator.permutation(candidates).astype(np.int64)
    return candidates[
        draw_order(seed, [source.example_ids[int(i)] for i in candidates])
    ]


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
    heldout_share: float = 0.0,
    seed: int,
) -> Selection:
    """Draws training and held-out examples, at random but the same for the same seed.

    Which are drawn depends on their ids, not on the order in which they are listed.

    More training examples contain the fewer, and neither number changes what the other
    draws.

    Args:
      classes: draw from these classes only; all examples if empty.
      num_examples: None or 0 takes all that are not held out.
      heldout_share: of all candidates, in place of `num_heldout`.
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
    num_heldout = num_heldout or round(heldout_share * len(candidates))
    available = len(candidates) - num_heldout
    if available < max(num_examples or 0, 1):
        raise ValueError(
            f"{num_examples or 'at least 1'} training and {num_heldout} held-out "
            f"examples were asked for, but there are only {len(candidates)}"
            + (f" in {', '.join(classes)}" if classes else "")
            + ": ask for fewer or add images"
        )
    order = _draw(source, candidates, seed)
    return Selection(
        train=np.sort(order[: num_examples or available]),
        heldout=np.sort(order[len(order) - num_heldout :]),
    )
