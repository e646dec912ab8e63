"""The cloud in a folder, and the figures that a test made, as fixtures."""

import os

import matplotlib.figure
import pytest

from launch import tpu
from tests.launch.cloud_fixture import FakeCloud


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A `FakeCloud` whose gcloud is the one on PATH, and its small project."""
    fake = FakeCloud(tmp_path)
    fake.make_project()
    monkeypatch.setenv("PATH", f"{fake.path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(tmp_path))
    monkeypatch.setattr(tpu, "_ROOT", fake.project)
    yield fake
    fake.end()


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
