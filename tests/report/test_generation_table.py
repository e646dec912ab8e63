import csv
import dataclasses
import io

import numpy as np
import pandas as pd
from etils import epath

from copymit.report.evaluated_run import EvaluatedRun, list_generations
from copymit.report.generation_table import (
    tabulate_generations,
    write_generation_table,
)

PROMPTS = ["=HYPERLINK(1)", "+1", "-2", "@SUM(A1)", "\tx", 'a, "b"\nc', "plain"]


def run_of(prompts=PROMPTS, ranks=11):
    """Generation i is nearest to reference i, and prompted by it if i is even."""
    count = len(prompts)
    ids = [f"{i:06d}" for i in range(count)]
    rows = [
        (
            ids[i],
            rank,
            f"r{i}" if rank == 0 else f"other{rank}",
            0.9 - 0.05 * rank - i / 100,
        )
        for i in range(count)
        for rank in range(ranks)
    ]
    return EvaluatedRun(
        title="a run",
        scores={"nearest_l2_ratio_mean": 0.5},
        settings={},
        matches=pd.DataFrame(
            rows, columns=["generation", "rank", "reference", "similarity"]
        ),
        similarities={},
        read_generation=lambda _: np.zeros((4, 4, 3), np.uint8),
        read_reference=lambda _: np.zeros((4, 4, 3), np.uint8),
        captions={},
        prompts=pd.DataFrame(
            {
                "id": ids,
                "prompt": pd.Series(prompts, dtype=object),
                "seed": 3,
                "example_id": [f"r{i}" if i % 2 == 0 else "r0" for i in range(count)],
            }
        ),
        duplication=None,
        metrics=None,
    )


def tables_of(run, tmp_path):
    table = tabulate_generations(run, list_generations(run), {})
    write_generation_table(epath.Path(tmp_path), table)
    text = (tmp_path / "generations.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    return pd.read_parquet(tmp_path / "generations.parquet"), rows


def test_both_files_hold_every_generation_the_most_similar_first(tmp_path):
    table, rows = tables_of(run_of(), tmp_path)
    assert len(table) == len(rows) == len(PROMPTS)
    assert table["similarity"].is_monotonic_decreasing
    assert [row["generation"] for row in rows] == table["generation"].tolist()
    assert table["nearest_reference"].tolist() == [f"r{i}" for i in range(len(PROMPTS))]
    assert table["nearest_is_prompted"].tolist() == [i % 2 == 0 for i in range(7)]
    assert "nearest_is_duplicated" not in table


def test_no_cell_of_the_csv_is_a_formula_and_the_parquet_is_exact(tmp_path):
    table, rows = tables_of(run_of(), tmp_path)
    assert table["prompt"].tolist() == PROMPTS
    written = [row["prompt"] for row in rows]
    assert written == [f"'{p}" for p in PROMPTS[:5]] + PROMPTS[5:]
    cells = [str(cell) for row in rows for cell in row.values()]
    assert not [c for c in cells if c.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_negative_numbers_stay_numbers(tmp_path):
    run = run_of()
    run = dataclasses.replace(
        run, matches=run.matches.assign(similarity=run.matches["similarity"] - 1)
    )
    _, rows = tables_of(run, tmp_path)
    assert float(rows[0]["similarity"]) == run.matches["similarity"].max()
    assert rows[0]["similarity"].startswith("-")


def test_the_ratio_is_carlinis_where_enough_neighbours_were_kept(tmp_path):
    table, _ = tables_of(run_of(), tmp_path)
    distances = np.sqrt(2 - 2 * (0.9 - 0.05 * np.arange(11)))
    expected = distances[0] / distances[1:].mean()
    np.testing.assert_allclose(table["nearest_l2_ratio"][0], expected)
    table, _ = tables_of(run_of(ranks=5), tmp_path)
    assert "nearest_l2_ratio" not in table


def test_what_else_was_measured_is_joined_by_name(tmp_path):
    run = run_of()
    measured = pd.DataFrame({"generation": ["000003", "000000"], "tile_l2": [0.3, 0.1]})
    table, _ = tables_of(dataclasses.replace(run, measured=measured), tmp_path)
    found = table.set_index("generation")["tile_l2"]
    assert found["000003"] == 0.3
    assert found["000000"] == 0.1
    assert np.isnan(found["000001"])


def test_without_prompts_their_columns_are_absent(tmp_path):
    table, _ = tables_of(dataclasses.replace(run_of(), prompts=None), tmp_path)
    assert list(table) == [
        "generation",
        "nearest_reference",
        "similarity",
        "nearest_l2_ratio",
    ]


def test_names_that_are_no_proper_text_can_be_stored(tmp_path):
    table, _ = tables_of(run_of(["lone \udcff"]), tmp_path)
    assert table["prompt"][0] == "lone \\udcff"
