"""What the manual says of names and numbers is what the programs know."""

import re

import pytest

from copymit.cli.meanings import meanings as settings_by_name
from copymit.embedding.registry import EMBEDDERS
from copymit.mitigation.detector import DETECTORS
from copymit.mitigation.registry import MITIGATIONS
from copymit.scores.names import SCORES
from docs import reference
from tests.docs.pages import DOCS, README

PAGES = reference.committed_pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_written_from_its_registry(name):
    assert (DOCS / name).read_text() == PAGES[name], "run: python -m docs.reference"


@pytest.mark.parametrize("name", PAGES)
def test_nothing_of_a_registry_breaks_the_tables(name):
    columns = 0
    for line in PAGES[name].splitlines():
        if re.fullmatch(r"[|-]+", line):
            columns = line.count("|")
        elif line.startswith("|") and columns:
            assert line.count("|") == columns, line
        elif not line:
            columns = 0


def test_the_pages_name_every_embedder_mitigation_and_detector():
    for page, names in (
        ("embedders.md", EMBEDDERS),
        ("mitigations.md", [*MITIGATIONS, *DETECTORS]),
    ):
        assert not [name for name in names if f"| `{name}`" not in PAGES[page]]


def test_a_meaning_stands_alone():
    """Tables are sorted and filtered: a row cannot lean on the one above it."""
    leans = re.compile(
        r"^(its|their|those|them|and|at most|of (both|it|the (same|last|latter)))\b"
        r"|\bthe same\b|\bthat corr"
    )
    meanings = {s.key: s.meaning for s in SCORES}
    meanings |= {d.name: d.title for d in DETECTORS.values()}
    meanings |= settings_by_name()
    assert not {name: m for name, m in meanings.items() if leans.search(m)}


def test_readme_counts_mitigations_and_detectors():
    text = f"{len(MITIGATIONS)} mitigations and {len(DETECTORS)} detectors"
    assert text in README.read_text()


def test_the_page_on_training_names_only_mitigations_that_there_are():
    text = (DOCS / "training.md").read_text()
    _, _, table = text.partition("| in training | at generation |")
    named = set(re.findall(r"`(\w+)`", table.partition("\n\n")[0]))
    assert named == MITIGATIONS.keys()
