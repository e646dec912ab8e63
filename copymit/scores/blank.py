"""Images of one colour: what safety checkers and weights that are not finite leave.

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
    if not ids:
        return {"alarms": []}
    named = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
    alarm = (
        f"{len(ids):,} of {count:,} {_WORDS.get(images, images)} are of one colour "
        f"({named}). {_CAUSES[images]}. They are in every number: look at them first."
    )
    return {
        f"num_blank_{images}": len(ids),
        f"blank_{images}": list(ids),
        "alarms": [alarm],
    }
