"""The figures that a test made."""

import matplotlib.figure
import pytest


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
