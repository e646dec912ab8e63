"""Photos that the user has: found, counted, and the same in every start."""

import json

import numpy as np
import pytest
from PIL import Image

from copymit.project import PROJECT
from launch.photos import check_photos, read_places
from launch.trials import list_trials, load_sweep, plan

FIG3 = load_sweep("configs/sweeps.py:fig3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen photos with captions."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    for i in range(13):
        pixels = np.full((8, 8, 3), 20 * i, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
    texts = {f"{i}.png": [f"photo {i}", f"number {i}"] for i in range(13)}
    (root / "captions.json").write_text(json.dumps(texts))
    return root


def trials_of(train, heldout, places):
    sizes = {"data.num_examples": str(train), "data.num_heldout": str(heldout)}
    return list_trials(FIG3, "photos", 1, sizes, places)


def places_of(folder, **more):
    captions = str(folder / "captions.json")
    return read_places("photos", str(folder / "images"), captions, more.get("a", ""))


def test_enough_photos_pass_and_are_noted(folder, tmp_path):
    places = places_of(folder)
    for _ in range(2):
        check_photos(trials_of(8, 4, places), places, str(tmp_path), "fig3")
    assert json.loads((tmp_path / "photos.json").read_text())["count"] == 13


def test_too_few_are_one_clear_error(folder, tmp_path):
    places = places_of(folder)
    with pytest.raises(
        ValueError,
        match=r"fig3 trains on 10 photos with captions and compares with 4 others: "
        r".* has 13, 13 of them with captions; give --source=FOLDER .*docs/data\.md",
    ):
        check_photos(trials_of(10, 4, places), places, str(tmp_path), "fig3")
    assert not list(tmp_path.iterdir())


def test_other_photos_in_one_directory_are_refused(folder, tmp_path):
    places = places_of(folder)
    check_photos(trials_of(8, 4, places), places, str(tmp_path), "fig3")
    other = tmp_path / "other"
    other.mkdir()
    for path in (folder / "images").iterdir():
        (other / f"again-{path.name}").write_bytes(path.read_bytes())
        (other / f"again-{path.stem}.txt").write_text("text")
    places = read_places("photos", str(other), "", "")
    with pytest.raises(ValueError, match=r"holds trials of other photos \(13, where"):
        check_photos(trials_of(8, 4, places), places, str(tmp_path), "fig3")


def test_no_photos_are_one_clear_error(tmp_path):
    places = read_places("photos", str(tmp_path / "none"), "", "")
    with pytest.raises(FileNotFoundError, match=r"no photos in .*none: give --source"):
        check_photos(trials_of(8, 4, places), places, str(tmp_path), "fig3")


def test_where_things_lie_is_no_part_of_a_name_but_what_is_trained_is(folder):
    def first(**more):
        places = places_of(folder, **more)
        return plan(trials_of(8, 4, places)[0]).tasks[0]

    here = first()
    bare = plan(trials_of(8, 4, {})[0]).tasks[0]
    assert here.key == bare.key
    assert f"--config.data.source={folder}/images" in here.arguments
    tiny = first(a="madebyollin/taesd")
    assert "_taesd_" in tiny.key
    assert "--config.model.autoencoder.pretrained=madebyollin/taesd" in tiny.arguments


def test_what_lies_in_the_project_is_named_from_there():
    source = str(PROJECT / "configs")
    assert read_places("photos", source, "", "")["data.source"] == "configs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("small", "x", "", ""), r"--source=x is for --preset=photos and photos_cpu"),
        (("full", "", "", "y"), r"--autoencoder=y is for"),
        (("photos", "", "z", ""), r"--captions=z without --source"),
    ],
)
def test_flags_that_do_not_fit_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_places(*arguments)
