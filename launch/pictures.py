"""The page of a sweep's pictures: generations of each trial beside training images.

They are those that evaluations leave in `pairs/`, and are linked to, not copied: the page
belongs into the sweep's directory.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
from etils import epath

from copymit.report.gallery import shorten
from copymit.report.kept_pairs import FOLDER
from copymit.report.template import encode, render_page
from launch.tables import Row, Table
from launch.trials import Plan

# By whether the image that prompted a generation is duplicated.
_KINDS = {
    True: "Prompts of duplicated training images",
    False: "Prompts of training images that are there once",
    None: "Other prompts",
}
_COLUMNS = ("generation", "nearest_reference", "similarity", "pair")
_PERHAPS = (
    "prompt",
    "prompted_reference",
    "prompted_is_duplicated",
    "grade",
    "copy_of",
)
_Record = dict[str, Any]


class Pictured(NamedTuple):
    """A trial.

    Attributes:
      score: the first of the table, of this trial alone.
      kinds: its pairs by kind of prompt, each the most similar first.
      note: what is to be said where there are none.
      same: name of the trial whose pictures are its own, too; "" = none.
    """

    name: str
    seed: str
    score: str
    kinds: Mapping[str, Sequence[_Record]]
    note: str = ""
    same: str = ""


class Section(NamedTuple):
    """A setting by name, with its trials."""

    title: str
    setting: Row
    trials: Sequence[Pictured]


def draw_page(
    table: Table,
    plans: Sequence[Plan],
    root: str,
    title: str,
    *,
    missing: Mapping[str, str],
    has_figure: bool,
) -> bytes:
    """Renders the page; the same results give the same bytes.

    Args:
      plans: of all trials of the table.
      title: name of the sweep, and of its figure.
      missing: what is known of the trials that have none.
    """
    by_name = {made.trial.name: made for made in plans}
    first: dict[str, str] = {}  # by evaluation, the trial that shows its pictures
    for name, made in by_name.items():
        if name not in missing:
            first.setdefault(made.scores, name)
    sections = [
        Section(
            _name(table.labels, row.values),
            row,
            [
                _picture(by_name[name], root, score, first, missing)
                for name, score in row.trials.items()
            ],
        )
        for row in table.rows
    ]
    page = render_page(
        "sweep.html.jinja",
        images="'self' file: data:",
        title=title,
        columns=table.columns,
        legend=table.legend,
        sections=sections,
        num_missing=len(missing),
        num_trials=len(plans),
        figure=quote(f"{title}.png") if has_figure else "",
        blurred=any(made.trial.evaluate.get("eval.blur") for made in plans),
    )
    return encode(page)


def _name(labels: Sequence[str], values: Sequence[str]) -> str:
    named = zip(labels, values, strict=True)
    return ", ".join(f"{label} {value}" for label, value in named if value)


def _picture(
    made: Plan,
    root: str,
    score: str,
    first: Mapping[str, str],
    missing: Mapping[str, str],
) -> Pictured:
    name = made.trial.name
    about = Pictured(name, str(made.trial.labels.get("seed", "")), score, {})
    if name in missing:
        return about._replace(note=missing[name])
    if first[made.scores] != name:
        return about._replace(same=first[made.scores])
    kinds = _by_kind(read_pairs(root, made.scores))
    return about._replace(kinds=kinds, note="" if kinds else "no pictures are kept")


def read_pairs(root: str, evaluation: str) -> list[_Record]:
    """Reads which pairs an evaluation left, the most similar first.

    Args:
      evaluation: directory, below the sweep's.
    Returns:
      What the table of generations says of each, and `picture`, its address from the
      sweep's directory. Whatever the table says, it is a file of that evaluation.
    """
    directory = epath.Path(root) / evaluation
    path, folder = directory / "generations.parquet", directory / FOLDER
    if not path.exists() or not folder.exists():
        return []
    table = pd.read_parquet(io.BytesIO(path.read_bytes()))
    if "pair" not in table:
        return []
    table = table[table["pair"].isin([file.name for file in folder.iterdir()])]
    table = table.reindex(columns=[*_COLUMNS, *_PERHAPS])
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        {
            **{str(key): value for key, value in record.items()},
            "picture": quote(f"{evaluation}/{FOLDER}/{record['pair']}"),
            "prompt": shorten(str(record["prompt"] or "")),
            "q": None,
            "tile_l2": None,
        }
        for record in records
    ]


def _by_kind(pairs: Sequence[_Record]) -> dict[str, list[_Record]]:
    kinds = {
        title: [p for p in pairs if p["prompted_is_duplicated"] == duplicated]
        for duplicated, title in _KINDS.items()
    }
    return {title: found for title, found in kinds.items() if found}
