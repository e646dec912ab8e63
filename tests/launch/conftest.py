"""The cloud in a folder, as a fixture."""

import os

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
