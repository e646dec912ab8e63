"""The official builder of Imagenette, on an archive that is there."""

import json
import tarfile

import pytest

from copymit.data.folder_source import IMAGENETTE_CLASSES
from copymit.data.prepare import imagenette
from copymit.data.prepare.__main__ import main
from copymit.data.prepare.imagenette import open_imagenette
from copymit.data.record_source import RecordSource


@pytest.fixture
def builder():
    pytest.importorskip("tensorflow", reason="needs the extra `prepare`")
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `prepare`")


@pytest.fixture
def unpacked(tmp_path, noise):
    """Two photos a class, one of them for validation."""
    for number, wnid in enumerate(IMAGENETTE_CLASSES):
        for split in ("train", "val"):
            path = tmp_path / "imagenette2-160" / split / wnid / f"{wnid}_{split}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(noise(number, kind="JPEG"))
    return tmp_path / "imagenette2-160"


@pytest.mark.usefixtures("builder")
@pytest.mark.parametrize("packed", [True, False])
def test_photos_labels_and_captions_are_joined(unpacked, tmp_path, noise, packed):
    archive = unpacked
    if packed:
        archive = tmp_path / "imagenette2-160.tgz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(unpacked, "imagenette2-160")
    captions = tmp_path / "captions.json"
    texts = {
        f"train/{w}/{w}_train.JPEG": [f"photo {w}", "other"] for w in IMAGENETTE_CLASSES
    }
    captions.write_text(json.dumps(texts))
    output = tmp_path / "out"
    command = ["imagenette", f"--archive={archive}", f"--output={output}"]
    main([*command, f"--captions={captions}"])
    prepared = RecordSource(output)
    assert prepared.class_names == tuple(IMAGENETTE_CLASSES.values())
    for i, wnid in enumerate(IMAGENETTE_CLASSES):
        example = prepared[i]
        assert example.example_id == f"{wnid}/{wnid}_train.JPEG"
        assert example.captions == (f"photo {wnid}", "other")
        assert (example.label, example.image) == (i, noise(i, kind="JPEG"))


@pytest.mark.usefixtures("builder")
def test_the_other_split_can_be_chosen(unpacked):
    with open_imagenette(
        "160px-v2", archive=str(unpacked), split="validation"
    ) as source:
        assert source.example_ids[0] == "n01440764/n01440764_val.JPEG"


@pytest.mark.usefixtures("builder")
def test_images_that_the_builder_does_not_read_are_named(unpacked):
    (unpacked / "train/n01440764/x.png").write_bytes(b"")
    with (
        pytest.raises(ValueError, match=r"1 images of .*'n01440764/x\.png'"),
        open_imagenette("160px-v2", archive=str(unpacked)),
    ):
        pass


def test_a_damaged_archive_is_named(unpacked, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenette, "_make_builder", lambda *_: None)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.add(unpacked, "imagenette2-160")
    data = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(data[: len(data) // 2])
    with (
        pytest.raises(ValueError, match=r"a\.tgz is not a whole tar file"),
        open_imagenette("160px-v2", archive=str(tmp_path / "a.tgz")),
    ):
        pass


def test_a_member_that_leaves_the_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenette, "_make_builder", lambda *_: None)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with (
        pytest.raises(ValueError, match="outside the destination"),
        open_imagenette("160px-v2", archive=str(tmp_path / "a.tar")),
    ):
        pass
    assert not (tmp_path / "outside").exists()


def test_another_layout_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(imagenette, "_make_builder", lambda *_: None)
    with (
        pytest.raises(ValueError, match="0 folders 'train'"),
        open_imagenette("160px-v2", archive=str(tmp_path)),
    ):
        pass


def test_without_tensorflow_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with (
        pytest.raises(ValueError, match=r"the extra `prepare`.*prepare folder"),
        open_imagenette("160px-v2", archive=str(tmp_path)),
    ):
        pass
