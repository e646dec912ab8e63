"""Images of one colour or not of numbers: what safety checkers and broken weights leave.

They stay in every number, since to leave them out would hide what a model does; but each
resembles every other of its kind and no photo, so they are counted, named and warned of.
"""

from collections.abc import Sequence

from copymit.scores.similarity import Scores

_NAMED = 5
_CAUSES = {
    "generations": "A safety checker blackens images, and weights that are not finite "
    "give black ones",
    "references": "Training images of one colour resemble each other, whatever they were",
    "heldout": "Held-out images of one colour resemble each other, whatever they were",
}
_WORDS = {"references": "training images", "heldout": "held-out images"}


def describe_blank(images: str, ids: Sequence[str], count: int) -> Scores:
    """Counts and names the images of one colour of a set; nothing where there are none.

    Keys: `num_blank_<images>`, `blank_<images>`, and `alarms` with a sentence.

    Args:
      images: `generations`, `references` or `heldout`.
      ids: of the images of one colour.
      count: of all images of the set.
    """
    alarm = (
        f"{len(ids):,} of {count:,} {_WORDS.get(images, images)} are of one colour "
        f"({_first(ids)}). {_CAUSES[images]}. They are in every number: look at them first."
    )
    return _counted(f"blank_{images}", ids, alarm)


def describe_not_finite(ids: Sequence[str], count: int) -> Scores:
    """Counts and names generations with NaN or infinite latents or pixels.

    Keys: `num_not_finite_generations`, `not_finite_generations`, and `alarms`.

    Args:
      count: of all generations.
    """
    alarm = (
        f"{len(ids):,} of {count:,} generations had latents or pixels that are not finite "
        f"({_first(ids)}): their pictures show what is left. They are in every number. "
        "Check the weights, and whether the precision (train.dtype) suits them."
    )
    return _counted("not_finite_generations", ids, alarm)


def _counted(key: str, ids: Sequence[str], alarm: str) -> Scores:
    if not ids:
        return {"alarms": []}
    return {f"num_{key}": len(ids), key: list(ids), "alarms": [alarm]}


def _first(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
