import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copymit.data.folder_source import IMAGENETTE_CLASSES, FolderSource
from copymit.data.images import decode_image
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.sources import (
    EmbeddedSource,
    kind_of,
    load_source,
    parse_token_ids,
    select_examples,
)
from copymit.embedding.image_set import open_source
from tests.data.folders import png, write_captions, write_images

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.mark.parametrize(
    ("caption", "token_ids"),
    [
        ("[49406, 320, 7]", [49406, 320, 7]),
        (" [ 1 ,2 ]\n", [1, 2]),
        ("[007]", [7]),
        ("[]", None),
        ("[1, -2]", None),
        ("[1.5]", None),
        ("[1,]", None),
        ("[9999999999]", None),
        ("[1] a cat", None),
        ("a cat", None),
        ("__import__('os')", None),
    ],
)
def test_token_ids_are_read_from_text_and_nothing_else_is(caption, token_ids):
    assert parse_token_ids(caption) == token_ids


def test_load_source_opens_the_embedded_set_or_a_folder(flat, classes, tmp_path):
    assert isinstance(load_source("fluent_emoji"), EmbeddedSource)
    path = write_captions(tmp_path / "c.json", {f"{i}.png": [i] for i in "abc"})
    source = load_source(str(flat), captions=str(path), captions_format="relative")
    assert source[0].captions == ("a",)
    named = load_source(str(classes), class_names={"cat": "c", "owl": "o"})
    assert named.class_names == ("c", "o")


def test_the_embedded_set_takes_no_captions(tmp_path):
    with pytest.raises(ValueError, match=r"give none, or give \./fluent_emoji"):
        load_source("fluent_emoji", captions=str(tmp_path / "c.json"))
    with pytest.raises(ValueError, match="has captions and class names of its own"):
        load_source("fluent_emoji", class_names={})


@pytest.fixture(scope="module")
def emoji():
    return EmbeddedSource()


def test_a_selection_is_sorted_disjoint_and_seeded(emoji):
    first, same, other = (
        select_examples(emoji, num_examples=300, num_heldout=50, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.train, same.train)
    np.testing.assert_array_equal(first.heldout, same.heldout)
    assert not np.array_equal(first.train, other.train)
    for indices, count in ((first.train, 300), (first.heldout, 50)):
        assert indices.dtype == np.int64
        assert len(indices) == count
        assert (np.diff(indices) > 0).all()
    assert not np.intersect1d(first.train, first.heldout).size


def test_a_selection_is_spread_over_the_whole_source(emoji):
    train = select_examples(emoji, num_examples=400, seed=0).train
    # Mean of 400 draws from 0..1851: standard deviation about 24.
    assert abs(train.mean() - 925.5) < 5 * 24


def test_neither_number_changes_what_the_other_draws(emoji):
    small = select_examples(emoji, num_examples=100, num_heldout=20, seed=3)
    large = select_examples(emoji, num_examples=900, num_heldout=20, seed=3)
    alone = select_examples(emoji, num_examples=100, seed=3)
    np.testing.assert_array_equal(small.heldout, large.heldout)
    np.testing.assert_array_equal(small.train, alone.train)
    assert np.isin(small.train, large.train).all()


@pytest.mark.parametrize("num_examples", [None, 0])
def test_no_number_takes_all_that_remain(emoji, num_examples):
    selection = select_examples(
        emoji, num_examples=num_examples, num_heldout=52, seed=0
    )
    assert len(selection.train) == 1800
    everything = np.union1d(selection.train, selection.heldout)
    np.testing.assert_array_equal(everything, np.arange(1852))


def test_only_the_named_classes_are_drawn(emoji):
    classes = ("food & drink", "animals & nature")
    selection = select_examples(
        emoji, classes=classes, num_examples=None, num_heldout=10, seed=0
    )
    expected = {emoji.class_names.index(name) for name in classes}
    assert set(emoji.labels[selection.train]) == expected
    assert set(emoji.labels[selection.heldout]) <= expected
    assert len(selection.train) + 10 == np.isin(emoji.labels, list(expected)).sum()


def test_unknown_classes_are_named_with_the_known(emoji, flat):
    message = "unknown classes cats, dogs; known: smileys & emotion, people & body"
    with pytest.raises(ValueError, match=message):
        select_examples(
            emoji, classes=["dogs", "flags", "cats"], num_examples=1, seed=0
        )
    with pytest.raises(ValueError, match="known: none, this source has no classes"):
        select_examples(FolderSource(flat), classes=["x"], num_examples=1, seed=0)
    with pytest.raises(ValueError, match="a list of names, got the text 'flags'"):
        select_examples(emoji, classes="flags", num_examples=1, seed=0)


def test_too_few_examples_are_refused_with_both_numbers(flat, classes):
    source = FolderSource(flat)
    message = "3 training and 1 held-out examples were asked for, .* only 3: ask"
    with pytest.raises(ValueError, match=message):
        select_examples(source, num_examples=3, num_heldout=1, seed=0)
    message = r"at least 1 training and 3 held-out .* only 3"
    with pytest.raises(ValueError, match=message):
        select_examples(source, num_examples=None, num_heldout=3, seed=0)
    with pytest.raises(ValueError, match="only 2 in owl: ask for fewer"):
        select_examples(FolderSource(classes), classes=["owl"], num_examples=3, seed=0)


@pytest.mark.parametrize("name", ["num_examples", "num_heldout", "seed"])
def test_negative_numbers_are_refused(emoji, name):
    numbers = {"num_examples": 5, "num_heldout": 5, "seed": 0, name: -1}
    with pytest.raises(ValueError, match=r"must not be negative, got .*-1"):
        select_examples(emoji, **numbers)


def extract(archive: Path, folder: Path, is_wanted) -> Path:
    """Extracts the wanted files flat or by class, as they lie in the archive."""
    if not archive.is_file():
        pytest.skip(f"needs ../shared/data/{archive.name}")
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if m.isfile() and is_wanted(m.name)]
        tar.extractall(folder, wanted, filter="data")
    return folder


def test_real_imagenette_has_readable_classes(tmp_path):
    folder = extract(
        SHARED_DATA / "imagenette2-224.tar",
        tmp_path,
        lambda name: "/val/" in name and name.endswith("0.JPEG"),
    )
    source = load_source(str(folder / "imagenette2-224" / "val"))
    assert source.class_names == tuple(IMAGENETTE_CLASSES.values())
    assert set(source.labels) == set(range(10))
    example = source[0]
    assert example.example_id.startswith("n01440764/")
    assert example.captions == ()
    assert decode_image(example.image, example.example_id).size == (224, 224)
    # Of the splits only one is there.
    assert len(load_source(str(folder / "imagenette2-224"))) == len(source)


def test_real_flickr_captions_fit_their_images(tmp_path):
    folder = extract(
        SHARED_DATA / "flickr8k-2000.tar",
        tmp_path,
        lambda name: name.endswith(("captions.json", "00.jpg", "5c.jpg")),
    )
    path = folder / "flickr8k-2000" / "captions.json"
    images = path.parent / "images"
    captions = json.loads(path.read_text())
    present = {name: captions[name] for name in os.listdir(images)}
    message = f"{len(captions) - len(present)} captions for images that are absent"
    with pytest.raises(ValueError, match=message):
        load_source(str(images), captions=str(path))
    write_captions(path, present)
    source = load_source(str(images), captions=str(path))
    assert set(source.caption_counts) == {5}
    assert all(
        source[i].captions == tuple(present[source.example_ids[i]])
        for i in range(len(source))
    )
    write_captions(path, {f"/author/images/{k}": v for k, v in present.items()})
    rooted = load_source(str(images), captions=str(path))
    assert rooted[0] == source[0]


@pytest.fixture
def unprepared(tmp_path):
    """What img2dataset and `datasets` leave, and tar files of anyone."""
    row = {"image": [{"bytes": png(), "path": None}], "text": ["a cat"]}
    for folder in ("repository/data", "saved"):
        (tmp_path / folder).mkdir(parents=True)
    pq.write_table(
        pa.table(row), tmp_path / "repository/data/train-00000-of-00001.parquet"
    )
    with (
        pa.OSFile(str(tmp_path / "saved/data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, pa.table(row).schema) as out,
    ):
        out.write_table(pa.table(row))
    (tmp_path / "saved/state.json").write_text("{}")
    write_images(tmp_path / "files", "00000/000000000.png")
    (tmp_path / "files/00000/000000000.txt").write_text("a cat")
    (tmp_path / "files/00000_stats.json").write_text("{}")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/x.tar", "w") as tar:
        for name in ("000000000.png", "000000000.txt"):
            tar.add(tmp_path / "files/00000" / name, name)
    return tmp_path


KINDS = {
    "repository": "huggingface",
    "saved": "huggingface",
    "files": "img2dataset",
    "shards": "img2dataset",
}


def test_what_must_be_prepared_is_told_with_the_command(unprepared):
    for folder, kind in KINDS.items():
        path = str(unprepared / folder)
        command = f"python -m copymit.data.prepare {kind} {path} --output=DIR"
        with pytest.raises(ValueError, match=re.escape(command)):
            load_source(path)
    with pytest.raises(ValueError, match=r"prepare img2dataset .*shards --output"):
        load_source(str(unprepared / "shards" / "*.tar"))


def test_audits_open_folders_of_every_kind(unprepared):
    for folder in KINDS:
        source = open_source(str(unprepared / folder))
        assert source[0][1:3] == (png(), ("a cat",))
    write_data_set(source, unprepared / "prepared", Settings())
    prepared = open_source(str(unprepared / "prepared"))
    assert prepared[0] == source[0]


def test_a_table_or_an_archive_among_images_does_not_change_what_a_folder_is(tmp_path):
    folder = write_images(tmp_path / "d", "cat/1.png", "owl/1.png")
    (folder / "metadata.parquet").write_bytes(b"x")
    (folder / "features.parquet").write_bytes(b"x")
    (folder / "backup.tar").write_bytes(b"x")
    assert kind_of(folder) == "images"
    assert len(load_source(str(folder))) == 2
