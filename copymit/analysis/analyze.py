"""Which duplicates a data set already has: a source in, a directory of findings out.

OUT/analysis.html       what was found, with pictures
OUT/figures/clusters.png  similarity of images against that of captions, by cluster
OUT/analysis.json       counts, thresholds, and how everything was measured
OUT/clusters.parquet    every example of every cluster
OUT/manifest.csv        example_id, factor: 0 leaves an example out of training
OUT/listing, OUT/embeddings, OUT/captions    finished work, for the next time
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from etils import epath

import copymit
from copymit.analysis.captions import (
    choose_caption_embedder,
    make_caption_features,
    normalise_caption,
)
from copymit.analysis.clusters import (
    Cluster,
    Kind,
    Side,
    count_by_captions,
    count_groups,
    list_groups,
    make_clusters,
    make_manifest,
    tabulate_clusters,
)
from copymit.analysis.listing import list_examples, list_faults, readable_rows
from copymit.analysis.near import MIN_CALIBRATION, Near, find_near
from copymit.analysis.page import Findings, write_page
from copymit.data.examples import ExampleSource
from copymit.data.images import decode_image
from copymit.embedding.embed import embed, embed_texts
from copymit.embedding.headline import choose_embedder
from copymit.embedding.image_set import ImageSet, open_images
from copymit.embedding.registry import (
    WEIGHTS,
    check_embedders,
    check_weights,
    make_embedder,
)
from copymit.embedding.sscd import PROTOCOLS
from copymit.embedding.store import EmbeddingStore, load_embeddings
from copymit.search.nearest import Backend
from copymit.storage import write_whole

logger = logging.getLogger(__name__)

_MANY = 100_000  # images from which the time of one process is worth a word
_CPU_SECS = 0.12  # an image by SSCD at 288 px, its decoding left out


class Settings(NamedTuple):
    """How duplicates are looked for.

    Attributes:
      embedder: that compares images; "" is chosen by their size, as in an evaluation.
      weights: paths or hub ids by name, as `eval.weights`.
      resolution: pixels to which images are resized and cropped to be compared.
      threshold: least cosine of near duplicates; None calibrates it.
      caption_embedder: `caption_ngrams` or a CLIP; "" is the CLIP whose weights are
        given, if any.
      caption_threshold: least cosine of captions that say nearly the same.
      search: as `eval.search`.
      recall_target: of scann and approx.
      on_corrupt: `stop` or `skip`: what an unreadable image does.
      batch_size: images embedded at a time.
      gallery_size: clusters of each kind that are pictured in the page.
    """

    embedder: str = ""
    weights: Mapping[str, str] = {}
    resolution: int = 224
    threshold: float | None = None
    caption_embedder: str = ""
    caption_threshold: float = 0.8
    search: Backend = "auto"
    recall_target: float = 0.99
    on_corrupt: str = "stop"
    batch_size: int = 64
    gallery_size: int = 40


class Analysis(NamedTuple):
    """What was found.

    Attributes:
      counts: what `analysis.json` holds.
      clusters: of images and of captions.
      table: the readable examples that the rows of clusters mean.
      manifest: columns example_id and factor.
    """

    counts: dict[str, Any]
    clusters: list[Cluster]
    table: pd.DataFrame
    manifest: pd.DataFrame


def check_settings(settings: Settings) -> None:
    """Refuses settings that would fail only after a while.

    Raises:
      ValueError: names the setting and what it may be.
    """
    if settings.embedder:
        check_embedders([settings.embedder], "embedder")
        check_weights([settings.embedder], settings.weights)
    choose_caption_embedder(settings.caption_embedder, settings.weights)
    unknown = sorted(set(settings.weights) - set(WEIGHTS))
    if unknown:
        raise ValueError(
            f"weights of {', '.join(unknown)} are not known: use {', '.join(WEIGHTS)}"
        )
    for name in ("threshold", "caption_threshold"):
        value = getattr(settings, name)
        if value is not None and not 0 < value <= 1:
            raise ValueError(
                f"{name}={value} must be more than 0 and at most 1: it is the cosine "
                "from which two are near duplicates"
            )
    if not 0 < settings.recall_target <= 1:
        raise ValueError(f"recall_target={settings.recall_target} must be in (0, 1]")
    choices = {"search": get_args(Backend), "on_corrupt": ("stop", "skip")}
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise ValueError(
                f"{name}={getattr(settings, name)!r} is not known: use "
                f"{' or '.join(known)}"
            )
    for name, least in (("resolution", 1), ("batch_size", 1), ("gallery_size", 0)):
        if getattr(settings, name) < least:
            raise ValueError(
                f"{name}={getattr(settings, name)} must be at least {least}"
            )


def settings_for_few(settings: Settings, num_images: int) -> Settings:
    """Fixes the threshold where there are too few images to calibrate one.

    It is SSCD's published one. By another embedder only equal pixels are duplicates.
    """
    if settings.threshold is not None or num_images >= MIN_CALIBRATION:
        return settings
    found = settings.embedder
    few = f"{num_images} different images are too few to calibrate a threshold"
    if found not in PROTOCOLS:
        logger.warning(
            "%s (it takes %d): only equal files and equal pixels are called duplicates. "
            "pip install copymit[sscd] for near ones, or give --threshold, such as 0.9",
            *(few, MIN_CALIBRATION),
        )
        return settings._replace(threshold=1.0)
    published = PROTOCOLS[found].thresholds[-1]
    logger.info("%s: %s at %g (%s)", few, found, *published)
    return settings._replace(threshold=published[0])


def _with_embedder(settings: Settings, table: pd.DataFrame) -> Settings:
    """Chooses the embedder by the usual size of the images, if none is named."""
    if settings.embedder:
        return settings
    side = int(np.median(table[["width", "height"]].min(axis=1)))
    choice = choose_embedder(min(side, settings.resolution), settings.weights)
    level = logging.WARNING if choice.stand_in else logging.INFO
    logger.log(level, choice.reason)
    return settings._replace(embedder=choice.embedder)


def analyze(
    source: ExampleSource,
    out: epath.PathLike,
    settings: Settings | None = None,
    *,
    title: str = "data set",
    fingerprint: str | None = None,
) -> Analysis:
    """Finds duplicates among images and among captions, and writes what it finds.

    Args:
      out: directory; made if absent.
      fingerprint: changes when the source's files do, see `open_data`; with None they
        are all read again.
    Raises:
      ValueError, FileNotFoundError: for bad settings, images that cannot be read, or
        fewer than two.
    """
    settings = settings or Settings()
    check_settings(settings)
    out = epath.Path(out)
    _say_what_it_takes(len(source), settings)
    everything = list_examples(source, out / "listing", fingerprint)
    table = readable_rows(everything, settings.on_corrupt)
    if len(table) < 2:
        raise ValueError(
            f"{title} has {len(table)} images that can be read: duplicates need at "
            "least two"
        )
    settings = _with_embedder(settings, table)
    settings = settings_for_few(settings, table["pixel_digest"].nunique())
    rows = table.index.to_numpy()  # in the source
    table = table.reset_index(drop=True)
    images, near_images = _compare_images(source, rows, table, out, settings)
    captions, near_captions = _compare_captions(table, out, settings)
    sides: dict[Kind, Side] = {"image": images, "caption": captions}
    clusters = [
        c for kind in sides for c in make_clusters(kind, table, images, captions)
    ]
    counts = {
        "source": title,
        "version": copymit.__version__,
        "num_examples": len(everything),
        "unreadable": list_faults(everything),
        **_count(table, images, captions, clusters),
        "image_clusters_by_captions": count_by_captions(
            clusters, near_captions.threshold
        ),
        "image_threshold": near_images.threshold,
        "image_threshold_is_calibrated": settings.threshold is None,
        "num_captioned": int((table["caption"] != "").sum()),
        "caption_threshold": near_captions.threshold,
        "protocol": {
            "images": f"{images.embeddings.protocol}; first resized and cropped to "
            f"{settings.resolution} px, so that what lies outside of the centre square "
            "does not count",
            "captions": f"{captions.embeddings.protocol}; the first caption of each "
            "image",
            "clusters": "connected components of pairs at or above the threshold; equal "
            "pixels and equal normalised captions always belong together",
        },
        "search": {"image": near_images.facts, "caption": near_captions.facts},
    }
    manifest = make_manifest(everything, clusters)
    _write(out, counts, tabulate_clusters(clusters, table, sides), manifest)
    read = _reader(source, rows)
    write_page(
        out,
        Findings(counts, clusters, table, near_images.nearest),
        read,
        settings.gallery_size,
    )
    return Analysis(counts, clusters, table, manifest)


def _say_what_it_takes(num_examples: int, settings: Settings) -> None:
    if num_examples < MIN_CALIBRATION and settings.threshold is None:
        logger.info(
            "%d images: a threshold is calibrated from %d different ones or more, so the "
            "published one of SSCD is used if it is the embedder, else equal pixels alone",
            *(num_examples, MIN_CALIBRATION),
        )
    if num_examples > _MANY:
        logger.warning(
            "%d images are read and embedded by this one process: about %.0f CPU hours "
            "with SSCD, besides what photos take longer to decode",
            *(num_examples, num_examples * _CPU_SECS / 3600),
        )


def _compare_images(
    source: ExampleSource,
    rows: np.ndarray,
    table: pd.DataFrame,
    out: epath.Path,
    settings: Settings,
) -> tuple[Side, Near]:
    """Embeds every different picture once, by the name of its pixels."""
    number, digests = pd.factorize(table["pixel_digest"])
    first = np.unique(number, return_index=True)[1]
    read = _reader(source, rows[first])
    pictures = ImageSet("distinct images", list(digests), read)
    store = EmbeddingStore(
        out / "embeddings" / f"{settings.embedder}_{settings.resolution}px",
        inputs="images named by their pixels",
    )
    embed(
        make_embedder(settings.embedder, settings.weights),
        open_images("distinct images", pictures, settings.resolution),
        store,
        batch_size=settings.batch_size,
    )
    embeddings = load_embeddings(store)
    near = find_near(
        embeddings,
        settings.threshold,
        backend=settings.search,
        recall_target=settings.recall_target,
        index_dir=out / "index" / store.directory.name,
    )
    return Side(number, embeddings, near.groups), near


def _compare_captions(
    table: pd.DataFrame, out: epath.Path, settings: Settings
) -> tuple[Side, Near]:
    """Compares every different caption once; what has none is like nothing else."""
    number, texts = pd.factorize(table["caption"].map(normalise_caption))
    name = choose_caption_embedder(settings.caption_embedder, settings.weights)
    features = make_caption_features(name, texts, settings.weights)
    store = EmbeddingStore(out / "captions" / name, inputs="captions are what they say")
    by_themselves = dict(zip(texts, texts, strict=True))
    embed_texts(features.compute, features.protocol, by_themselves, store)
    embeddings = load_embeddings(store)
    if not any(texts):
        alone = np.arange(len(embeddings.ids))
        return Side(number, embeddings, alone), Near(alone, np.empty(0), 1.0, {})
    near = find_near(
        embeddings,
        settings.caption_threshold,
        backend=settings.search,
        recall_target=settings.recall_target,
        index_dir=out / "index" / name,
    )
    return Side(number, embeddings, near.groups), near


def _count(
    table: pd.DataFrame, images: Side, captions: Side, clusters: Sequence[Cluster]
) -> dict[str, Any]:
    files = pd.factorize(table["file_digest"])[0]
    return {
        "num_readable": len(table),
        "exact_files": count_groups(list_groups(files)),
        "exact_images": count_groups(list_groups(images.number)),
        "near_images": count_groups([c.rows for c in clusters if c.kind == "image"]),
        "exact_captions": count_groups(
            [g for g in list_groups(captions.number) if table["caption"].iloc[g[0]]]
        ),
        "near_captions": count_groups(
            [c.rows for c in clusters if c.kind == "caption"]
        ),
    }


def _reader(source: ExampleSource, rows: np.ndarray):
    def read(position: int) -> np.ndarray:
        example = source[int(rows[position])]
        return np.asarray(decode_image(example.image, example.example_id))

    return read


def _write(
    out: epath.Path,
    counts: Mapping[str, Any],
    clusters: pd.DataFrame,
    manifest: pd.DataFrame,
) -> None:
    text = json.dumps(counts, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "analysis.json", text.encode())
    write_whole(out / "clusters.parquet", clusters.to_parquet(index=False))
    table = manifest.to_csv(index=False, lineterminator="\n")
    write_whole(out / "manifest.csv", table.encode())
