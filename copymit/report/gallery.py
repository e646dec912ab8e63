"""The gallery: which generations to show, and each beside its nearest training images.

A run enters; cards leave, their pictures encoded and small.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from copymit.report.evaluated_run import (
    EvaluatedRun,
    Generation,
    duplicated_weights,
    list_neighbours,
)
from copymit.report.pictures import Detail, Picture, picture_maker

_MAX_TEXT = 160  # characters of a caption or prompt
_SEED = 0

# Why a generation is in the gallery, with a word about it for the reader.
REASONS: Mapping[str, str] = {
    "most": "most similar",
    "typical": "drawn at random",
    "least": "least similar",
}


class Choice(NamedTuple):
    """A generation to show, and why: some of `REASONS`."""

    generation: Generation
    reasons: tuple[str, ...]


class Shown(NamedTuple):
    """A training image in a card.

    Attributes:
      similarity: of the generation to it, or None if that was not kept.
      caption: its first, or None; `more_captions` counts the rest.
      weight: how often it was repeated, "" if it was not or nobody knows.
      is_prompted: whether its caption prompted the generation.
    """

    id: str
    picture: Picture
    similarity: float | None
    caption: str | None
    more_captions: int
    weight: str
    is_prompted: bool


class Card(NamedTuple):
    """A generation beside its nearest training images.

    Attributes:
      neighbours: what it is a copy of, then the nearest first; the image that
        prompted it, if that is another one, comes last.
      same_nearest: number of generations that are nearest to the same training image.
      search: every text of the card, in lower case, for the filter.
    """

    generation: Generation
    picture: Picture
    neighbours: list[Shown]
    same_nearest: int
    reasons: tuple[str, ...]
    search: str

    @property
    def nearest(self) -> Shown:
        """The training image that it is a copy of, or else the nearest."""
        return self.neighbours[0]


def choose_generations(generations: Sequence[Generation], size: int) -> list[Choice]:
    """Picks copies and the most similar generations, fewer random and least similar.

    The surest copies come first, then the most similar, one for each training image, or
    a single often copied image would fill the gallery. The random ones are always the
    same.

    Args:
      generations: most similar first.
      size: number of the first; a third of it of the others.
    Returns:
      What to keep first comes first, should there be no room for all.
    """
    if size == 0:
        return []
    best: dict[str, Generation] = {}
    for generation in sorted(generations, key=lambda g: g.rank):
        best.setdefault(generation.shown, generation)
    chosen = {"most": list(best.values())[:size]}
    few = min(max(1, size // 3), len(generations))
    if len(generations) > len(chosen["most"]):
        rng = np.random.default_rng(_SEED)
        rows = rng.choice(len(generations), few, replace=False)
        chosen["typical"] = [generations[i] for i in rows]
        chosen["least"] = list(generations[::-1][:few])
    reasons: dict[str, tuple[str, ...]] = {}
    by_id: dict[str, Generation] = {}
    # In turn, so that the first few of a shortened list are of all three kinds.
    order = sorted(
        (place / len(part), name, generation)
        for name, part in chosen.items()
        for place, generation in enumerate(part)
    )
    for _, name, generation in order:
        by_id[generation.id] = generation
        reasons[generation.id] = (*reasons.get(generation.id, ()), name)
    return [
        Choice(g, tuple(name for name in REASONS if name in reasons[i]))
        for i, g in by_id.items()
    ]


def make_cards(
    run: EvaluatedRun,
    generations: Sequence[Generation],
    choices: Sequence[Choice],
    num_neighbours: int,
    detail: Detail,
) -> list[Card]:
    """Lays the chosen generations out as cards, in the same order.

    Args:
      generations: all of the run.
      num_neighbours: training images to show beside each, where so many were kept.
    """
    neighbours = list_neighbours(run, [c.generation.id for c in choices])
    same_nearest = Counter(g.reference for g in generations)
    picture = picture_maker(run.read_generation, detail.large)
    show = _shower(run, detail)
    cards = []
    for g, reasons in choices:
        found: dict[str, float | None] = {**neighbours[g.id]}
        if g.copy_of:  # which comes first, though another may be nearer
            found = {g.copy_of: found.get(g.copy_of)} | found
        nearest = list(found.items())[: max(1, num_neighbours)]
        shown = [show(g, *pair, i == 0) for i, pair in enumerate(nearest)]
        if g.prompted and g.prompted not in dict(nearest):
            shown.append(show(g, g.prompted, found.get(g.prompted), False))
        g = g._replace(
            prompt=g.prompt and shorten(g.prompt),
            prompt_used=g.prompt_used and shorten(g.prompt_used),
        )
        texts = [g.id, g.prompt, g.prompt_used]
        texts += [text for s in shown for text in (s.id, s.caption)]
        search = "\n".join(text for text in texts if text).lower()
        cards.append(
            Card(g, picture(g.id), shown, same_nearest[g.reference], reasons, search)
        )
    return cards


def shorten(text: str) -> str:
    """Cuts a text that is too long to show."""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _shower(run: EvaluatedRun, detail: Detail) -> Callable[..., Shown]:
    """Makes a function (generation, reference, similarity, is large) -> `Shown`."""
    weights = duplicated_weights(run) or {}
    pictures = {
        True: picture_maker(run.read_reference, detail.large),
        False: picture_maker(run.read_reference, detail.small),
    }

    def show(
        generation: Generation, reference: str, similarity: float | None, large: bool
    ) -> Shown:
        texts = run.captions.get(reference, ())
        return Shown(
            reference,
            pictures[large](reference),
            similarity,
            shorten(texts[0]) if texts else None,
            max(0, len(texts) - 1),
            f"{weights[reference]:g}" if reference in weights else "",
            generation.prompted == reference,
        )

    return show
