"""Published models in miniature, in folders."""

import functools
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from tests.pretrained.miniatures import GEOMETRIES, make_pipeline


@pytest.fixture(scope="session")
def _published(tmp_path_factory):
    @functools.cache
    def publish(name: str) -> Path:
        folder = tmp_path_factory.mktemp("published") / name
        make_pipeline(name).save_pretrained(folder)
        return folder

    return publish


@pytest.fixture(params=GEOMETRIES)
def geometry(request) -> str:
    """Every published geometry in turn."""
    return request.param


@pytest.fixture
def published(_published, geometry) -> Path:
    """Every published model in turn; not to be written to."""
    return _published(geometry)


@pytest.fixture
def sd14(_published) -> Path:
    """The model of SD 1.4's geometry; not to be written to."""
    return _published("1-4")


@pytest.fixture
def copy(sd14, tmp_path) -> Path:
    """The model of SD 1.4's geometry, to be changed."""
    return Path(shutil.copytree(sd14, tmp_path / "copy"))


class _Bucket(MemoryFileSystem):
    """A bucket in memory under the name of the one that epath asks fsspec for."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
    """A folder in a bucket."""
    filesystem = _Bucket()
    filesystem.store.clear()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: filesystem)
    folder = epath.Path("gs://bucket/models")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
