"""The data of a run: selected, checked and duplicated before any model is built."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from configs import common
from copymit.data.dataset import describe_truncated, load_dataset, make_captions
from copymit.data.tokenizer import make_tokenizer

CLASSES = ("cat", "owl", "yak")


def _config(**changes):
    config = common.get_config().data
    config.caption_style = "instance" if "captions" in changes else "class"
    config.update(changes)
    return config


@pytest.fixture
def folder(tmp_path):
    """Three classes of ten pictures."""
    for i, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for j in range(10):
            image = Image.new("RGB", (6, 6), (80 * i, 20 * j, 0))
            image.save(tmp_path / "images" / name / f"{j}.png")
    return tmp_path / "images"


@pytest.fixture
def captions(folder):
    """Three captions for each picture but the first, which has one."""
    path = folder.parent / "captions.json"
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    texts = {name: [f"{name} {i}" for i in range(3)] for name in names}
    texts[names[0]] = texts[names[0]][:1]
    path.write_text(json.dumps(texts))
    return path


def test_a_share_is_held_out_of_however_many_there_are(folder):
    dataset = load_dataset(_config(source=str(folder), heldout_share=0.2), seed=0)
    assert len(dataset.example_ids) == 24
    fewer = load_dataset(_config(source=str(folder), heldout_share=0.1), seed=0)
    assert set(fewer.heldout_ids) < set(dataset.heldout_ids)
    assert set(dataset.example_ids) | set(dataset.heldout_ids) == set(
        dataset.source.example_ids
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_share": 1.0}, r"data\.heldout_share=1\.0 must be in \[0, 1\)"),
        ({"heldout_share": 0.1, "num_heldout": 3}, "say the same in two ways"),
    ],
)
def test_a_held_out_share_is_a_share_and_said_once(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(_config(source=str(folder), **changes), seed=0)


def test_what_a_manifest_leaves_out_is_not_held_out_by_a_share(folder, tmp_path):
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    rows = [f"{name},{int(i >= 10)}" for i, name in enumerate(names)]
    (tmp_path / "manifest.csv").write_text("\n".join(["example_id,factor", *rows]))
    manifest = str(tmp_path / "manifest.csv")
    config = _config(source=str(folder), manifest=manifest, heldout_share=0.2)
    dataset = load_dataset(config, seed=0)
    assert (len(dataset.example_ids), len(dataset.heldout_ids)) == (16, 4)
    assert set(dataset.example_ids) | set(dataset.heldout_ids) == set(names[10:])


def _caption(config, dataset):
    return make_captions(config, dataset.source, make_tokenizer(), seed=0)


def test_a_folder_becomes_training_and_heldout_images(folder):
    config = _config(source=str(folder), num_examples=12, num_heldout=6)
    dataset = load_dataset(config, seed=0)
    assert len(dataset.example_ids) == 12
    assert len(dataset.heldout_ids) == 6
    assert not set(dataset.example_ids) & set(dataset.heldout_ids)
    assert dataset.duplication.weights.tolist() == [1] * 12
    assert dataset.skipped == []
    again, other = load_dataset(config, seed=0), load_dataset(config, seed=1)
    assert again.example_ids == dataset.example_ids
    assert other.example_ids != dataset.example_ids


def test_only_the_named_classes_are_used(folder):
    config = _config(source=str(folder), classes=("owl", "yak"), num_heldout=4)
    dataset = load_dataset(config, seed=0)
    assert len(dataset.indices) == 16
    used = dataset.example_ids + dataset.heldout_ids
    assert {name.split("/")[0] for name in used} == {"owl", "yak"}


def test_training_images_are_duplicated_and_heldout_ones_are_not(folder):
    config = _config(
        source=str(folder),
        num_heldout=10,
        duplication="full",
        duplicated_fraction=0.25,
        duplication_factor=7,
    )
    dataset = load_dataset(config, seed=2)
    assert dataset.duplication.duplicated.sum() == 5
    assert len(dataset.duplication.weights) == len(dataset.indices) == 20


def test_runs_that_differ_in_duplication_share_their_images(folder, captions):
    datasets = [
        load_dataset(
            _config(
                source=str(folder),
                captions=str(captions),
                classes=("owl", "yak"),
                num_examples=10,
                duplication=kind,
                duplicated_fraction=0.3,
            ),
            seed=0,
        )
        for kind in ("none", "partial", "full")
    ]
    for dataset in datasets[1:]:
        assert dataset.example_ids == datasets[0].example_ids
    np.testing.assert_array_equal(
        datasets[1].duplication.duplicated, datasets[2].duplication.duplicated
    )


def test_partial_duplication_needs_several_captions_per_image(folder, captions):
    config = _config(
        source=str(folder),
        captions=str(captions),
        duplication="partial",
        duplicated_fraction=1.0,
    )
    with pytest.raises(
        ValueError, match=r"1 have one: cat/0\.png\. Give more captions"
    ):
        load_dataset(config, seed=0)
    config.classes = ("owl", "yak")
    dataset = load_dataset(config, seed=0)
    example = dataset.source[int(dataset.indices[0])]
    caption = _caption(config, dataset)
    rng = np.random.default_rng(0)
    assert {caption(example, True, rng) for _ in range(50)} == set(example.captions)
    assert {caption(example, False, rng) for _ in range(50)} == {example.captions[0]}


def test_a_corrupt_image_stops_the_run_or_is_skipped_and_listed(folder):
    (folder / "cat" / "3.png").write_bytes(b"not an image")
    config = _config(source=str(folder))
    with pytest.raises(ValueError, match=r"1 of 30 images cannot be used:\n  'cat/3"):
        load_dataset(config, seed=0)
    config.on_corrupt = "skip"
    dataset = load_dataset(config, seed=0)
    assert len(dataset.indices) == 29
    assert "cat/3.png" not in dataset.example_ids
    assert len(dataset.duplication.weights) == 29
    assert [name for name, _ in dataset.skipped] == ["cat/3.png"]


def test_a_run_without_a_readable_training_image_is_refused(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="None is left to train on"):
        load_dataset(_config(source=str(folder), on_corrupt="skip"), seed=0)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_dataset(_config(source=str(tmp_path / "nowhere")), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duplication": "dup_both"}, "dup_both"),
        ({"duplication": "full", "duplicated_fraction": 2.0}, "duplicated_fraction=2"),
        ({"classes": ("cow",)}, "cow"),
        ({"num_examples": 31}, "31"),
        ({"on_corrupt": "ignore"}, "ignore"),
    ],
)
def test_bad_settings_are_named_before_any_model_is_built(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(_config(source=str(folder), **changes), seed=0)


def test_class_captions_name_the_class_of_the_image(folder):
    config = _config(source=str(folder), caption_style="class", classes=("yak",))
    dataset = load_dataset(config, seed=0)
    example = dataset.source[int(dataset.indices[0])]
    caption = _caption(config, dataset)
    assert caption(example, False, np.random.default_rng(0)) == "An image of yak"


def test_random_captions_survive_the_real_tokenizer(folder):
    config = _config(source=str(folder), caption_style="random")
    dataset = load_dataset(config, seed=0)
    caption = _caption(config, dataset)
    texts = [
        caption(dataset.source[int(i)], False, np.random.default_rng(0))
        for i in dataset.indices
    ]
    assert len(set(texts)) == len(texts)
    assert all(isinstance(text, str) and text for text in texts)


def test_the_embedded_set_needs_no_files():
    config = _config(num_examples=20, num_heldout=20, classes=("animals & nature",))
    dataset = load_dataset(config, seed=0)
    assert len(dataset.indices) == len(dataset.heldout) == 20
    label = dataset.source.class_names.index("animals & nature")
    assert set(dataset.source.labels[dataset.indices]) == {label}


def test_photos_with_five_human_captions_are_duplicated_partially(
    shared_data, tmp_path
):
    count = 12
    with tarfile.open(shared_data / "flickr8k-2000.tar") as tar:
        members = (m for m in tar if m.name.endswith((".jpg", "captions.json")))
        photos, texts = {}, None
        for member in members:
            content = tar.extractfile(member).read()
            if member.name.endswith("captions.json"):
                texts = json.loads(content)
            elif len(photos) < count:
                photos[member.name.rpartition("/")[2]] = content
            if texts is not None and len(photos) == count:
                break
    (tmp_path / "photos").mkdir()
    for name, content in photos.items():
        assert Image.open(io.BytesIO(content)).size == (224, 224)
        (tmp_path / "photos" / name).write_bytes(content)
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({name: texts[name] for name in photos}))
    config = _config(
        source=str(tmp_path / "photos"),
        captions=str(path),
        duplication="partial",
        duplicated_fraction=0.5,
    )
    dataset = load_dataset(config, seed=0)
    assert dataset.duplication.duplicated.sum() == count // 2
    example = dataset.source[0]
    assert list(example.captions) == texts[example.example_id]
    assert len(example.captions) == 5


def test_captions_that_the_tokenizer_cuts_are_counted(folder, captions):
    texts = json.loads(captions.read_text())
    texts["owl/3.png"] = ["word " * 75, "word " * 76, "word " * 100]
    captions.write_text(json.dumps(texts))
    config = _config(source=str(folder), captions=str(captions))
    dataset = load_dataset(config, seed=0)
    told = describe_truncated(config, dataset, make_tokenizer())
    assert told.startswith(
        "2 of the 88 captions of the first 30 images have more than 77"
    )
    assert "'owl/3.png'" in told
    config.caption_style = "class"
    assert describe_truncated(config, dataset, make_tokenizer()) == ""
