"""What the report knows of one evaluated run, checked and joined.

Tables, scores and image readers enter; generations with everything known about them
leave. Nothing is read from disk here.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from copymit.scores.grades import COPIES, GRADES

ReadImage = Callable[[str], UInt8[np.ndarray, "H W 3"]]


class Detection(NamedTuple):
    """What detectors say of prompts.

    Attributes:
      table: columns id, prompt, kind ("prompted", "unseen"), similarity, memorised, and
        one a detector.
      summary: `truth` in words, `titles` of the detectors, `num_*` of each kind; under
        `unmemorised` and `unseen`, by detector, how well it tells memorised prompts
        from those.
      tokens: `prompt`, its `tokens` and the `attribution` of each, a prompt an entry.
    """

    table: pd.DataFrame
    summary: Mapping[str, Any]
    tokens: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class EvaluatedRun:
    """Everything about one run that a report shows.

    Attributes:
      title: a few words for a reader, such as "full duplication x10".
      scores: flat entries of `scores.json`; `<key>_ci95` holds [low, high].
      settings: flat, dotted names, such as `train.steps`.
      matches: columns generation, rank (0 = nearest), reference, similarity, by the
        embedder that gives the headline scores.
      similarities: top-1 similarities of `generations`, of `background` (training image
        to its nearest other) and perhaps of `heldout` images.
      read_generation: id -> image, uint8.
      read_reference: id of a training image -> image, uint8.
      captions: training image -> its captions; may be empty.
      prompts: columns id, prompt, prompt_used, seed, example_id (the training image
        whose caption it is, or None); None when copymit did not generate.
      duplication: columns example_id, weight, duplicated, caption_count, or None.
      metrics: columns step, loss, ... of the training, or None.
      measured: column generation, and numbers of each generation besides similarity,
        such as tile_l2 or nearest_entropy, of its nearest training image; or None.
      detection: of memorised prompts, or None.
    """

    title: str
    scores: Mapping[str, Any]
    settings: Mapping[str, Any]
    matches: pd.DataFrame
    similarities: Mapping[str, Float[np.ndarray, " Q"]]
    read_generation: ReadImage
    read_reference: ReadImage
    captions: Mapping[str, Sequence[str]]
    prompts: pd.DataFrame | None
    duplication: pd.DataFrame | None
    metrics: pd.DataFrame | None
    measured: pd.DataFrame | None = None
    detection: Detection | None = None


class Generation(NamedTuple):
    """One generation, its nearest training image, and its prompt where known.

    Attributes:
      reference: its nearest training image.
      similarity: to that.
      prompted: the training image whose caption prompted it.
      seed: of its initial noise, together with its id.
      grade: of scores/grades.py, None if that was not decided.
      copy_of: the training image that it is a copy of, or agrees with in pixels; not
        always the nearest. None if there is none.
    """

    id: str
    reference: str
    similarity: float
    prompt: str | None = None
    prompt_used: str | None = None
    prompted: str | None = None
    seed: str | None = None
    grade: str | None = None
    copy_of: str | None = None

    @property
    def shown(self) -> str:
        """The training image to show beside it: what it copies, or else the nearest."""
        return self.copy_of or self.reference

    @property
    def is_copy(self) -> bool:
        """Whether it was found to be a copy of any kind."""
        return self.grade in COPIES

    @property
    def rank(self) -> int:
        """Place of its grade, 0 for the surest copy."""
        return GRADES.index(self.grade) if self.grade in GRADES else len(GRADES)


_COLUMNS = {
    "matches": ("generation", "rank", "reference", "similarity"),
    "prompts": ("id", "prompt"),
    "duplication": ("example_id", "weight", "duplicated"),
    "metrics": ("step", "loss"),
    "measured": ("generation",),
}


def list_generations(run: EvaluatedRun) -> list[Generation]:
    """Joins matches and prompts; the most similar generation comes first.

    Raises:
      ValueError: if a table lacks a column, there are no matches, a similarity is not
        finite, or no prompt belongs to any generation.
    """
    for table, columns in _COLUMNS.items():
        _check_columns(getattr(run, table), table, columns)
    nearest = run.matches[run.matches["rank"] == 0].drop_duplicates("generation")
    if nearest.empty:
        raise ValueError(
            f"run {run.title!r}: `matches` has no row of rank 0; search before reporting"
        )
    if not np.isfinite(nearest["similarity"].to_numpy(np.float64)).all():
        raise ValueError(
            f"run {run.title!r}: `matches` holds a similarity that is NaN or infinite; "
            "embed and search again"
        )
    prompts, grades = _prompts(run), _grades(run)
    rows = zip(
        nearest["generation"], nearest["reference"], nearest["similarity"], strict=True
    )
    generations = [
        Generation(
            str(g),
            str(r),
            float(s),
            *prompts.get(str(g), 4 * (None,)),
            *grades.get(str(g), ()),
        )
        for g, r, s in rows
    ]
    if prompts and not any(g.id in prompts for g in generations):
        raise ValueError(
            f"run {run.title!r}: no `prompts.id` (such as {next(iter(prompts))!r}) is a "
            f"`matches.generation` (such as {generations[0].id!r}); give both the same ids"
        )
    return sorted(generations, key=lambda g: (-g.similarity, g.id))


def list_neighbours(
    run: EvaluatedRun, ids: Collection[str]
) -> dict[str, dict[str, float]]:
    """Lists the training images that the search kept for some generations.

    Returns:
      By generation, the similarity to each of them, the nearest first.
    """
    table = run.matches[run.matches["generation"].astype(str).isin(set(ids))]
    found: dict[str, dict[str, float]] = {i: {} for i in ids}
    for row in table.sort_values("rank", kind="stable").itertuples(index=False):
        found[str(row.generation)].setdefault(str(row.reference), float(row.similarity))
    return found


def duplicated_weights(run: EvaluatedRun) -> dict[str, float] | None:
    """Returns how often each duplicated image was repeated, or None if unknown."""
    if run.duplication is None:
        return None
    chosen = run.duplication[run.duplication["duplicated"].astype(bool)]
    return {
        str(i): float(w)
        for i, w in zip(chosen["example_id"], chosen["weight"], strict=True)
    }


def text_or_none(value: Any) -> str | None:
    """Returns a table's cell as text; None for None and NaN."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value)


def _prompts(run: EvaluatedRun) -> dict[str, tuple[str | None, ...]]:
    """Is (prompt, prompt used, prompted training image, seed) by generation."""
    if run.prompts is None:
        return {}
    table = run.prompts
    used = table["prompt_used"] if "prompt_used" in table else table["prompt"]
    unknown = [None] * len(table)
    about = table.get("example_id", unknown)
    seeds = table.get("seed", unknown)
    # A held-out image can prompt too, but was never trained on.
    trained = run.duplication is not None and set(
        map(str, run.duplication["example_id"])
    )
    prompts: dict[str, tuple[str | None, ...]] = {}
    for row in zip(table["id"], table["prompt"], used, about, seeds, strict=True):
        number, prompt, prompt_used, prompted, seed = map(text_or_none, row)
        if trained and prompted not in trained:
            prompted = None
        prompts[str(number)] = (prompt, prompt_used, prompted, seed)
    return prompts


def _grades(run: EvaluatedRun) -> dict[str, tuple[str | None, ...]]:
    """Is grade and copied training image by generation, where they were decided."""
    table = run.measured
    if table is None or "grade" not in table:
        return {}
    columns = zip(table["generation"], table["grade"], table["copy_of"], strict=True)
    return {
        str(name): (text_or_none(grade), text_or_none(copied) or None)
        for name, grade, copied in columns
    }


def _check_columns(
    table: pd.DataFrame | None, name: str, columns: tuple[str, ...]
) -> None:
    missing = [] if table is None else [c for c in columns if c not in table]
    if missing:
        raise ValueError(
            f"`{name}` lacks the column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}"  # type: ignore[union-attr]
        )
