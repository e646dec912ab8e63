"""Folders as img2dataset leaves them, whole and interrupted."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from copymit.data.prepare.img2dataset import Img2datasetSource
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource


def facts(key, i):
    return {
        "key": key,
        "url": f"http://example.com/{i}.jpg",
        "similarity": 0.3 + i / 100,
        "AESTHETIC_SCORE": 5.0 + i,
        "caption": f"picture {i}",
        "status": "success",
    }


@pytest.fixture
def download(tmp_path, noise):
    """Writes two shards of three images; returns a function format -> folder."""

    def download(output_format):
        root = tmp_path / output_format
        root.mkdir()
        for shard in range(2):
            name = f"{shard:05d}"
            keys = [f"{name}{i:04d}" for i in range(3)]
            members = {}
            for i, key in enumerate(keys):
                number = 3 * shard + i
                members[f"{key}.jpg"] = noise(number, kind="JPEG")
                members[f"{key}.txt"] = f"picture {number}".encode()
                members[f"{key}.json"] = json.dumps(facts(key, number)).encode()
            if output_format == "files":
                (root / name).mkdir()
                for member, data in members.items():
                    (root / name / member).write_bytes(data)
            else:
                with tarfile.open(root / f"{name}.tar", "w") as tar:
                    for member, data in members.items():
                        entry = tarfile.TarInfo(member)
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
            status = ["success"] * 3 + ["failed_to_download"]
            table = {"key": [*keys, "x"], "status": status}
            pq.write_table(pa.table(table), root / f"{name}.parquet")
            (root / f"{name}_stats.json").write_text("{}")
        return root

    return download


@pytest.mark.parametrize("output_format", ["webdataset", "files"])
def test_images_captions_and_metadata_are_kept(
    download, tmp_path, noise, output_format
):
    source = Img2datasetSource(download(output_format))
    write_data_set(source, tmp_path / "out", Settings())
    prepared = RecordSource(tmp_path / "out")
    assert list(prepared.example_ids) == [
        f"{shard:05d}/{shard:05d}{i:04d}" for shard in range(2) for i in range(3)
    ]
    for i in range(6):
        assert prepared[i].image == noise(i, kind="JPEG")
        assert prepared[i].captions == (f"picture {i}",)
        assert prepared[i].label is None
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pydict()
    assert index["url"] == [f"http://example.com/{i}.jpg" for i in range(6)]
    assert index["similarity"] == [0.3 + i / 100 for i in range(6)]
    assert index["aesthetic_score"] == [5.0 + i for i in range(6)]
    assert index["width"] == [16] * 6


def test_a_drawn_part_has_the_number_asked_for(download, tmp_path):
    source = Img2datasetSource(download("webdataset"))
    write_data_set(source, tmp_path / "out", Settings(num_examples=4, seed=3))
    assert len(set(RecordSource(tmp_path / "out").example_ids)) == 4


def test_a_half_downloaded_tar_file_is_refused_or_skipped_and_listed(
    download, tmp_path
):
    root = download("webdataset")
    data = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(data[: len(data) // 3])
    with pytest.raises(ValueError, match=r"00001\.tar is not a whole"):
        Img2datasetSource(root)
    source = Img2datasetSource(root, skip_damaged=True)
    settings = Settings(on_corrupt="skip")
    write_data_set(source, tmp_path / "out", settings, source.skipped)
    assert len(RecordSource(tmp_path / "out")) == 3
    (entry,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert entry["example_id"] == "00001.tar"
    assert "download it again" in entry["reason"]


def test_a_shard_with_fewer_images_than_were_downloaded_is_refused(download):
    root = download("files")
    (root / "00000" / "000000001.jpg").unlink()
    with pytest.raises(ValueError, match="holds 2 images, but 3 were downloaded"):
        Img2datasetSource(root)


def test_a_member_that_leaves_the_archive_is_refused(tmp_path, noise):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        entry = tarfile.TarInfo("../up.jpg")
        entry.size = len(noise(0))
        tar.addfile(entry, io.BytesIO(noise(0)))
    with pytest.raises(ValueError, match="names leave the archive"):
        Img2datasetSource(tmp_path)


def test_texts_that_are_not_utf8_and_damaged_json_are_skipped_and_listed(
    download, tmp_path
):
    root = download("files")
    (root / "00000" / "000000000.txt").write_bytes(b"\xff\xfe")
    (root / "00000" / "000000001.json").write_bytes(b"[1]")
    (root / "00000" / "000000002.txt").unlink()
    source = Img2datasetSource(root)
    with pytest.raises(ValueError, match=r"'00000/000000000' cannot be read .*UTF-8"):
        write_data_set(source, tmp_path / "stop", Settings())
    summary = write_data_set(source, tmp_path / "out", Settings(on_corrupt="skip"))
    assert [name for name, _ in summary.skipped] == [
        "00000/000000000",
        "00000/000000001",
    ]
    assert "not an object" in summary.skipped[1][1]
    # Where the text is missing, the caption in the .json is the image's own, too.
    assert RecordSource(tmp_path / "out")[0].captions == ("picture 2",)


def test_links_are_refused(download, tmp_path):
    root = download("files")
    (root / "00000" / "000000009.jpg").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="are links or no regular files"):
        Img2datasetSource(root)


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(ValueError, match="--output_folder"):
        Img2datasetSource(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Img2datasetSource(tmp_path / "absent")
