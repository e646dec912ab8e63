"""What is noted in a picture while it is made: what its pixels no longer tell.

It lies in the PNG itself, so that an interruption loses neither or both.
"""

from collections.abc import Mapping

from etils import epath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

NOT_FINITE = "not_finite"


def write_notes(steps: Mapping[str, int], finite: bool) -> PngInfo:
    """Makes the notes of a picture; there are none where all went as usual.

    Args:
      steps: that were taken to each target of an optimisation.
      finite: whether latents and pixels were, before these became whole numbers.
    """
    notes = PngInfo()
    for name, count in steps.items():
        notes.add_text(name, str(count))
    if not finite:
        notes.add_text(NOT_FINITE, "1")
    return notes


def read_notes(path: epath.PathLike) -> Mapping[str, str]:
    """Reads the notes of a picture, without its pixels."""
    with epath.Path(path).open("rb") as file, Image.open(file) as image:
        return {k: v for k, v in image.info.items() if isinstance(v, str)}
