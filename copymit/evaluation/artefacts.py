"""Where an evaluation keeps what its stages made.

OUT/prompts.jsonl, generations/       what was generated, if copymit did
OUT/timings.json                      seconds an image; not a score, it never repeats
OUT/embeddings/EMBEDDER/SET/          one store per embedder and set of images
OUT/matches.parquet                   nearest references by the headline embedder
OUT/matches/EMBEDDER_SET.parquet      the others, and how they were found
OUT/scores.json, measured.parquet     numbers, and those of single generations
OUT/detection.parquet, .json, tokens.jsonl   memorised prompts, if they were looked for
OUT/report.html, figures/ ...         what people look at
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from etils import epath

from copymit.embedding.store import EmbeddingStore
from copymit.embedding.tiles import Tile


class Artefacts(NamedTuple):
    """The files of one evaluation.

    Attributes:
      out: its directory.
      headline: name of the first embedder.
    """

    out: epath.Path
    headline: str

    def store(
        self, embedder: str, images: str, tile: Tile | None = None
    ) -> EmbeddingStore:
        """Is the store of a set of images, or of one tile of each."""
        folder = f"{embedder}@{tile.name}" if tile else embedder
        return EmbeddingStore(self.out / "embeddings" / folder / images)

    def known_stores(
        self, embedder: str, images: str, tile: Tile | None = None
    ) -> list[EmbeddingStore]:
        """Lists the stores of the same set in the evaluations beside this one."""
        if not self.out.parent.exists():
            return []  # a bucket knows no empty directories
        return [
            Artefacts(path, self.headline).store(embedder, images, tile)
            for path in sorted(self.out.parent.iterdir())
            if path.is_dir() and path != self.out
        ]

    def matches(self, embedder: str, queries: str) -> epath.Path:
        """Is a table of neighbours; that of the headline embedder lies at the top."""
        if queries == "generations" and embedder == self.headline:
            return self.out / "matches.parquet"
        return self.out / "matches" / f"{embedder}_{queries}.parquet"

    def read_matches(self, embedder: str, queries: str) -> pd.DataFrame:
        """Reads a table of neighbours."""
        with self.matches(embedder, queries).open("rb") as file:
            return pd.read_parquet(file)

    def read_measured(self) -> pd.DataFrame:
        """Reads what was measured of single generations."""
        with (self.out / "measured.parquet").open("rb") as file:
            return pd.read_parquet(file)

    def search_facts(self, embedder: str) -> epath.Path:
        """Is the file that says how neighbours were found."""
        return self.out / "matches" / f"{embedder}_search.json"

    def saved_search(self, embedder: str) -> epath.Path:
        """Is where a searcher of the references is kept, if one is built."""
        return self.out / "index" / embedder

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

    def of_stage(
        self, stage: str, embedders: Sequence[str], all_embedders: Sequence[str]
    ) -> list[epath.Path]:
        """Lists what a finished stage has surely made.

        Args:
          embedders: that the similarity is measured with.
          all_embedders: these, and those of quality and of captions.
        """
        return {
            "generate": [self.out / "prompts.jsonl"],
            "embed": [
                self.store(name, images).directory / "embedder.json"
                for name in all_embedders
                for images in ("generations", "references")
            ],
            "search": [self.matches(name, "generations") for name in embedders]
            + [self.search_facts(name) for name in embedders],
            "score": [self.out / "scores.json", self.out / "measured.parquet"],
            "detect": [self.detection, self.detection_summary, self.tokens],
            "report": [self.out / "report.html"],
        }[stage]


def write_table(path: epath.Path, table: pd.DataFrame) -> None:
    """Writes a table without its index."""
    with path.open("wb") as file:
        table.to_parquet(file, index=False)
