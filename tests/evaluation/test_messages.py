"""What a user meets who gives images or settings in another way than most."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import evaluate as program
from copymit.embedding.image_set import open_images
from copymit.evaluation import api, evaluate


@pytest.fixture
def photos(tmp_path, rng):
    """Two images two folders deep, one of them a link out of the folder."""
    deep = tmp_path / "photos" / "2024" / "may"
    deep.mkdir(parents=True)
    for path in (deep / "a.png", tmp_path / "elsewhere.png"):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (deep / "b.png").symlink_to(tmp_path / "elsewhere.png")
    return tmp_path / "photos"


def test_a_pattern_finds_images_of_any_depth_and_behind_links(photos):
    found = open_images("references", f"{photos}/**/*.png", None)
    assert found.ids == ["2024/may/a.png", "2024/may/b.png"]
    assert found.read(1).shape == (16, 16, 3)


def test_images_too_deep_and_links_are_refused_with_the_pattern_that_finds_them(photos):
    with pytest.raises(
        ValueError, match=r"too deep.* Or give a pattern: '.*\*\*/\*\.png"
    ):
        open_images("references", str(photos), None)
    with pytest.raises(
        ValueError, match=r"links leave .* Or give a pattern: '.*may/\*"
    ):
        open_images("references", str(photos / "2024" / "may"), None)
    with pytest.raises(FileNotFoundError, match=r"no image matches '.*nothing\*'"):
        open_images("references", f"{photos}/nothing*", None)


def test_a_corrupt_image_names_the_setting_that_leaves_it_out(photos):
    (photos / "2024" / "may" / "a.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"a\.png.*--eval\.on_corrupt=skip"):
        open_images("generations", f"{photos}/**/*.png", None)


@pytest.fixture
def opened(monkeypatch):
    """The settings that an evaluation is opened with; it goes no further."""

    def stop(*args):
        raise KeyboardInterrupt(args[3])

    monkeypatch.setattr(api, "open_pair", stop)

    def settings(**given):
        with pytest.raises(KeyboardInterrupt) as stopped:
            evaluate([], [], workdir="unused", **given)
        return stopped.value.args[0]

    return settings


def test_one_embedder_may_be_given_by_its_name(opened):
    assert opened(embedders="pixels_16").embedders == ("pixels_16",)


def test_a_setting_of_another_type_is_named():
    with pytest.raises(ValueError, match="tiles='two' is a str: give a int, as 0"):
        evaluate([], [], workdir="unused", tiles="two")


def test_settings_of_an_audit_need_no_config_file(tmp_path):
    """The command line is parsed as it is by the program, and nothing is evaluated."""
    code = (
        "import evaluate; from absl import flags; import sys; flags.FLAGS(sys.argv);"
        "from copymit.evaluation import subject;"
        "subject.open_pair = lambda *args: print(args[3].tiles, args[3].embedders);"
        "evaluate._open_subject()"
    )
    flags = ["--generations=a", "--references=b", "--eval.tiles=2"]
    flags += ["--eval.embedders=('pixels',)", f"--workdir={tmp_path}"]
    root = os.path.dirname(program.__file__)
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2 ('pixels',)\n"
