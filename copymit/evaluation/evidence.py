"""`copies/`: every pair side by side as a picture, and a table of all.

They are removed whenever the scores are, so that no picture outlives its number. The
report stage lays pages of them beside.
"""

import pandas as pd
from etils import epath

from copymit.embedding.image_set import reader_by_id
from copymit.evaluation.subject import Subject
from copymit.report.generation_table import encode_table
from copymit.report.pairs import choose_pairs
from copymit.report.pictures import encode_pair, plain_name
from copymit.storage import write_whole


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
        grade = row["grade"].replace(" ", "-")
        name = f"{i + 1:04d}-{grade}-{plain_name(row['generation'])}.png"
        pair = read_generation(row["generation"]), read_reference(row["copy_of"])
        write_whole(folder / name, encode_pair(*pair))
        names[row["generation"]] = name
    pairs.insert(0, "picture", pairs["generation"].map(names))
    write_whole(folder / "copies.csv", encode_table(pairs))
    return names
