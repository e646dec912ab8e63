"""`copies/`: every pair side by side as a picture, and a table of all.

They are removed whenever the scores are, so that no picture outlives its number. The
report stage lays pages of them beside.
"""

import io
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.subject import Subject
from copymit.report.generation_table import encode_table
from copymit.report.pairs import choose_pairs
from copymit.storage import write_whole

_GAP_PX = 8
_MAX_NAME = 60


def write_copies(
    subject: Subject, folder: epath.Path, table: pd.DataFrame
) -> dict[str, str]:
    """Writes the pairs, the surest first.

    Args:
      table: columns generation, grade, copy_of and whatever else is known.
    Returns:
      By generation, the name of its picture.
    """
    if folder.exists():  # of an attempt that was interrupted
        folder.rmtree()
    pairs = choose_pairs(table)
    if pairs.empty:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    read_generation = reader_by_id(subject.generations())
    read_reference = reader_by_id(subject.references)
    names = {}
    for i, row in enumerate(pairs[: subject.eval.copy_pictures].to_dict("records")):
        name = _picture_name(i, row["grade"], row["generation"])
        pair = [read_generation(row["generation"]), read_reference(row["copy_of"])]
        write_whole(folder / name, _side_by_side(pair))
        names[row["generation"]] = name
    pairs.insert(0, "picture", pairs["generation"].map(names))
    write_whole(folder / "copies.csv", encode_table(pairs))
    return names


def _picture_name(number: int, grade: str, generation: str) -> str:
    """Names a picture; of a name from outside only letters and digits are kept."""
    safe = re.sub(r"[^A-Za-z0-9]+", "-", generation).strip("-")[-_MAX_NAME:]
    return f"{number + 1:04d}-{grade.replace(' ', '-')}-{safe}".strip("-") + ".png"


def _side_by_side(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> bytes:
    first, second = images
    gap = np.full((len(first), _GAP_PX, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([first, gap, second], 1)).save(file, "PNG")
    return file.getvalue()
