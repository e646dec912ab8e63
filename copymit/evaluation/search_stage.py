"""The search stage: features in, tables of nearest references out."""

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from etils import epath

from copymit.embedding.store import Embeddings, load_embeddings, unit_rows
from copymit.embedding.tiles import list_tiles
from copymit.evaluation.artefacts import QUERIES, Artefacts, image_sets
from copymit.evaluation.embed_stage import background_rows
from copymit.evaluation.subject import Subject
from copymit.scores.compute import neighbour_table
from copymit.search.nearest import SearchResult, search
from copymit.search.vectors import Vectors


def run_search(subject: Subject, artefacts: Artefacts) -> None:
    """Searches the references for every set, by every embedder of similarity."""
    for name in subject.eval.embedders:
        facts = {}
        references = load_embeddings(artefacts.store(name, "references"))
        for queries in QUERIES:
            found = _search_set(subject, artefacts, name, queries, references)
            if found is not None:
                ids, result = found
                table = neighbour_table(
                    result, ids, references.ids, query_column(queries)
                )
                path = artefacts.matches(name, queries)
                artefacts.write_table("search", path, table)
                facts[queries] = result[1:]
        artefacts.write_json("search", artefacts.search_facts(name), facts)
    for queries in QUERIES[:2] if subject.eval.tiles else ():
        table = _search_tiles(subject, artefacts, queries)
        artefacts.write_table("search", artefacts.tile_matches(queries), table)


def query_column(queries: str) -> str:
    """Is the name of the first column of a table of neighbours."""
    return "generation" if queries == "generations" else "query"


def unit_vectors(embeddings: Embeddings, name: str) -> Vectors:
    """Sees features as unit vectors that are read shard by shard."""
    shards = embeddings.shards
    return Vectors(
        name,
        shards[0].shape[1],
        tuple(len(shard) for shard in shards),
        tuple(functools.partial(_unit_shard, shards, i) for i in range(len(shards))),
    )


def _unit_shard(shards: Sequence[np.ndarray], index: int) -> np.ndarray:
    return unit_rows(shards[index])


def _search_set(
    subject: Subject,
    artefacts: Artefacts,
    name: str,
    queries: str,
    references: Embeddings,
) -> tuple[list[str], SearchResult] | None:
    """Searches for one set; None if it is not there or has nothing to be near to."""
    settings = subject.eval
    R = len(references.ids)
    exclude = None
    if queries == "background":
        rows = background_of(subject, references)
        k = min(settings.num_neighbors, R - 1)
        ids = [references.ids[i] for i in rows]
        exclude = rows
        vectors = references if len(rows) == R else references.rows(rows)
    else:
        if queries not in image_sets(subject):
            return None
        vectors = load_embeddings(artefacts.store(name, queries))
        ids, k = vectors.ids, min(settings.num_neighbors, R)
    if k < 1:
        return None
    result = search(
        unit_vectors(vectors, queries)
        if isinstance(vectors, Embeddings)
        else unit_rows(vectors),
        unit_vectors(references, "references"),
        k,
        backend=settings.search,
        exclude=exclude,
        recall_target=settings.recall_target,
        seed=settings.seed,
        index_dir=_index(artefacts, name),
    )
    return ids, result


def _index(artefacts: Artefacts, name: str) -> epath.Path | None:
    """Is where a searcher is kept; ScaNN can only keep it on a local disk."""
    path = artefacts.saved_search(name)
    return None if "://" in str(path) else path


def background_of(subject: Subject, references: Embeddings) -> np.ndarray:
    """Is the rows of the references that are themselves searched for."""
    chosen = background_rows(subject, subject.eval.background_queries)
    if len(chosen) == len(references.ids):
        return chosen
    wanted = {subject.references.ids[i] for i in chosen}
    return np.flatnonzero([i in wanted for i in references.ids])


def _search_tiles(subject: Subject, artefacts: Artefacts, queries: str) -> pd.DataFrame:
    """Finds, of every tile, the reference with the most similar tile at its place."""
    headline = subject.eval.embedders[0]
    tables = []
    for tile in list_tiles(subject.eval.tiles):
        references = load_embeddings(artefacts.store(headline, "references", tile))
        exclude = None
        if queries == "background":
            exclude = background_of(subject, references)
            ids = [references.ids[i] for i in exclude]
            vectors = unit_rows(references.rows(exclude))
        else:
            own = load_embeddings(artefacts.store(headline, queries, tile))
            ids, vectors = own.ids, own.unit
        if len(references.ids) < 2 and exclude is not None:
            continue
        found = search(
            vectors,
            unit_vectors(references, "references"),
            1,
            backend=subject.eval.search,
            exclude=exclude,
            recall_target=subject.eval.recall_target,
            seed=subject.eval.seed,
            index_dir=_index(artefacts, f"{headline}@{tile.name}"),
        )
        table = neighbour_table(found, ids, references.ids, query_column(queries))
        table["tile"] = tile.name
        tables.append(table.drop(columns="rank"))
    return pd.concat(tables) if tables else pd.DataFrame()
