"""What is known of every generation, as `generations.csv` and `generations.parquet`.

An evaluated run enters; one row for each generation leaves, the most similar first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from copymit.report.evaluated_run import EvaluatedRun, Generation, duplicated_weights
from copymit.scores.similarity import nearest_l2_ratio
from copymit.storage import write_whole

_NEXT = 10  # neighbours that Carlini et al.'s ratio compares the nearest with
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def tabulate_generations(
    run: EvaluatedRun, generations: Sequence[Generation], pairs: Mapping[str, str]
) -> pd.DataFrame:
    """Lays out one row for each generation; columns that nobody knows are absent.

    Columns: generation, nearest_reference, similarity; where known prompt, prompt_used,
    seed, prompted_reference, nearest_is_prompted, nearest_is_duplicated,
    prompted_is_duplicated, nearest_l2_ratio, and the columns of `measured`: of an
    evaluation grade, copy_of (the training image), p, q, nearness (scores/grades.py),
    repeats (the first generation that is the same picture), tile_l2 and tile_l2_ratio,
    nearest_entropy, nearest_jpeg_bytes and nearest_total_variation, the complexity of the
    nearest reference (scores/complexity.py), where asked for template_similarity and
    clip_score, and the picture of a copy beside its training image, in `copies/`; `pair`,
    the same in `pairs/` of those that are in `pairs`.
    """
    table = pd.DataFrame(
        {
            "generation": [_proper_text(g.id) for g in generations],
            "nearest_reference": [_proper_text(g.reference) for g in generations],
            "similarity": [g.similarity for g in generations],
        }
    )
    known = {
        "prompt": [g.prompt for g in generations],
        "prompt_used": [g.prompt_used for g in generations],
        "seed": [g.seed for g in generations],
        "prompted_reference": [g.prompted for g in generations],
        "pair": [pairs.get(g.id) for g in generations],
    }
    for name, values in known.items():
        if any(value is not None for value in values):
            table[name] = pd.Series(map(_proper_text, values), dtype=object)
    if "prompted_reference" in table:
        prompted = [
            g.prompted == g.reference if g.prompted else None for g in generations
        ]
        table["nearest_is_prompted"] = pd.Series(prompted, dtype="boolean")
    duplicated = duplicated_weights(run)
    if duplicated is not None:
        table["nearest_is_duplicated"] = [
            g.reference in duplicated for g in generations
        ]
        if "prompted_reference" in table:
            inside = [
                g.prompted in duplicated if g.prompted else None for g in generations
            ]
            table["prompted_is_duplicated"] = pd.Series(inside, dtype="boolean")
    return _add_measures(table, run, generations)


def write_generation_table(directory: epath.Path, table: pd.DataFrame) -> None:
    """Writes `generations.parquet` as it is and `generations.csv` for spreadsheets.

    A spreadsheet takes a text that starts with =, +, -, @, a tab or a line break for a
    formula, and a prompt may come from anyone. In the CSV such texts begin with ' (an
    apostrophe), so a program that wants the exact text reads the Parquet file. Numbers
    are left as they are, minus signs too.
    """
    parquet = table.to_parquet(index=False)
    write_whole(directory / "generations.parquet", parquet)
    write_whole(directory / "generations.csv", encode_table(table))


def encode_table(table: pd.DataFrame) -> bytes:
    """Writes a table as CSV for spreadsheets, see `write_generation_table`."""
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    safe = table.assign(**{name: table[name].map(_safe_cell) for name in texts})
    text = safe.to_csv(index=False, lineterminator="\n")
    return text.encode("utf-8", "backslashreplace")


def _add_measures(
    table: pd.DataFrame, run: EvaluatedRun, generations: Sequence[Generation]
) -> pd.DataFrame:
    """Adds what else was measured of each generation."""
    if run.measured is not None:
        measured = run.measured.assign(
            generation=run.measured["generation"].astype(str)
        )
        measured = measured.drop_duplicates("generation").set_index("generation")
        measured = measured.reindex([g.id for g in generations])
        for name in measured:
            if name not in table:
                table[str(name)] = measured[name].to_numpy()
    if "nearest_l2_ratio" in table or "nearest_l2_ratio_mean" not in run.scores:
        return table
    near = run.matches[run.matches["rank"] <= _NEXT]
    near = near.assign(generation=near["generation"].astype(str))
    grid = near.pivot_table("similarity", "generation", "rank", aggfunc="first")
    similarities = grid.reindex([g.id for g in generations]).to_numpy(np.float64)
    if similarities.shape[1] > _NEXT and np.isfinite(similarities).all():
        squares = np.maximum(2 - 2 * similarities, 0)
        table["nearest_l2_ratio"] = nearest_l2_ratio(np.sqrt(squares))
    return table


def _proper_text(text: str | None) -> str | None:
    """Is a text that can be stored: file names may hold bytes that are no text."""
    return text and text.encode("utf-8", "backslashreplace").decode()


def _safe_cell(cell: Any) -> Any:
    if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS):
        return f"'{cell}"
    return cell
