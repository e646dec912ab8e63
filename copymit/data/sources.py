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

from copymit.data.examples import Example, ExampleSource
from copymit.data.folder_source import FolderSource
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
        self.captions_from = "the embedded set"

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
