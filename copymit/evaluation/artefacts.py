"""Where an evaluation keeps what its stages made, and what each of it was made of.

OUT/evaluation.json                   what is evaluated, and how
OUT/prompts.jsonl, generations/       what was generated, if copymit did
OUT/reconstructions/                  some training images through its autoencoder
OUT/timings.json                      seconds an image; not a score, it never repeats
OUT/embeddings/EMBEDDER/SET/          one store per embedder and set of images
OUT/matches.parquet                   nearest references by the headline embedder
OUT/matches/EMBEDDER_SET.parquet      the others, and how they were found
OUT/scores.json, measured.parquet     numbers, and those of single generations
OUT/detection.parquet, .json, tokens.jsonl   memorised prompts, if they were looked for
OUT/copies/                           the pairs, as pictures, pages and a table
OUT/report.html, figures/, pairs/ ...  what people look at

Where runs share a cache (`data.cache_dir`), the stores of what all of them have, training
and held-out images, lie in CACHE/features/EMBEDDER/SET/DIGEST instead.

Every artefact that a later stage reads carries the digest of its inputs, written in the
same file at the same moment: tables and stores in their metadata, JSON as `inputs`. It
is read only by who asks for that digest, so that whatever an interruption, other settings
or other images left behind is as good as absent. scores.json alone holds nothing but its
numbers, the same bytes for the same run wherever it is made: measured.parquet, which is
written after it, vouches for its content.
"""

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from copymit.embedding.registry import weights_name
from copymit.embedding.store import EmbeddingStore
from copymit.embedding.tiles import Tile, list_tiles
from copymit.evaluation.reconstruct import RECONSTRUCTIONS
from copymit.evaluation.settings import stage_settings
from copymit.evaluation.stages import (
    OPTIONAL_STAGES,
    STAGES,
    compute_digest,
    content_digest,
)
from copymit.evaluation.subject import Subject
from copymit.storage import write_whole

_INPUTS, _VOUCHES_FOR = "inputs", "vouches_for"
# Sets whose nearest references are looked for; `background` are the references.
QUERIES = ("generations", "background", "heldout")
# Training images whose captions are scored, for comparison with the generations'.
BACKGROUND_CAPTIONS = 2_000
# Sets that do not depend on the model, and so are those of other runs, too.
_OF_THE_DATA = ("references", "heldout", "few_references")


class Artefacts(NamedTuple):
    """The files of one evaluation, of its present inputs.

    Attributes:
      out: its directory.
      headline: name of the first embedder.
      stages: digest of what goes into each stage.
      sets: digest of what each set of images or texts depends on.
      weights: digest of the weights of each embedder that has any.
      cache: what runs beside this one share, if they share anything.
    """

    out: epath.Path
    headline: str
    stages: Mapping[str, str]
    sets: Mapping[str, str]
    weights: Mapping[str, str]
    cache: epath.Path | None = None

    def store(
        self, embedder: str, images: str, tile: Tile | None = None
    ) -> EmbeddingStore:
        """Is the store of a set of images, or of one tile of each."""
        of = [self.sets[images], self.weights.get(weights_name(embedder), "")]
        inputs = compute_digest(of)
        if self.cache and images in _OF_THE_DATA:
            folder = _store_folder(self.cache / "features", embedder, images, tile)
            return EmbeddingStore(folder / inputs[:16], inputs, shared=True)
        return EmbeddingStore(
            _store_folder(self.out / "embeddings", embedder, images, tile), inputs
        )

    def known_stores(
        self, embedder: str, images: str, tile: Tile | None = None
    ) -> list[EmbeddingStore]:
        """Lists other stores of such images: of the evaluations beside this one, and of
        all training and held-out images in the shared cache.
        """
        own = self.store(embedder, images, tile).directory
        folders = [
            _store_folder(path / "embeddings", embedder, images, tile)
            for path in _folders(self.out.parent)
        ]
        if self.cache and images in _OF_THE_DATA:
            for kind in _OF_THE_DATA:
                place = _store_folder(self.cache / "features", embedder, kind, tile)
                folders += _folders(place)
        return [EmbeddingStore(folder) for folder in folders if folder != own]

    def matches(self, embedder: str, queries: str) -> epath.Path:
        """Is a table of neighbours; that of the headline embedder lies at the top."""
        if queries == "generations" and embedder == self.headline:
            return self.out / "matches.parquet"
        return self.out / "matches" / f"{embedder}_{queries}.parquet"

    def tile_matches(self, queries: str) -> epath.Path:
        """Is the table of the nearest tile of every tile."""
        return self.out / "matches" / f"tiles_{queries}.parquet"

    def search_facts(self, embedder: str) -> epath.Path:
        """Is the file that says how neighbours were found."""
        return self.out / "matches" / f"{embedder}_search.json"

    def saved_search(self, embedder: str) -> epath.Path:
        """Is where a searcher of the references is kept, if one is built."""
        return self.out / "index" / embedder

    @property
    def scores(self) -> epath.Path:
        """Is the file of all numbers."""
        return self.out / "scores.json"

    @property
    def measured(self) -> epath.Path:
        """Is the table of numbers of single generations."""
        return self.out / "measured.parquet"

    @property
    def copies(self) -> epath.Path:
        """Is the folder of pairs; it is there only with the numbers that it shows."""
        return self.out / "copies"

    @property
    def detection(self) -> epath.Path:
        """Is the table of prompts and their detectors."""
        return self.out / "detection.parquet"

    @property
    def detection_summary(self) -> epath.Path:
        """Is the file that says how good the detectors are."""
        return self.out / "detection.json"

    @property
    def tokens(self) -> epath.Path:
        """Is what each token of the prompts contributes."""
        return self.out / "tokens.jsonl"

    def write_table(
        self,
        stage: str,
        path: epath.Path,
        table: pd.DataFrame,
        vouches_for: bytes = b"",
    ) -> None:
        """Writes a table of a stage, without its index."""
        rows = pa.Table.from_pandas(table, preserve_index=False)
        about = {
            **(rows.schema.metadata or {}),
            _INPUTS: self.stages[stage],
            _VOUCHES_FOR: hashlib.sha256(vouches_for).hexdigest(),
        }
        file = io.BytesIO()
        pq.write_table(rows.replace_schema_metadata(about), file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())

    def read_table(self, stage: str, path: epath.Path) -> pd.DataFrame:
        """Reads a table that the stage wrote.

        Raises:
          FileNotFoundError: if it is not there, or of other inputs.
        """
        if self._inputs_of(path) != self.stages[stage]:
            raise self._missing(stage, path)
        with path.open("rb") as file:
            return pq.read_table(file).to_pandas()

    def write_json(
        self, stage: str, path: epath.Path, content: Mapping[str, Any]
    ) -> None:
        """Writes an object of a stage."""
        content = {**content, _INPUTS: self.stages[stage]}
        text = json.dumps(content, indent=1, sort_keys=True, default=list)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{text}\n".encode())

    def read_json(self, stage: str, path: epath.Path) -> dict[str, Any]:
        """Reads an object that the stage wrote; errors as `read_table`."""
        content = json.loads(path.read_text()) if path.exists() else {}
        if content.pop(_INPUTS, None) != self.stages[stage]:
            raise self._missing(stage, path)
        return content

    def write_scores(self, scores: Mapping[str, Any], measured: pd.DataFrame) -> None:
        """Writes all numbers, and then those of single generations."""
        text = json.dumps(scores, indent=1, sort_keys=True, default=list)
        data = f"{text}\n".encode()
        write_whole(self.scores, data)
        self.write_table("score", self.measured, measured, vouches_for=data)

    def remove_scores(self) -> None:
        """Removes all numbers, and the pictures of copies with them."""
        self.scores.unlink(missing_ok=True)
        if self.copies.exists():
            self.copies.rmtree()

    def read_scores(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """Reads all numbers, and those of single generations; errors as `read_table`."""
        if not self.is_scored():
            raise self._missing("score", self.scores)
        measured = self.read_table("score", self.measured)
        return json.loads(self.scores.read_text()), measured

    def is_scored(self) -> bool:
        """Says whether the numbers are there, of the present inputs."""
        if not self.is_of("score", self.measured) or not self.scores.exists():
            return False
        vouched = _metadata(self.measured)[_VOUCHES_FOR]
        return vouched == hashlib.sha256(self.scores.read_bytes()).hexdigest()

    def read_matches(self, embedder: str, queries: str) -> pd.DataFrame:
        """Reads a table of neighbours."""
        return self.read_table("search", self.matches(embedder, queries))

    def is_of(self, stage: str, path: epath.Path) -> bool:
        """Says whether the stage wrote this file, of its present inputs."""
        return self._inputs_of(path) == self.stages[stage]

    def _inputs_of(self, path: epath.Path) -> str | None:
        if not path.exists():
            return None
        if path.suffix != ".parquet":
            return json.loads(path.read_text()).get(_INPUTS)
        return _metadata(path).get(_INPUTS)

    def _missing(self, stage: str, path: epath.Path) -> FileNotFoundError:
        return FileNotFoundError(
            f"{path} is missing or of other inputs: run the {stage} stage"
        )


def open_artefacts(subject: Subject) -> Artefacts:
    """Digests everything that goes into an evaluation."""
    settings, identity = subject.eval, subject.identity
    made = [
        identity["generations"],
        stage_settings(settings, "generate") if subject.run else None,
    ]
    stages = {"generate": compute_digest(made)}
    # Every other stage depends on all images and on the stages before it.
    digest = compute_digest([stages["generate"], identity])
    for stage in STAGES[1:]:
        inputs = [digest, stage, stage_settings(settings, stage)]
        if stage == "score" and subject.choice:
            inputs.append(subject.choice)  # the scores say it
        stages[stage] = compute_digest(inputs)
        if stage not in OPTIONAL_STAGES:
            digest = stages[stage]
    as_they_are = subject.references.read_original is not None
    shown = [subject.size, as_they_are, settings.on_corrupt]
    references = [identity["references"], shown]
    few = [settings.seed, BACKGROUND_CAPTIONS]
    sets = {
        "generations": [made, shown],
        "references": references,
        "heldout": [identity.get("heldout", identity["references"]), shown],
        "few_references": [references, few],
        RECONSTRUCTIONS: [made, shown],
        "prompts": [made, identity["prompts"]],
        "captions": [references, few],
    }
    return Artefacts(
        subject.out,
        settings.embedders[0],
        stages,
        {name: compute_digest([name, inputs]) for name, inputs in sets.items()},
        {name: content_digest(path) for name, path in settings.weights.items() if path},
        subject.cache,
    )


def embedder_names(subject: Subject) -> list[str]:
    """Lists the embedders that need all images: of similarity, then of quality."""
    settings = subject.eval
    names = [*settings.embedders, *settings.quality_embedders]
    return list(dict.fromkeys(names))


def image_sets(subject: Subject) -> list[str]:
    """Lists the sets of images that a subject has."""
    sets = ["generations", "references"]
    return sets if subject.heldout is None else [*sets, "heldout"]


def list_embedded(subject: Subject) -> list[tuple[str, str, Tile | None]]:
    """Lists embedder, set and tile of all images that the settings ask for."""
    settings, sets = subject.eval, image_sets(subject)
    names = embedder_names(subject)
    embedded: list[tuple[str, str, Tile | None]] = [
        (name, images, None) for name in names for images in sets
    ]
    if subject.reconstructions() is not None:
        embedded += [(name, RECONSTRUCTIONS, None) for name in settings.embedders]
    for tile in list_tiles(settings.tiles):
        embedded += [(settings.embedders[0], images, tile) for images in sets[:2]]
    if settings.clip_score and settings.clip_score not in names:
        few = ("generations", "few_references")
        embedded += [(settings.clip_score, images, None) for images in few]
    return embedded


def list_texts(subject: Subject) -> dict[str, str]:
    """Maps each set of texts that is scored to its set of images."""
    if not subject.eval.clip_score:
        return {}
    whole = subject.eval.clip_score in embedder_names(subject)
    texts = {} if subject.prompts() is None else {"prompts": "generations"}
    if subject.captions:
        texts["captions"] = "references" if whole else "few_references"
    return texts


def is_finished(subject: Subject, artefacts: Artefacts, stage: str) -> bool:
    """Says whether everything is there that a stage makes of the present inputs."""
    of = functools.partial(artefacts.is_of, stage)
    match stage:
        case "generate":
            marker = artefacts.out / "generations.digest"
            return (
                marker.exists()
                and marker.read_text() == artefacts.stages[stage]
                and (artefacts.out / "prompts.jsonl").exists()
                and not subject.made.missing()
            )
        case "embed":
            clip = subject.eval.clip_score
            if not is_generated(subject, artefacts):
                return False
            places = list_embedded(subject)
            places += [(clip, texts, None) for texts in list_texts(subject)]
            return all(artefacts.store(*place).find() is not None for place in places)
        case "search":
            tiles = [artefacts.tile_matches(q) for q in QUERIES[:2]]
            return all(
                _is_searched(artefacts, name) for name in subject.eval.embedders
            ) and (not subject.eval.tiles or all(map(of, tiles)))
        case "score":
            return artefacts.is_scored()
        case "detect":
            tables = (artefacts.detection, artefacts.detection_summary)
            return all(map(of, tables)) and artefacts.tokens.exists()
    raise ValueError(f"{stage} is always run")


def is_generated(subject: Subject, artefacts: Artefacts) -> bool:
    """Says whether the generations are there, whoever made them."""
    return subject.run is None or is_finished(subject, artefacts, "generate")


def _is_searched(artefacts: Artefacts, embedder: str) -> bool:
    facts = artefacts.search_facts(embedder)
    if not artefacts.is_of("search", facts):
        return False
    queries = artefacts.read_json("search", facts)
    return all(
        artefacts.is_of("search", artefacts.matches(embedder, name)) for name in queries
    )


def _metadata(path: epath.Path) -> dict[str, str]:
    with path.open("rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _folders(parent: epath.Path) -> list[epath.Path]:
    if not parent.exists():
        return []  # a bucket knows no empty directories
    return [path for path in sorted(parent.iterdir()) if path.is_dir()]


def _store_folder(
    parent: epath.Path, embedder: str, images: str, tile: Tile | None
) -> epath.Path:
    return parent / (f"{embedder}@{tile.name}" if tile else embedder) / images
