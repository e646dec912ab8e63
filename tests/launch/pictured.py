"""Pairs of pictures in a sweep whose programs are not run."""

import dataclasses

import pandas as pd
from etils import epath

from copymit.report.evaluated_run import list_generations
from copymit.report.generation_table import (
    tabulate_generations,
    write_generation_table,
)
from copymit.report.kept_pairs import write_kept_pairs
from tests.report.test_gallery import small_run


def write_pairs(evaluation, prompt="prompt", count=24):
    """Writes the pairs of an evaluation and its table, as the report stage does.

    Generation i is prompted by image i (mod 10), of which the first three are duplicated;
    the most similar is an exact copy.
    """
    run = small_run()
    references = [f"r/{i}.png" for i in range(10)]
    duplication = pd.DataFrame(
        {
            "example_id": references,
            "weight": 10,
            "duplicated": [i < 3 for i in range(10)],
        }
    )
    found = list_generations(run)
    measured = pd.DataFrame(
        {
            "generation": [g.id for g in found],
            "grade": ["exact"] + 29 * ["none"],
            "copy_of": [found[0].reference] + 29 * [None],
            "nearest_entropy": range(30),
        }
    )
    prompts = run.prompts.assign(prompt=[f"{prompt} {i}" for i in range(30)])
    run = dataclasses.replace(
        run, duplication=duplication, measured=measured, prompts=prompts
    )
    generations = list_generations(run)
    folder = epath.Path(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = write_kept_pairs(folder, run, generations, count)
    table = tabulate_generations(run, generations, pairs)
    write_generation_table(folder, table)
    return table
