"""A few pairs of pictures stay of an evaluation: which, and as what files."""

import dataclasses

import numpy as np
import pandas as pd
from etils import epath
from PIL import Image

from copymit.report.evaluated_run import Generation, list_generations
from copymit.report.kept_pairs import choose_kept, write_kept_pairs
from tests.report.test_gallery import small_run


def made(number, similarity, reference, prompted=None, copy_of=None):
    return Generation(
        f"g{number}", reference, similarity, prompted=prompted, copy_of=copy_of
    )


def ids(generations):
    return [g.id for g in generations]


def test_half_are_of_prompts_of_duplicated_images_the_most_similar_first():
    generations = [made(i, 0.9 - i / 100, f"near{i}", f"p{i}", None) for i in range(40)]
    twice = {f"p{i}" for i in range(0, 40, 3)}
    chosen = ids(choose_kept(generations, twice, 6))
    assert chosen == ["g0", "g3", "g6", "g1", "g2", "g4"]


def test_where_one_half_is_short_the_other_has_more():
    generations = [made(i, 0.9 - i / 100, f"near{i}", f"p{i}") for i in range(10)]
    assert ids(choose_kept(generations, {"p9"}, 4)) == ["g9", "g0", "g1", "g2"]
    most = {f"p{i}" for i in range(9)}
    assert ids(choose_kept(generations, most, 4)) == ["g0", "g1", "g2", "g9"]
    assert len(choose_kept(generations, most, 24)) == 10
    assert choose_kept(generations, most, 0) == []


def test_no_training_image_comes_again_before_all_have_been_there():
    near = ["often", "often", "often", "once", "copied", "twice", "twice"]
    generations = [made(i, 0.9 - i / 100, name) for i, name in enumerate(near)]
    generations[4] = generations[4]._replace(reference="often", copy_of="copied")
    assert ids(choose_kept(generations, (), 5)) == ["g0", "g3", "g4", "g5", "g1"]


def run_with(side, **changes):
    """A run of noise whose images are told apart by their mean."""

    def read(image_id):
        rng = np.random.default_rng(sum(map(ord, image_id)))
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        return pixels // 2 + (120 if image_id.startswith("r/") else 0)

    run = dataclasses.replace(small_run(), read_generation=read, read_reference=read)
    return dataclasses.replace(run, **changes)


def test_each_is_a_small_file_generation_left_training_image_right(tmp_path):
    run = run_with(400)
    found = list_generations(run)
    names = write_kept_pairs(epath.Path(tmp_path), run, found, 24)
    files = {path.name: path for path in (tmp_path / "pairs").iterdir()}
    assert sorted(names.values()) == sorted(files)
    assert len(files) == 24
    assert sum(path.stat().st_size for path in files.values()) < 1_000_000
    assert names[found[0].id] == f"01-{found[0].id}.jpg"
    with Image.open(files[names[found[0].id]]) as picture:
        assert picture.format == "JPEG"
        assert picture.height == 128
        pixels = np.asarray(picture, float)
    assert pixels[:, :128].mean() < 80
    assert pixels[:, -128:].mean() > 160


def test_a_small_image_keeps_its_pixels_and_what_was_there_before_goes(tmp_path):
    run = run_with(16)
    found = list_generations(run)
    write_kept_pairs(epath.Path(tmp_path), run, found, 24)
    write_kept_pairs(epath.Path(tmp_path), run, found, 2)
    first, second = sorted((tmp_path / "pairs").iterdir())
    before = first.read_bytes()
    with Image.open(first) as picture:
        assert picture.size == (2 * 16 + 8, 16)
    write_kept_pairs(epath.Path(tmp_path), run, found, 2)
    assert first.read_bytes() == before
    assert write_kept_pairs(epath.Path(tmp_path), run, found, 0) == {}
    assert not second.exists()


def test_a_name_from_outside_names_no_file_elsewhere(tmp_path):
    matches = pd.DataFrame(
        {
            "generation": pd.Series(["../../up.png", "..", "\udcff"], dtype=object),
            "rank": 0,
            "reference": "r/1.png",
            "similarity": [0.9, 0.8, 0.7],
        }
    )
    run = run_with(8, matches=matches, prompts=None)
    names = write_kept_pairs(epath.Path(tmp_path), run, list_generations(run), 24)
    assert list(names.values()) == [
        "01-up-png.jpg",
        "02-nameless.jpg",
        "03-nameless.jpg",
    ]
    assert len(list((tmp_path / "pairs").iterdir())) == 3
