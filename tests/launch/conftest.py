"""What the programs accept, and the figures that a test made, as fixtures."""

import ast
from pathlib import Path

import matplotlib.figure
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flags_of():
    """program -> names of its flags, read without importing it."""

    def flags(program):
        found = {"config"}
        for path in (ROOT / program, ROOT / "copymit" / "console.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(getattr(node, "func", None), "attr", "")
                if name.startswith("DEFINE_"):
                    found.add(node.args[0].value)
        return found

    return flags


@pytest.fixture
def figures(monkeypatch):
    """Figures that are drawn from now on, to look into."""
    made = []
    begin = matplotlib.figure.Figure.__init__

    def spy(figure, *args, **kwargs):
        made.append(figure)
        begin(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", spy)
    return made
