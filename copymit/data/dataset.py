"""The data of a run, as its config describes them: which images, how often, held out.

Everything that can be wrong with the data is found here, before any model is built.
"""

import io
import logging
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from copymit.data.caption_views import view_captions
from copymit.data.captions import (
    CaptionFunction,
    check_captioned,
    check_captions,
    make_caption_function,
)
from copymit.data.captions_file import CaptionedSource, listed
from copymit.data.checking import check_images
from copymit.data.duplication import (
    Duplication,
    assign_duplication,
    duplication_table,
)
from copymit.data.examples import ExampleSource, describe_captions, describe_left_out
from copymit.data.manifest import (
    Manifest,
    VariedSource,
    listed_duplication,
    match_manifest,
    read_manifest,
    select_listed,
)
from copymit.data.schedule import check_duplication_mode
from copymit.data.sources import EmbeddedSource, load_source, select_examples
from copymit.data.tokenizer import Tokenizer
from copymit.storage import absolute, write_whole

logger = logging.getLogger(__name__)

_DUPLICATION, _EXAMPLES = "duplication.parquet", "examples.parquet"
_CAPTIONS_SHA256 = "captions_sha256"
_CAPTIONS_LOOKED_AT = 1000  # images: a second, where each must be read for its captions
_CHECKED = "checked_images"  # beside the directories of runs, which share it


class Dataset(NamedTuple):
    """The images of one run.

    Attributes:
      source: all examples, also those that the run does not use.
      indices: the training images, as indices into the source, in order.
      heldout: images of the same classes that are never trained on.
      duplication: one weight per training image.
      skipped: (example id, reason) of the corrupt images that were left out.
    """

    source: ExampleSource
    indices: Int[np.ndarray, " N"]
    heldout: Int[np.ndarray, " M"]
    duplication: Duplication
    skipped: list[tuple[str, str]]

    @property
    def example_ids(self) -> list[str]:
        """Ids of the training images."""
        return [self.source.example_ids[i] for i in self.indices]

    @property
    def heldout_ids(self) -> list[str]:
        """Ids of the held-out images."""
        return [self.source.example_ids[i] for i in self.heldout]


def load_dataset(
    config: ConfigDict, seed: int, workdir: epath.PathLike | None = None
) -> Dataset:
    """Loads, selects, checks and duplicates what `config` (the `data` section) names.

    Args:
      workdir: of the run; beside it is noted which images were checked, so that another
        start decodes none of them. None decodes all.
    Raises:
      FileNotFoundError, ValueError: for a missing folder, a captions file or manifest
        that does not fit, unreadable images, classes that do not exist, or
        contradicting settings.
    """
    check_duplication_mode(config.duplication_mode, config.sampling)
    source = load_source(config.source, captions=config.captions or None)
    files = source.source if isinstance(source, CaptionedSource) else source
    manifest = _open_manifest(config, source) if config.manifest else None
    heldout_share = _heldout_share(config)
    if manifest is None:
        selection = select_examples(
            source,
            classes=config.classes,
            num_examples=config.num_examples or None,
            num_heldout=config.num_heldout,
            heldout_share=heldout_share,
            seed=seed,
        )
    else:
        selection = select_listed(manifest, config.num_heldout, seed, heldout_share)
        if manifest.varied.any():
            source = VariedSource(source, manifest.varied)
    if "num_captions" in config:  # runs of an older copymit do not say
        source = view_captions(source, config.num_captions, config.caption_clusters)
    chosen = np.concatenate([selection.train, selection.heldout])
    _say_what_was_found(config, source, chosen)
    check_captioned(config.caption_style, source, chosen)
    beside = None if workdir is None else absolute(workdir).parent / _CHECKED
    kept, skipped = check_images(files, chosen, config.on_corrupt, remember_in=beside)
    train = selection.train[np.isin(selection.train, kept)]
    if not len(train):
        raise ValueError(f"data.source={config.source!r}: no readable training image")
    heldout = selection.heldout[np.isin(selection.heldout, kept)]
    if manifest is not None:
        duplication = listed_duplication(manifest, train)
        return Dataset(source, train, heldout, duplication, skipped)
    duplication = assign_duplication(
        [source.example_ids[int(i)] for i in train],
        config.duplication,
        config.duplicated_fraction,
        config.duplication_factor,
        seed,
        by_position=isinstance(files, EmbeddedSource),
    )
    dataset = Dataset(source, train, heldout, duplication, skipped)
    check_captions(
        config.duplication,
        dataset.example_ids,
        duplication.duplicated,
        source.caption_counts[train],
    )
    return dataset


def _heldout_share(config: ConfigDict) -> float:
    share = config.get("heldout_share", 0.0)  # runs of an older copymit do not say
    if not 0 <= share < 1:
        raise ValueError(f"data.heldout_share={share} must be in [0, 1)")
    if share and config.num_heldout:
        raise ValueError(
            f"data.heldout_share={share} and data.num_heldout={config.num_heldout} say "
            "the same in two ways: set one of them to 0"
        )
    return share


def claim_examples(
    workdir: epath.Path, dataset: Dataset, *, writer: bool = True
) -> None:
    """Writes which examples a run trains on, or checks that they are still the same.

    `duplication.parquet` has those that it trains on, `examples.parquet` the names of
    all there are.

    Args:
      writer: whether this process writes; of several hosts only the first does.
    Raises:
      ValueError: if the data changed; names what was added and what is gone.
    """
    if (workdir / _DUPLICATION).exists():
        read_duplication(workdir, dataset)
    elif writer:
        counts = dataset.source.caption_counts[dataset.indices]
        table = duplication_table(dataset.example_ids, dataset.duplication, counts)
        table = table.replace_schema_metadata({_CAPTIONS_SHA256: _hash_of(dataset)})
        names = pa.table({"example_id": list(dataset.source.example_ids)})
        for name, rows in ((_EXAMPLES, names), (_DUPLICATION, table)):
            file = io.BytesIO()
            pq.write_table(rows, file)
            write_whole(workdir / name, file.getvalue())


def read_duplication(workdir: epath.Path, dataset: Dataset) -> pa.Table:
    """Reads the table that `claim_examples` wrote.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if the data are not those of the table; names what differs.
    """
    path = workdir / _DUPLICATION
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: {workdir} holds no training run that began. Train into "
            "it first (train.py)"
        )
    with path.open("rb") as file:
        table = pq.read_table(file)
    same = (
        table["example_id"].to_pylist() == dataset.example_ids
        and table["weight"].to_pylist() == dataset.duplication.weights.tolist()
    )
    if not same:
        raise ValueError(_describe_change(workdir, table, dataset))
    before = (table.schema.metadata or {}).get(_CAPTIONS_SHA256.encode(), b"").decode()
    if before and before != _hash_of(dataset):
        raise ValueError(
            f"the captions beside the images are no longer those that {workdir} was "
            "trained on: put them back as they were, or train into another --workdir"
        )
    return table


def _hash_of(dataset: Dataset) -> str:
    """Hashes captions that lie beside images; "" for those that a config names."""
    return dataset.source.provenance.hash_captions()


def _describe_change(workdir: epath.Path, table: pa.Table, dataset: Dataset) -> str:
    there, what = set(dataset.source.example_ids), "training images"
    before = set(table["example_id"].to_pylist())
    now = set(dataset.example_ids)
    if (workdir / _EXAMPLES).exists():
        with (workdir / _EXAMPLES).open("rb") as file:
            names = set(pq.read_table(file)["example_id"].to_pylist())
        if names != there:
            before, now, what = names, there, "images"
    changes = {"added": sorted(now - before), "gone": sorted(before - now)}
    found = [
        f"{len(names)} {what} {how} ({listed(names)})"
        for how, names in changes.items()
        if names
    ] or ["other images are duplicated"]
    return (
        f"the data are no longer those that {workdir} was trained on: "
        f"{', '.join(found)}. Put them back as they were, or train into another --workdir"
    )


def _say_what_was_found(
    config: ConfigDict, source: ExampleSource, chosen: np.ndarray
) -> None:
    use = "" if config.caption_style == "instance" else "; not used, "
    style = use and f"data.caption_style={config.caption_style!r}"
    logger.info("%s%s%s", describe_captions(source, chosen), use, style)
    if left_out := describe_left_out(source):
        logger.warning("%s", left_out)


def _open_manifest(config: ConfigDict, source: ExampleSource) -> Manifest:
    """Reads the manifest in the order of the source, or says what contradicts it."""
    contradictions = {
        "duplication": (config.duplication == "none", "'none'"),
        "num_examples": (not config.num_examples, "0"),
        "classes": (not config.classes, "()"),
    }
    for name, (agrees, way_out) in contradictions.items():
        if not agrees:
            raise ValueError(
                f"data.{name}={config[name]!r} contradicts data.manifest="
                f"{config.manifest!r}, which says itself which images are trained on "
                f"and how often: set data.{name}={way_out}, or data.manifest=''"
            )
    manifest = match_manifest(read_manifest(config.manifest), source, config.manifest)
    if manifest.varied.any() and config.caption_style != "instance":
        raise ValueError(
            f"data.manifest={config.manifest!r} varies captions ('any'), but "
            f"data.caption_style={config.caption_style!r} gives an image only one: use "
            "'instance', or 'first' in the manifest"
        )
    return manifest


def make_captions(
    config: ConfigDict, source: ExampleSource, tokenizer: Tokenizer, seed: int
) -> CaptionFunction:
    """Returns the caption function that `config` (the `data` section) asks for."""
    return make_caption_function(
        config.caption_style,
        config.duplication,
        source.class_names,
        decode=tokenizer.decode,
        seed=seed,
    )


def describe_truncated(
    config: ConfigDict, dataset: Dataset, tokenizer: Tokenizer
) -> str:
    """Counts captions that lose their end, among those of the first images; "" if none."""
    if config.caption_style != "instance":
        return ""
    looked_at = dataset.indices[:_CAPTIONS_LOOKED_AT]
    examples = [dataset.source[int(i)] for i in looked_at]
    captions = [(e.example_id, text) for e in examples for text in e.captions]
    cut = [example_id for example_id, text in captions if tokenizer.truncated(text)]
    if not cut:
        return ""
    return (
        f"{len(cut)} of the {len(captions)} captions of the first {len(examples)} images "
        f"have more than {tokenizer.max_length} tokens and lose their end, such as that of "
        f"{cut[0]!r}"
    )
