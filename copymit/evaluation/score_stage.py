"""The score stage: what the stages before made in, numbers and decisions out.

`scores.json` has those of all generations together, `measured.parquet` a row for each:
generation; grade, copy_of, p, q, nearness and repeats (scores/grades.py); nearest_entropy,
nearest_jpeg_bytes and nearest_total_variation (complexity of its nearest training image);
and where asked for tile_l2, tile_l2_ratio, template_similarity and clip_score; picture
names that of a copy in `copies/`, which has the pairs.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from copymit.embedding.embed import is_blank
from copymit.embedding.image_set import reader_by_id
from copymit.embedding.store import Embeddings, EmbeddingStore, load_embeddings
from copymit.evaluation.artefacts import (
    Artefacts,
    embedder_names,
    image_sets,
    list_texts,
)
from copymit.evaluation.decide import decide_generations
from copymit.evaluation.embed_stage import list_skipped
from copymit.evaluation.evidence import write_copies
from copymit.evaluation.notes import NOT_FINITE, read_notes
from copymit.evaluation.optimised import score_optimisations
from copymit.evaluation.reconstruct import RECONSTRUCTIONS
from copymit.evaluation.search_stage import query_column
from copymit.evaluation.subject import Run, Subject
from copymit.scores.blank import describe_blank, describe_not_finite
from copymit.scores.clip_score import clip_score
from copymit.scores.complexity import Complexity, crop_as_dcr, measure_complexity
from copymit.scores.compute import View, compute_scores, score_parts
from copymit.scores.provenance import Provenance
from copymit.scores.quality import score_quality
from copymit.scores.reconstruction import (
    reconstruction_similarities,
    score_reconstructions,
)
from copymit.scores.similarity import Scores
from copymit.search.exact import Neighbours, SearchResult

logger = logging.getLogger(__name__)


def run_score(subject: Subject, artefacts: Artefacts) -> None:
    """Computes everything and writes it, with all settings beside it."""
    views = [_load_view(subject, artefacts, name) for name in subject.eval.embedders]
    generations = views[0].embeddings["generations"].ids
    provenance = subject.provenance(generations, views[0].embeddings["references"].ids)
    seed = subject.eval.seed
    matched = _matched_complexity(subject, views)
    scores = compute_scores(views, provenance, matched, seed)
    scores |= _quality(subject, artefacts, generations, provenance)
    scores["alarms"] = []
    if subject.run is not None:
        made = _score_notes(subject, subject.run, generations)
        scores["warnings"] += made.pop("warnings")
        scores["alarms"] += made.pop("alarms")
        scores |= made
    decided = decide_generations(subject, artefacts, views, provenance)
    scores |= decided.scores
    ceiling = _reconstructions(subject, artefacts, views, scores["copy_threshold"])
    scores["alarms"] += ceiling.pop("alarms", [])
    scores |= ceiling
    measured = _measure_parts(subject, artefacts, views)
    if "tile_l2" in decided.columns:
        measured["tile_l2"] = decided.columns["tile_l2"]
    background = _template_similarity(subject, artefacts, "background")
    if background is not None:
        measured_background = {"background_template_similarity": background.to_numpy()}
        scores |= score_parts(measured_background, None, seed)
    parts = {str(name): measured[name].to_numpy(np.float64) for name in measured}
    scores |= score_parts(parts, provenance.clusters, seed)
    if subject.eval.clip_score:
        found, values = _clip_scores(subject, artefacts, generations, provenance)
        scores["warnings"] += found.pop("warnings", [])
        scores |= found
        if values is not None:
            measured["clip_score"] = values
    for name, values in matched._asdict().items():
        measured[f"nearest_{name}"] = values
    scores |= _skipped(subject, artefacts)
    scores["alarms"] += _one_prompt(provenance)
    for images, embeddings in views[0].embeddings.items():
        blank = _list_blank(artefacts.store(views[0].embedder, images))
        found = describe_blank(images, blank, len(embeddings.ids))
        scores["alarms"] += found.pop("alarms")
        scores |= found
    for alarm in scores["alarms"]:
        logger.warning(alarm)
    if choice := subject.choice:
        scores["embedder_choice"] = choice.reason
        if choice.stand_in:  # which the log has said at the start
            scores["alarms"].insert(0, choice.reason)
    metrics = subject.metrics()
    if metrics is not None and len(metrics):
        scores["train_loss"] = float(metrics["loss"].tail(5).mean())
    scores["title"] = subject.title
    scores["image_size_px"] = subject.size
    scores["image_preparation"] = _describe_preparation(subject)
    scores["settings"] = dict(subject.settings)
    others = measured.drop(columns="tile_l2", errors="ignore")
    measured = pd.concat([decided.columns, others], axis=1)
    measured.insert(0, "generation", generations)
    copies = _with_matches(subject, views[0], measured)
    pictures = write_copies(subject, artefacts.copies, copies)
    if pictures:
        measured["picture"] = measured["generation"].map(pictures)
    artefacts.write_scores(scores, measured)


def _score_notes(subject: Subject, run: Run, generations: list[str]) -> Scores:
    """Scores what was noted while the generations were made."""
    pictures = [subject.generations_folder / f"{i}.png" for i in generations]
    with ThreadPoolExecutor() as pool:
        notes = list(pool.map(read_notes, pictures))
    bad = [i for i, note in zip(generations, notes, strict=True) if NOT_FINITE in note]
    optimised = score_optimisations(notes, run.config.mitigation.generate)
    return optimised | describe_not_finite(bad, len(generations))


def _load_view(subject: Subject, artefacts: Artefacts, name: str) -> View:
    embeddings = _load_sets(subject, artefacts, name)
    row = {name: i for i, name in enumerate(embeddings["references"].ids)}
    neighbours = {}
    facts = artefacts.read_json("search", artefacts.search_facts(name))
    for queries, found in facts.items():
        table = artefacts.read_matches(name, queries)
        k = int(table["rank"].max()) + 1
        neighbours[queries] = SearchResult(
            Neighbours(
                table["reference"].map(row).to_numpy(np.int32).reshape(-1, k),
                table["similarity"].to_numpy(np.float32).reshape(-1, k),
            ),
            *found,
        )
    return View(name, embeddings["references"].protocol, embeddings, neighbours)


def _reconstructions(
    subject: Subject,
    artefacts: Artefacts,
    views: list[View],
    copy_threshold: float | None,
) -> Scores:
    """Scores by every embedder; by the first, whether copies would be recognised."""
    scores: Scores = {}
    for view in views if subject.reconstructions() else ():
        first = view is views[0]
        similarities = reconstruction_similarities(
            load_embeddings(artefacts.store(view.embedder, RECONSTRUCTIONS)),
            view.embeddings["references"],
        )
        scores |= score_reconstructions(
            similarities,
            subject.eval.seed,
            prefix="" if first else f"{view.embedder}_",
            copy_threshold=copy_threshold if first else None,
        )
        if first:
            scores["num_reconstructions"] = len(similarities)
    return scores


def _matched_complexity(subject: Subject, views: list[View]) -> Complexity:
    """Measures every reference that is somebody's nearest once."""
    nearest = views[0].neighbours["generations"].neighbours.indices[:, 0]
    ids = views[0].embeddings["references"].ids
    unique, inverse = np.unique(nearest, return_inverse=True)
    read = reader_by_id(subject.references, original=True)
    measured = measure_complexity(crop_as_dcr(read(ids[i])) for i in unique)
    return Complexity(*(values[inverse] for values in measured))


def _load_sets(
    subject: Subject, artefacts: Artefacts, embedder: str
) -> dict[str, Embeddings]:
    return {
        images: load_embeddings(artefacts.store(embedder, images))
        for images in image_sets(subject)
    }


def _quality(
    subject: Subject,
    artefacts: Artefacts,
    generations: list[str],
    provenance: Provenance,
) -> Scores:
    """Scores quality by every embedder of quality; the first gives unprefixed keys."""
    scores: Scores = {"warnings": []}
    chosen = subject.eval.quality_embedders or subject.eval.embedders[:1]
    for name in chosen:
        embeddings = _load_sets(subject, artefacts, name)
        prefix = "" if name == chosen[0] else f"{name}_"
        own = embeddings["generations"].ids
        clusters = provenance.clusters_of(generations, own)
        found = score_quality(name, embeddings, subject.eval.seed, prefix, clusters)
        scores["warnings"] += found.pop("warnings")
        scores |= found
        scores[f"{prefix}quality_protocol"] = embeddings["references"].protocol
    return scores


def _measure_parts(
    subject: Subject, artefacts: Artefacts, views: list[View]
) -> pd.DataFrame:
    """Measures copies of parts of each generation, as far as the settings ask for it."""
    measured = pd.DataFrame(index=range(len(views[0].embeddings["generations"].ids)))
    similarity = _template_similarity(subject, artefacts, "generations")
    if similarity is not None:
        measured["template_similarity"] = similarity.to_numpy()
    return measured


def _template_similarity(
    subject: Subject, artefacts: Artefacts, queries: str
) -> pd.Series | None:
    """Is the largest similarity of any tile of each image, in the order of the images."""
    if not subject.eval.tiles:
        return None
    table = artefacts.read_table("search", artefacts.tile_matches(queries))
    if not len(table):
        return None
    column = query_column(queries)
    return table.groupby(column, sort=False)["similarity"].max()


def _with_matches(subject: Subject, view: View, measured: pd.DataFrame) -> pd.DataFrame:
    """Adds similarity and prompt, which other files of the evaluation have."""
    top1 = view.neighbours["generations"].neighbours.similarities[:, 0]
    table = measured.assign(similarity=top1)
    prompts = subject.prompts()
    if prompts is not None:
        texts = prompts.set_index("id")["prompt"]
        table["prompt"] = texts.loc[table["generation"]].to_numpy()
    wanted = [
        "generation",
        "grade",
        "copy_of",
        "p",
        "q",
        "similarity",
        "tile_l2",
        "prompt",
        "repeats",
    ]
    return table[[name for name in wanted if name in table]]


def _clip_scores(
    subject: Subject,
    artefacts: Artefacts,
    generations: list[str],
    provenance: Provenance,
) -> tuple[Scores, np.ndarray | None]:
    """Scores how well generations follow prompts, and training images their captions."""
    name, seed = subject.eval.clip_score, subject.eval.seed
    scores: Scores = {}
    values = None
    for texts, images in list_texts(subject).items():
        key = "clip_score" if texts == "prompts" else "background_clip_score"
        captions = load_embeddings(artefacts.store(name, texts))
        pictures = load_embeddings(artefacts.store(name, images))
        row = {image_id: i for i, image_id in enumerate(captions.ids)}
        kept = [i for i, image_id in enumerate(pictures.ids) if image_id in row]
        text_rows = np.array([row[pictures.ids[i]] for i in kept])
        clusters = None
        if key == "clip_score":
            own = [pictures.ids[i] for i in kept]
            clusters = provenance.clusters_of(generations, own)
        found = clip_score(
            pictures.rows(np.array(kept)), captions.rows(text_rows), clusters, seed
        )
        scores[key], scores[f"{key}_ci95"] = found.mean, found.ci95
        scores[f"{key}_count"] = len(kept)
        if key == "clip_score":
            scores["clip_score_protocol"] = f"{pictures.protocol}; {captions.protocol}"
            if pictures.ids == generations:
                values = found.values
    if "clip_score" not in scores:
        scores["warnings"] = ["no prompts are known, so there is no CLIP score"]
    return scores, values


def _describe_preparation(subject: Subject) -> str:
    """Says what was done to images before any protocol began."""
    at = f"resized (short side, bilinear) and cropped to {subject.size} px"
    if subject.references.read_original is None:
        what = "all images" if subject.run is None else "training images"
        return f"{what} {at} before all else"
    square = subject.generations().read_original is None
    what = "training images" if square else "all images"
    return (
        f"each network's protocol begins with the images as they are; for "
        f"efficientnet_lite0, pixels, tiles and pictures {what} are {at} first"
    )


def _one_prompt(provenance: Provenance) -> list[str]:
    clusters = provenance.clusters
    if clusters is None or len(clusters) == 1 or clusters.max() > 0:
        return []
    return [
        "All generations are of one prompt: nothing tells how those of another would "
        "differ, so their numbers have no intervals."
    ]


def _list_blank(store: EmbeddingStore) -> list[str]:
    """Lists the images of one colour."""
    plan = store.find()
    return [
        image_id
        for _, shard in (store.shards(plan) if plan else ())
        for image_id, digest in zip(shard.ids, shard.digests, strict=True)
        if is_blank(digest)
    ]


def _skipped(subject: Subject, artefacts: Artefacts) -> Scores:
    """Counts and lists the images that could not be read."""
    scores: Scores = {}
    names = embedder_names(subject)
    for images in image_sets(subject):
        skipped = list_skipped([artefacts.store(name, images) for name in names])
        if skipped:
            scores[f"num_skipped_{images}"] = len(skipped)
            scores[f"skipped_{images}"] = [f"{i} {why}" for i, why in skipped.items()]
            logger.warning("%d %s were skipped", len(skipped), images)
    return scores
