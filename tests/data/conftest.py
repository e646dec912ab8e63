"""Two folders of images that several sources are tested with."""

import pytest

from tests.data.folders import write_images


@pytest.fixture
def flat(tmp_path):
    return write_images(tmp_path / "flat", "b.png", "a.png", "c.png")


@pytest.fixture
def classes(tmp_path):
    return write_images(
        tmp_path / "classes", "owl/2.png", "owl/1.png", "cat/2.png", "cat/3.png"
    )
